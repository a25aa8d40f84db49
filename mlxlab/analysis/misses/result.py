"""Misses: every computed token with its cause."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from shlex import quote
from typing import TYPE_CHECKING, Any

import pandas as pd

from mlxlab.analysis.result import Result, describe_replay
from mlxlab.analysis.tables import Forms, format_bounds, format_columns

if TYPE_CHECKING:
    from mlxlab.analysis.plots.picture import Picture

__all__ = ["MOST_STRIPS", "Misses"]

#: Prompts that a picture of strips can still show legibly.
MOST_STRIPS = 80

_FORMS: Forms = {
    "cause": ("cause", str),
    "tokens": ("tokens", "{:,}".format),
    "share": ("share", "{:.1%}".format),
    "requests": ("requests", "{:,}".format),
    "seconds": ("seconds", "{:.2f}".format),
    "remedy": ("what would have saved them", str),
}


@dataclass(frozen=True, eq=False, repr=False)
class Misses(Result):
    """The result of :func:`mlxlab.misses`.

    Attributes:
        requests: one row per request. Columns: ``session``, ``request``,
            ``prompt_tokens``, ``reused_tokens``, ``missed_tokens``, ``position`` (of
            the first token that was never computed in its place), ``label`` and
            ``role`` (of the block that breaks the prompt there, or of the first new
            block), ``predecessor`` (the request that the prompt was compared with;
            missing if there is none), ``cause`` (of most missed tokens, apart from the
            rest of a block and the last token), ``lost_tokens`` (missed tokens that a
            remedy would have saved), ``change`` (how the block changed).
        causes: one row per request and cause. Columns: ``session``, ``request``,
            ``strategy`` (with its rules behind ``@`` where not all apply), ``cause``,
            ``kind`` (compulsory, capacity, invalidated or granularity), ``tokens``,
            ``seconds`` (only with a cost model), ``evicted_by`` (the
            request that evicted the tokens; empty otherwise), ``remedy``. The tokens of
            a request are its missed tokens, each counted once.
        parts: one row per run of tokens of one block and one cause. Columns:
            ``session``, ``request``, ``start``, ``stop``, ``label``, ``role``,
            ``cause`` (empty if reused), ``remedy``.
        proposals: one row per proposal of rules against text that keeps breaking
            prompts, each on top of those before it. Columns: ``added`` (names of
            rules), ``rules`` (all rules then, as ``--rules`` takes them), ``requests``
            and ``tokens`` (that the text broke), ``reused_before`` and
            ``reused_after`` (shares of all prompt tokens, replayed), ``change``.
    """

    kind = "misses"

    causes: pd.DataFrame
    parts: pd.DataFrame
    proposals: pd.DataFrame = field(default_factory=pd.DataFrame, kw_only=True)

    @property
    def strategy(self) -> str:
        """The strategy of the replay."""
        return str(self.causes.strategy.iloc[0])

    @property
    def title(self) -> str:
        missed, tokens = self.requests[["missed_tokens", "prompt_tokens"]].sum()
        return (
            f"{describe_replay(self.manifest, self.requests)}\n{self.strategy}: "
            f"{missed:,} of {tokens:,} prompt tokens computed ({missed / tokens:.1%})"
        )

    def summary(self) -> pd.DataFrame:
        """Return one row per cause and remedy, most tokens first.

        Columns: ``cause``, ``tokens``, ``share`` (of the missed tokens), ``requests``,
        ``seconds`` (only with a cost model), ``remedy``.
        """
        groups = self.causes.groupby(["cause", "remedy"], sort=False)
        table = groups.sum(numeric_only=True).drop(columns="request")
        pairs = self.causes.drop_duplicates(["session", "request", "cause", "remedy"])
        table["requests"] = pairs.groupby(["cause", "remedy"], sort=False).size()
        table["share"] = table.tokens / table.tokens.sum()
        table = table.sort_values("tokens", ascending=False, kind="stable")
        table = table.reset_index()
        return table[[column for column in _FORMS if column in table]]

    def tables(self) -> list[pd.DataFrame]:
        causes = pd.DataFrame(format_columns(self.summary(), _FORMS))
        return [causes, format_bounds(self.bounds)]

    def lines(self) -> list[str]:
        return [line for row in self.proposals.itertuples() for line in _propose(row)]

    def request_lines(self) -> Iterator[str]:
        """Yield one line per request: what broke it, where, and the missed tokens.

        A second line shows the change, if there is one.
        """
        for row in self.requests.to_dict("records"):
            missed, length = row["missed_tokens"], row["prompt_tokens"]
            yield (
                f"{row['session']} #{row['request']}: {missed:,} of {length:,} "
                f"computed: {row['cause']}, at {row['position']:,} in {row['label']}"
            )
            if row["change"]:
                yield f"    {row['change']}"

    def plot(self) -> Picture:
        """Draw each prompt as a strip of blocks; for many prompts a bar per cause."""
        from mlxlab.analysis.plots import plot_causes, plot_strip

        return (plot_strip if len(self.requests) <= MOST_STRIPS else plot_causes)(self)


def _propose(row: Any) -> Iterator[str]:
    """Yield a proposal's gain, the change that it undoes, and the line to add."""
    before, after = row.reused_before, row.reused_after
    requests = f"{row.requests:,} request" + ("s" if row.requests != 1 else "")
    yield (
        f"{row.added}: reuses {after:.1%} instead of {before:.1%}; without it one text "
        f"broke {requests} ({row.tokens:,} tokens)"
    )
    if row.change:
        yield f"    {row.change}"
    yield f"    add  --rules {quote(row.rules)}"
