"""Why prompts missed: which block broke them, what that cost, what would have helped.

Runs no model. Who is to blame is found in :mod:`mlxlab.analysis.misses.attribution`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
from tqdm.auto import tqdm

from mlxlab.analysis.misses.attribution import CauseSpan, RequestAttribution, attribute
from mlxlab.analysis.misses.causes import NOTHING, Cause, remedy_of
from mlxlab.analysis.misses.text_diff import TextShown, describe_change
from mlxlab.analysis.tables import (
    Forms,
    format_columns,
    list_notes,
    title_of,
    write_content,
)
from mlxlab.errors import MlxlabError, StrategyError
from mlxlab.models.folder import BUNDLED, ModelFolder, find_model
from mlxlab.prompt import Role, Tokens
from mlxlab.rendering.renderer import Renderer
from mlxlab.replay.manifest import describe_run
from mlxlab.replay.requests import RenderedRequest
from mlxlab.replay.sources import AnyTrace, open_sources
from mlxlab.replay.specs import StrategySpec, parse_specs
from mlxlab.replay.workload import Workload
from mlxlab.strategies import Strategy

__all__ = ["Costs", "Misses", "explain", "format_breaks", "format_causes"]

_FORMS: Forms = {
    "tokens": ("tokens", "{:,}".format),
    "share": ("share", "{:.1%}".format),
    "requests": ("requests", "{:,}".format),
    "seconds": ("seconds", "{:.2f}".format),
    "remedy": ("what would have saved them", str),
}

_KEYS = ["session", "request", "strategy", "cause", "evicted_by", "remedy"]


class Costs(Protocol):
    """What computing a prompt costs on some machine."""

    def prefill_s(self, start: int, stop: int) -> float:
        """Seconds to compute positions ``[start, stop)`` behind ``start`` others."""
        ...


@dataclass(frozen=True, eq=False)
class Misses:
    """Every computed token of a replay with its cause.

    Attributes:
        causes: a row per request and cause. ``session``, ``request``, ``strategy``
            (with its rules where not all are in force), ``cause``, ``tokens``,
            ``seconds`` (only if costs were given), ``evicted_by`` (the request that
            pushed the tokens out; empty otherwise), ``remedy``. The tokens of a request
            are those that it did not reuse, each once.
        breaks: a row per request. ``session``, ``request``, ``prompt_tokens``,
            ``reused_tokens``, ``missed_tokens``, ``position`` (the first token that was
            never computed in its place), ``label`` and ``role`` (of the block that
            breaks the prompt there, or of the first new one), ``predecessor`` (the
            request that it was compared with; missing if there is none), ``cause`` (the
            costliest but for a block's or token's rest), ``lost_tokens`` (those that
            something would have saved), ``change`` (how the block changed).
        parts: a row per run of tokens of one block and one fate. ``session``,
            ``request``, ``start``, ``stop``, ``label``, ``role``, ``cause`` (empty if
            reused), ``remedy``.
    """

    causes: pd.DataFrame
    breaks: pd.DataFrame
    parts: pd.DataFrame

    @property
    def manifest(self) -> dict[str, Any]:
        """What decided the numbers, see :func:`mlxlab.replay.manifest.describe_run`."""
        manifest: dict[str, Any] = self.causes.attrs["manifest"]
        return manifest

    @property
    def strategy(self) -> str:
        """What the requests were replayed through."""
        return str(self.causes.strategy.iloc[0])

    @property
    def title(self) -> str:
        """One line on what was replayed, and how much of it missed."""
        missed, all_ = self.breaks.missed_tokens.sum(), self.breaks.prompt_tokens.sum()
        return (
            f"{title_of(self.causes)}\n{self.strategy}: {missed:,} of {all_:,} prompt "
            f"tokens computed ({missed / all_:.1%})"
        )

    def summary(self) -> pd.DataFrame:
        """A row per cause and remedy, the costliest first.

        Columns: ``cause``, ``tokens``, ``share`` (of the missed tokens), ``requests``,
        ``seconds`` (if costs were given), ``remedy``.
        """
        groups = self.causes.groupby(["cause", "remedy"], sort=False)
        table = groups.sum(numeric_only=True).drop(columns="request")
        pairs = self.causes.drop_duplicates(["session", "request", "cause", "remedy"])
        table["requests"] = pairs.groupby(["cause", "remedy"], sort=False).size()
        table["share"] = table.tokens / table.tokens.sum()
        order = ["cause", "tokens", "share", "requests", "seconds", "remedy"]
        table = table.sort_values("tokens", ascending=False, kind="stable")
        table = table.reset_index()
        return table[[column for column in order if column in table]]

    def write_json(self, path: str | Path) -> None:
        """Write manifest, summary, causes and breaks, whole or not at all.

        Raises:
            MlxlabError: the file cannot be written.
        """
        frames = {
            "summary": self.summary(),
            "causes": self.causes,
            "breaks": self.breaks,
        }
        content = {name: _records(frame) for name, frame in frames.items()}
        write_content({"manifest": self.manifest, **content}, path)

    def __repr__(self) -> str:
        return f"Misses({self.strategy}: {len(self.breaks)} requests)"

    def _repr_html_(self) -> str:
        lines = [*self.title.split("\n"), *list_notes(self.causes)]
        notes = "".join(f"<p>{escape(line)}</p>" for line in lines)
        return notes + str(format_causes(self.summary()).to_html(index=False))


def explain(
    traces: AnyTrace | Sequence[AnyTrace],
    *,
    strategy: str = "paged",
    model: str | ModelFolder = BUNDLED,
    token_bytes: int | None = None,
    rules: str = "all",
    capacity: int | None = None,
    users: int | None = None,
    costs: Costs | None = None,
    text: str = "redacted",
    progress: bool = True,
) -> Misses:
    """Replay traces through a strategy and say why tokens were computed.

    Only counts: needs no mlx and no weights.

    Args:
        traces: recorded or hashed; those that are hashed tell no text and only the
            blocks that they know of.
        strategy: ``name[:key=value,...][@rules]``.
        model: name, folder or hub repository: its tokenizer and template count.
        token_bytes: keys and values of one token, if other than the model's.
        rules: for a strategy that names none of its own.
        capacity: bytes, likewise; None for what it takes by default.
        users: how many traces are replayed at the same time into one cache, as in
            :func:`mlxlab.sweep`; None for each into an empty one of its own.
        costs: adds seconds. What a request computes is priced as a whole and divided
            among its causes position by position.
        text: of changed blocks: ``redacted`` (secrets replaced), ``full`` or ``none``.
        progress: whether to show a bar.

    Raises:
        MlxlabError: anything unknown or unreadable; nothing has been replayed then.
    """
    traces = [traces] if isinstance(traces, AnyTrace) else list(traces)
    folder = find_model(model) if isinstance(model, str) else model
    spec, shown = _one(strategy, rules, capacity), _shown(text)
    size = token_bytes or folder.token_bytes
    spec.make(size)
    renderer = Renderer(folder, spec.rules)
    builder = _RowBuilder(spec, costs, shown)
    sources = open_sources(traces, renderer, progress)
    with tqdm(desc=spec.strategy, disable=not progress) as bar:
        whole = [Workload(sources, users)] if users else map(Workload, zip(sources))
        for workload in whole:
            replayed = spec.make(size, unit=workload.unit)
            decode = _decoder(renderer) if workload.unit == 1 else _no_text
            for attribution in attribute(workload, replayed, decode):
                builder.enter(attribution, replayed)
                bar.update(1)
    manifest = describe_run(
        traces, folder, [spec], renderer.notes, {}, token_bytes=size
    )
    return builder.close(manifest)


def format_causes(summary: pd.DataFrame) -> pd.DataFrame:
    """A summary as text under short headings."""
    return pd.DataFrame({"cause": summary.cause, **format_columns(summary, _FORMS)})


def format_breaks(breaks: pd.DataFrame) -> Iterator[str]:
    """A line per request: what broke it, where, and the tokens that cost.

    Behind it the change, if there is one to show.
    """
    for row in breaks.to_dict("records"):
        missed, length = row["missed_tokens"], row["prompt_tokens"]
        yield (
            f"{row['session']} #{row['request']}: {missed:,} of {length:,} computed: "
            f"{row['cause']}, at {row['position']:,} in {row['label']}"
        )
        if row["change"]:
            yield f"    {row['change']}"


def _one(strategy: str, rules: str, capacity: int | None) -> StrategySpec:
    specs = parse_specs(strategy, rules, capacity)
    if len(specs) != 1:
        raise StrategyError(f"strategy {strategy!r}: {len(specs)} of them; give one")
    return specs[0]


def _shown(text: str) -> TextShown:
    try:
        return TextShown(text)
    except ValueError:
        raise MlxlabError(
            f"text {text!r}: choose from {', '.join(TextShown)}"
        ) from None


def _decoder(renderer: Renderer) -> Any:
    def decode(tokens: Tokens) -> str:
        return str(renderer.tokenizer.decode(tokens, skip_special_tokens=True))

    return decode


def _no_text(tokens: Tokens) -> str:
    """Hashes are of texts that nobody has."""
    return ""


class _RowBuilder:
    """Turns attributions into rows."""

    def __init__(
        self, spec: StrategySpec, costs: Costs | None, shown: TextShown
    ) -> None:
        self.spec = spec
        self.costs = costs
        self.shown = shown
        self.causes: list[dict[str, Any]] = []
        self.breaks: list[dict[str, Any]] = []
        self.parts: list[dict[str, Any]] = []

    def enter(self, attribution: RequestAttribution, strategy: Strategy) -> None:
        request = attribution.request
        name = {"session": request.session, "request": request.id}
        own = [
            self._cause_row(attribution, part, strategy) for part in attribution.parts
        ]
        for part, row in zip(attribution.parts, own, strict=True):
            start = request.tokens_between(0, part.start)
            stop = request.tokens_between(0, part.stop)
            shape = {"start": start, "stop": stop, "label": part.label}
            fate = {"cause": row["cause"], "remedy": row["remedy"]}
            self.parts.append({**name, **shape, "role": str(part.role), **fate})
        rows = [row for row in own if row["cause"]]
        if attribution.plan.recompute:
            rows.append(self._again_row(attribution, strategy))
        rows = [{**name, "strategy": self.spec.name, **row} for row in rows]
        self.causes += rows
        self.breaks.append({**name, **self._break_row(attribution, rows)})

    def close(self, manifest: dict[str, Any]) -> Misses:
        causes = pd.DataFrame(self.causes).groupby(_KEYS, sort=False, as_index=False)
        frame = causes.sum()
        order = ["tokens", "seconds", "evicted_by", "remedy"]
        columns = [*_KEYS[:4], *(column for column in order if column in frame)]
        frame = frame[columns]
        frame.attrs["manifest"] = manifest
        breaks = pd.DataFrame(self.breaks).astype({"predecessor": "Int64"})
        return Misses(frame, breaks, pd.DataFrame(self.parts))

    def _cause_row(
        self, attribution: RequestAttribution, part: CauseSpan, strategy: Strategy
    ) -> dict[str, Any]:
        if part.cause is None:
            return {"cause": "", "remedy": ""}
        change = part.change
        remedy = remedy_of(
            part.cause,
            strategy,
            self.spec.rules,
            lost=part.role,
            changed=change.role if change else part.role,
            deferred=change is not None and change.deferred,
            unit=attribution.request.unit,
        )
        evictor = part.evictor
        return {
            "cause": str(part.cause),
            "tokens": attribution.request.tokens_between(part.start, part.stop),
            **self._priced(attribution, part.start, part.stop),
            "evicted_by": _named(evictor, attribution.request) if evictor else "",
            "remedy": remedy,
        }

    def _priced(
        self, attribution: RequestAttribution, start: int, stop: int
    ) -> dict[str, float]:
        """The part's share of what the gap that it lies in costs as a whole."""
        if self.costs is None:
            return {}
        first = next(a for a, b in attribution.plan.gaps if a <= start < b)
        first, start, stop = (
            attribution.request.tokens_between(0, position)
            for position in (first, start, stop)
        )
        before = self.costs.prefill_s(first, start) if start > first else 0.0
        return {"seconds": self.costs.prefill_s(first, stop) - before}

    def _again_row(
        self, attribution: RequestAttribution, strategy: Strategy
    ) -> dict[str, Any]:
        """Which moved tokens are computed again is known with a model only."""
        plan = attribution.plan
        row = {
            "cause": str(Cause.AGAIN),
            "tokens": plan.recompute,
            "evicted_by": "",
            "remedy": remedy_of(Cause.AGAIN, strategy, self.spec.rules),
        }
        if self.costs is None:
            return row
        spans = [span for span in plan.spans if span.moved]
        whole = [self.costs.prefill_s(s.target, s.target + s.length) for s in spans]
        return {**row, "seconds": sum(whole) * plan.recompute / plan.moved}

    def _break_row(
        self, attribution: RequestAttribution, rows: Sequence[dict[str, Any]]
    ) -> dict[str, Any]:
        request, change = attribution.request, attribution.change
        position = min(attribution.known, len(request.prompt) - 1)
        block = _block_at(attribution.parts, position)
        if change is None or not any(part.change for part in attribution.parts):
            label, role, shown = block.label, block.role, ""
        else:
            label, role = change.label, change.role
            shown = describe_change(change.old, change.new, self.shown)
        tokens = pd.DataFrame(rows).groupby("cause").tokens.sum()
        telling = tokens.drop([Cause.BLOCK, Cause.LAST], errors="ignore")
        lost = [r["tokens"] for r in rows if not r["remedy"].startswith(NOTHING)]
        return {
            "prompt_tokens": request.tokens,
            "reused_tokens": request.tokens - attribution.missed,
            "missed_tokens": attribution.missed,
            "position": request.tokens_between(0, position),
            "label": label,
            "role": str(role),
            "predecessor": attribution.predecessor.id
            if attribution.predecessor
            else None,
            "cause": str((telling if len(telling) else tokens).idxmax()),
            "lost_tokens": sum(lost),
            "change": shown,
        }


def _block_at(parts: Sequence[CauseSpan], position: int) -> CauseSpan:
    """The one that holds ``position``, or the next if the template put that there."""
    behind = [part for part in parts if part.stop > position]
    glue = (Role.TEMPLATE, Role.GENERATION)
    return next((part for part in behind if part.role not in glue), behind[0])


def _named(evictor: RenderedRequest, loser: RenderedRequest) -> str:
    """``request 3 (sub-agent 1a2b3c4d)``: who it was, seen from who lost by it."""
    session, _, agent = evictor.session.partition("/")
    if evictor.session == loser.session:
        who = "same conversation"
    elif agent:
        who = f"sub-agent {agent}"
    elif session == loser.session.partition("/")[0]:
        who = "main loop"
    else:
        who = f"session {session}"
    aside = ", side request" if evictor.side else ""
    return f"request {evictor.id} ({who}{aside})"


def _records(frame: pd.DataFrame) -> Any:
    rounded = frame.round(6) if len(frame) else frame
    return json.loads(rounded.to_json(orient="records", double_precision=6))
