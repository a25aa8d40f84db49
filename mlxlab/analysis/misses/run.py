"""Replays traces through one strategy and finds the cause of every miss.

No model runs. :mod:`mlxlab.analysis.misses.attribution` finds the causes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import pandas as pd
from tqdm.auto import tqdm

from mlxlab.analysis.misses.attribution import CauseSpan, RequestAttribution, attribute
from mlxlab.analysis.misses.blocks import make_decode
from mlxlab.analysis.misses.causes import ABSENT, NO_REMEDY, NOTHING, Cause, remedy_of
from mlxlab.analysis.misses.losses import find_break, main_cause, remedy_for
from mlxlab.analysis.misses.proposals import ProposalFinder, try_out
from mlxlab.analysis.misses.replays import reused_share, split_workloads
from mlxlab.analysis.misses.result import Misses
from mlxlab.analysis.misses.text_diff import TextShown, describe_change
from mlxlab.errors import MlxlabError, StrategyError
from mlxlab.models.folder import BUNDLED, ModelFolder, find_model
from mlxlab.models.geometry import LayoutLike, read_layout
from mlxlab.models.layout import CacheLayout
from mlxlab.prompt import Tokens
from mlxlab.rendering.renderer import Renderer
from mlxlab.replay.bounds import Bounds, FirstTokenCosts, find_bounds, tabulate_bounds
from mlxlab.replay.manifest import describe_run
from mlxlab.replay.requests import RenderedRequest
from mlxlab.replay.specs import SpecLike, StrategySpec, parse_specs
from mlxlab.replay.workload import open_sources
from mlxlab.sizes import Size, read_size
from mlxlab.strategies import Strategy
from mlxlab.traces import Trace
from mlxlab.traces.open import AnyTrace, Traces, open_traces
from mlxlab.traces.schema import Configuration

__all__ = ["Costs", "misses"]

_KEYS = ["session", "request", "strategy", "cause", "evicted_by", "remedy"]


class Costs(FirstTokenCosts, Protocol):
    """Seconds that prompts cost on some machine."""

    def prefill_s(self, start: int, stop: int) -> float:
        """Return the seconds to compute positions ``[start, stop)``."""
        ...


def misses(
    traces: Traces,
    strategy: SpecLike | None = None,
    *,
    model: str | ModelFolder = BUNDLED,
    layout: LayoutLike | None = None,
    rules: str | None = None,
    capacity: Size | None = None,
    users: int | None = None,
    costs: Costs | None = None,
    text: str = "redacted",
    propose: bool = True,
    progress: bool = True,
) -> Misses:
    """Replay traces through a strategy and find why tokens were computed.

    Tokens are counted only; neither mlx nor weights are needed.

    Args:
        traces: names, paths or opened traces. Hashed traces hold no text and only the
            blocks that their hashes mark.
        strategy: ``name[:key=value,...][@rules]``, a spec, or a strategy class. None
            for the strategy that served most recorded requests, else ``paged``.
        model: name, folder or hub repository: its tokenizer and template count.
        layout: what a model keeps for its tokens, see
            :func:`mlxlab.models.geometry.read_layout`; None for this model's.
        rules: default rules, for a strategy without ``@rules``. None for the rules that
            served most recorded requests, else ``all``.
        capacity: bytes or a size such as ``16GiB``, for a strategy whose parameters
            name none; None for the strategy's default.
        users: how many traces are replayed at the same time into one cache, as in
            :func:`mlxlab.sweep`; None for an empty cache per trace.
        costs: adds seconds. The cost of a request's gaps is divided among its causes,
            position by position.
        text: of changed blocks: ``redacted`` (secrets replaced), ``full`` or ``none``.
        propose: whether to look for rules against text that keeps breaking prompts,
            and to replay the traces with them.
        progress: whether to show a bar.

    Raises:
        MlxlabError: an unknown name or an unreadable file; nothing is replayed then.
    """
    opened = open_traces(traces)
    folder = find_model(model) if isinstance(model, str) else model
    held = None if capacity is None else read_size(capacity, "capacity")
    served = _count_configurations(opened)
    spec = _one(*_choose(served, strategy, rules), held)
    shown = _shown(text)
    kept = folder.layout if layout is None else read_layout(layout, "layout")
    memory = spec.make(kept).capacity
    renderer = Renderer(folder, spec.rules)
    builder = _RowBuilder(spec, costs, shown, _absent(opened))
    finder = ProposalFinder(spec.rules, written=shown is not TextShown.NONE)
    tokenizer = renderer.tokenizer
    sources = open_sources(opened, renderer, progress)
    bounds: list[Bounds] = []
    most = 0
    with tqdm(desc=spec.strategy, disable=not progress) as bar:
        for workload in split_workloads(sources, users):
            replayed = spec.make(kept, unit=workload.unit)
            decode = make_decode(tokenizer) if workload.unit == 1 else _no_text
            for attribution in attribute(workload, replayed, decode):
                builder.enter(attribution, replayed)
                if propose:
                    finder.enter(attribution)
                bar.update(1)
            found, filled = find_bounds(
                workload, [memory], CacheLayout.plain(kept.token_bytes())
            )
            bounds += found
            most = max(most, filled)
    manifest = describe_run(opened, folder, [spec], renderer.notes, {}, layout=kept)
    manifest["warnings"] = _list_served(served, strategy, rules)

    def share(own: tuple[str, ...]) -> float:
        return reused_share(opened, folder, replace(spec, rules=own), kept, users)

    proposals = try_out(finder, share, shown)
    return builder.close(tabulate_bounds(bounds, most, costs), manifest, proposals)


def _count_configurations(traces: Iterable[AnyTrace]) -> Counter[Configuration]:
    """Count the recorded requests that each strategy and rules served."""
    recorded = (trace for trace in traces if isinstance(trace, Trace))
    answers = (e.response for trace in recorded for e in trace.inference)
    return Counter(a.configuration for a in answers if a and a.configuration)


def _choose(
    served: Counter[Configuration], strategy: SpecLike | None, rules: str | None
) -> tuple[SpecLike, str]:
    """Return the named strategy and rules, else those that served most requests."""
    usual = Configuration(strategy="paged", rules="all")
    if served:
        usual = served.most_common(1)[0][0]
    return (
        usual.strategy if strategy is None else strategy,
        usual.rules if rules is None else rules,
    )


def _list_served(
    served: Counter[Configuration], strategy: SpecLike | None, rules: str | None
) -> list[str]:
    """Return lines on the settings that come from the recording."""
    if not served or (strategy is not None and rules is not None):
        return []
    (first, requests), *others = served.most_common()
    both = {"strategy": strategy, "rules": rules}
    taken = ", ".join(
        f"{name} {getattr(first, name)}" for name, v in both.items() if v is None
    )
    line = f"as served in the recording: {taken} ({requests:,} requests)"
    more = (
        f"also served: strategy {c.strategy}, rules {c.rules} ({n:,} requests); name "
        "them to explain those"
        for c, n in others
    )
    return [line, *more]


def _one(strategy: SpecLike, rules: str, capacity: int | None) -> StrategySpec:
    specs = parse_specs([strategy], rules, capacity)
    if len(specs) != 1:
        raise StrategyError(f"strategy {strategy!r}: {len(specs)} of them; give one")
    return specs[0]


def _absent(traces: Iterable[AnyTrace]) -> frozenset[str]:
    """Return the names of the histories that lack most of their prompts."""
    recorded = [trace for trace in traces if isinstance(trace, Trace)]
    measured = [(trace.name, trace.completeness) for trace in recorded]
    return frozenset(name for name, own in measured if own and own.is_mostly_absent)


def _shown(text: str) -> TextShown:
    try:
        return TextShown(text)
    except ValueError:
        raise MlxlabError(
            f"text {text!r}: choose from {', '.join(TextShown)}"
        ) from None


def _no_text(tokens: Tokens) -> str:
    """Return no text: hashes hold none."""
    return ""


class _RowBuilder:
    """Turns attributions into rows."""

    def __init__(
        self,
        spec: StrategySpec,
        costs: Costs | None,
        shown: TextShown,
        absent: frozenset[str],
    ) -> None:
        self.spec = spec
        self.costs = costs
        self.shown = shown
        self.absent = absent
        self.causes: list[dict[str, Any]] = []
        self.requests: list[dict[str, Any]] = []
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
            cause = {"cause": row["cause"], "remedy": row["remedy"]}
            self.parts.append({**name, **shape, "role": str(part.role), **cause})
        rows = [row for row in own if row["cause"]]
        if attribution.plan.recompute:
            rows.append(self._again_row(attribution, strategy))
        rows = [{**name, "strategy": self.spec.name, **row} for row in rows]
        self.causes += rows
        self.requests.append({**name, **self._request_row(attribution, rows)})

    def close(
        self,
        bounds: pd.DataFrame,
        manifest: dict[str, Any],
        proposals: pd.DataFrame,
    ) -> Misses:
        causes = pd.DataFrame(self.causes).groupby(_KEYS, sort=False, as_index=False)
        frame = causes.sum()
        order = ["tokens", "seconds", "evicted_by", "remedy"]
        columns = [*_KEYS[:4], *(column for column in order if column in frame)]
        kinds = [str(Cause(cause).kind) for cause in frame.cause]
        requests = pd.DataFrame(self.requests).astype({"predecessor": "Int64"})
        parts = pd.DataFrame(self.parts)
        frame = frame[columns]
        frame.insert(len(_KEYS[:4]), "kind", kinds)
        return Misses(requests, bounds, manifest, frame, parts, proposals=proposals)

    def _cause_row(
        self, attribution: RequestAttribution, part: CauseSpan, strategy: Strategy
    ) -> dict[str, Any]:
        if part.cause is None:
            return {"cause": "", "remedy": ""}
        remedy = remedy_for(part, attribution, strategy, self.spec.rules)
        if remedy.startswith(NOTHING) and attribution.request.trace in self.absent:
            remedy = ABSENT
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
        """Return the part's share of the seconds of its gap."""
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
        """Return the row of moved tokens that are computed again.

        Which tokens these are is known with a model only.
        """
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

    def _request_row(
        self, attribution: RequestAttribution, rows: Sequence[dict[str, Any]]
    ) -> dict[str, Any]:
        request, broken = attribution.request, find_break(attribution)
        change = broken.change
        lost = [r["tokens"] for r in rows if not r["remedy"].startswith(NO_REMEDY)]
        return {
            "prompt_tokens": request.tokens,
            "reused_tokens": request.tokens - attribution.missed,
            "missed_tokens": attribution.missed,
            "position": request.tokens_between(0, broken.position),
            "label": broken.label,
            "role": str(broken.role),
            "predecessor": attribution.predecessor.id
            if attribution.predecessor
            else None,
            "cause": str(main_cause((Cause(r["cause"]), r["tokens"]) for r in rows)),
            "lost_tokens": sum(lost),
            "change": describe_change(change.old, change.new, self.shown)
            if change
            else "",
        }


def _named(evictor: RenderedRequest, loser: RenderedRequest) -> str:
    """Describe the evicting request for the loser: ``request 3 (main loop)``."""
    session, _, agent = evictor.session.partition("/")
    if evictor.session == loser.session:
        who = "same conversation"
    elif agent:
        who = f"sub-agent {agent}"
    elif session == loser.session.partition("/")[0]:
        who = "main loop"
    else:
        who = f"session {session}"
    aside = ", side request" if evictor.use.side else ""
    return f"request {evictor.id} ({who}{aside})"
