"""Diagnoses: what requests cost today, why, what to change, and what to expect."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

import pandas as pd

from mlxlab.analysis.conclusion import find_lack
from mlxlab.analysis.misses.causes import NO_REMEDY, CauseKind
from mlxlab.analysis.misses.result import Misses
from mlxlab.analysis.tables import Forms, format_columns
from mlxlab.analysis.tuning import Tuning
from mlxlab.sizes import format_duration

__all__ = ["Diagnosis"]

#: Causes that are shown.
_SHOWN = 3
#: Share of all prompt tokens from which on it is said that memory is short.
_SHORT = 0.01
#: Share of all prompt tokens below which a change is not worth it.
_LEAST = 0.005
#: The name of a model that is not known.
_MODEL = "NAME"

_FORMS: Forms = {
    "cause": ("what costs most", str),
    "tokens": ("tokens", "{:,}".format),
    "seconds": ("seconds", "{:,.0f}".format),
    "remedy": ("what to set", str),
}


@dataclass(frozen=True, eq=False, repr=False)
class Diagnosis(Misses):
    """The result of :func:`mlxlab.doctor`: the misses of today, and a tuning.

    Attributes:
        requests: as of :class:`Misses`, and ``reused_after`` (tokens that the
            recommended strategy reuses), ``ttft_s`` and ``ttft_after_s`` (estimated
            seconds to the first token).
        bounds: as of :class:`Tuning`.
        trials: the ``requests`` of :attr:`tuning`.
    """

    kind = "doctor"

    trials: pd.DataFrame

    @property
    def today(self) -> Misses:
        """The misses, with all their causes."""
        return Misses(
            self.requests, self.bounds, self.manifest, self.causes, self.parts
        )

    @property
    def tuning(self) -> Tuning:
        """The search for a better strategy."""
        columns = ["session", "request", "prompt_tokens", "reused_after"]
        replayed = self.requests[columns].rename(
            columns={"reused_after": "reused_tokens"}
        )
        return Tuning(self.trials, self.bounds, self.manifest["tuning"], replayed)

    @property
    def title(self) -> str:
        days = f", {self.manifest['days']}" if self.manifest["days"] else ""
        prompt = int(self.requests.prompt_tokens.sum())
        found = f"{len(self.requests):,} requests, {prompt:,} prompt tokens"
        return f"{self.manifest['source']}: {found}{days}\n{self.verdict}"

    @property
    def avoidable(self) -> float:
        """Share of the computed tokens that had been computed before."""
        known = self.causes[self.causes.kind != CauseKind.COMPULSORY].tokens.sum()
        computed = self.causes.tokens.sum()
        return float(known / computed) if computed else 0.0

    @property
    def verdict(self) -> str:
        """One sentence: how much was computed that had been computed before."""
        if lack := find_lack(self.manifest):
            return lack
        computed = int(self.causes.tokens.sum())
        known = round(self.avoidable * computed)
        kinds = self.causes.kind != CauseKind.COMPULSORY
        seconds = self.causes[kinds].seconds.sum()
        return (
            f"{self.avoidable:.0%} of the prefill had been computed before: "
            f"{known:,} of {computed:,} tokens, {format_duration(seconds)}."
        )

    def summary(self) -> pd.DataFrame:
        """Return one row per cause that has a remedy, most seconds first.

        Columns: see :meth:`Misses.summary`.
        """
        every = super().summary()
        mendable = every[~every.remedy.str.startswith(NO_REMEDY)]
        return mendable.sort_values("seconds", ascending=False, ignore_index=True)

    def tables(self) -> list[pd.DataFrame]:
        shown = self.summary().head(_SHOWN)
        return [pd.DataFrame(format_columns(shown, _FORMS))] if len(shown) else []

    def lines(self) -> list[str]:
        if find_lack(self.manifest):
            return []
        if not self.is_better:
            return ["Keep what you have: nothing that was tried reuses more."]
        return [f"Run:    {self.serve_line}", *self.expected()]

    @property
    def is_better(self) -> bool:
        """Whether the recommendation reuses more than today's strategy."""
        return self.gain >= _LEAST

    @property
    def shares(self) -> tuple[float, float]:
        """Reused share of all prompt tokens, today and as recommended."""
        rows = self.requests
        reused = (rows.reused_tokens.sum(), rows.reused_after.sum())
        now, then = (float(n / rows.prompt_tokens.sum()) for n in reused)
        return now, then

    @property
    def seconds(self) -> tuple[float, float]:
        """Mean seconds to the first token, today and as recommended."""
        rows = self.requests
        return float(rows.ttft_s.mean()), float(rows.ttft_after_s.mean())

    @property
    def share_error(self) -> float:
        """Two standard errors of the recommended share.

        Of 100 such sets of sessions, some 95 would be within.
        """
        return 2 * float(self.manifest["share_error"])

    @property
    def seconds_error(self) -> float | None:
        """Relative error of the seconds; None if it is not known."""
        error = self.manifest["seconds_error"]
        return None if error is None else float(error)

    @property
    def gain(self) -> float:
        """Share of all prompt tokens that the recommendation reuses beyond today's."""
        now, then = self.shares
        return then - now

    @property
    def serve_line(self) -> str:
        """The command that serves the recommendation."""
        return " ".join(["mlxlab", "serve", *self.serve_arguments(_MODEL)])

    def serve_arguments(self, unknown: str = "") -> list[str]:
        """Return the arguments of ``mlxlab serve``.

        Args:
            unknown: stands for the model if none is known; empty to leave it out.
        """
        tuned, model = self.tuning, self.manifest["served"] or unknown
        rules = [] if tuned.rules == "all" else ["--rules", tuned.rules]
        named = ["--model", model] if model else []
        return [*named, "--strategy", str(tuned.best.strategy), *rules]

    def expected(self) -> Iterator[str]:
        """Yield what to expect of the recommendation, with its errors, a line each."""
        now, then = self.shares
        yield (
            f"Expect: {then:.0%} of prompt tokens reused (± {self.share_error:.0%}) "
            f"instead of {now:.0%}"
        )
        error = self.seconds_error
        within = "" if error is None else f" (± {error:.0%})"
        before, after = self.seconds
        yield (
            f"        {after:.1f} s to the first token{within} instead of "
            f"{before:.1f} s, in the mean"
        )
        most = self.tuning.unlimited / self.requests.prompt_tokens.sum()
        if most - then > _SHORT:
            yield f"        unlimited memory would reuse {most:.0%}: see --memory"

    @property
    def notes(self) -> list[str]:
        """What else was found, what was assumed, and the notes of the replay."""
        also = [f"Also found: {line}" for line in self.manifest["also"]]
        settings = "; ".join(self.manifest["settings"])
        return [*also, f"Assumed: {settings}.", *super().notes]

    def _html_lines(self) -> str:
        if not (self.is_better and self.lines()):
            return super()._html_lines()
        code = f"<pre>{escape(self.serve_line)}</pre>"
        expected = "<br>".join(escape(line.strip()) for line in self.expected())
        return f"{code}<p>{expected}</p>"
