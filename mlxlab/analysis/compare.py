"""Replays the same traces through several strategies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeAlias

import pandas as pd
from tqdm.auto import tqdm

from mlxlab.analysis.comparison import Comparison
from mlxlab.errors import MlxlabError
from mlxlab.models.folder import BUNDLED, ModelFolder, find_model
from mlxlab.models.geometry import LayoutLike, read_layout
from mlxlab.models.layout import CacheLayout
from mlxlab.rendering.renderer import Renderer
from mlxlab.rendering.rules import parse_rules
from mlxlab.replay.bounds import Bounds, find_bounds, tabulate_bounds
from mlxlab.replay.commits import order_as_planned
from mlxlab.replay.cost_model import CHUNK, CostModel, Machine, Point, fit_costs
from mlxlab.replay.manifest import describe_run
from mlxlab.replay.requests import RenderedRequest, label_sessions, render_trace
from mlxlab.replay.simulator import Outcome, Progress, Replayer, Simulator
from mlxlab.replay.specs import DEFAULT_SPECS, Strategies, StrategySpec, parse_specs
from mlxlab.sizes import Size, read_size
from mlxlab.traces import Trace
from mlxlab.traces.open import Traces, open_recorded

if TYPE_CHECKING:
    from mlxlab.replay.live import LiveModel

__all__ = ["compare"]

Rendered: TypeAlias = Sequence[Sequence[RenderedRequest]]
"""The requests of each trace."""


def compare(
    traces: Traces,
    strategies: Strategies = DEFAULT_SPECS,
    *,
    model: str | ModelFolder = BUNDLED,
    rules: str = "all",
    capacity: Size | None = None,
    simulate: bool = False,
    costs: CostModel | None = None,
    chunk: int = CHUNK,
    layout: LayoutLike | None = None,
    progress: bool = True,
) -> Comparison:
    """Replay traces through strategies, each trace from an empty cache.

    Args:
        traces: recorded traces: names, paths or opened ones, one or several.
        strategies: see :func:`mlxlab.replay.specs.parse_specs`.
        model: name, folder or hub repository.
        rules: default rules, for strategies without ``@rules``.
        capacity: bytes or a size such as ``16GiB``, for strategies whose parameters
            name none; None for each strategy's default.
        simulate: count tokens only; needs neither mlx nor weights.
        costs: estimates the seconds of a simulation and of bounds, see
            :func:`mlxlab.calibrate`. A live replay with exact strategies fits its own.
        chunk: tokens that a live replay computes at a time.
        layout: what another model keeps for its tokens, see
            :func:`mlxlab.models.geometry.read_layout`; for simulations only.
        progress: whether to show a bar.

    Raises:
        MlxlabError: an unknown name or an unreadable file; nothing is replayed then.
    """
    recorded = open_recorded(traces)
    folder = find_model(model) if isinstance(model, str) else model
    size = None if capacity is None else read_size(capacity, "capacity")
    specs = parse_specs(strategies, rules, size)
    default = parse_rules(rules)
    kept = folder.layout
    if layout is not None:
        kept = _other_layout(layout, simulate)
    capacities = {spec: spec.make(kept).capacity for spec in specs}
    every = dict.fromkeys([default, *(spec.rules for spec in specs)])
    renderers = {own: Renderer(folder, own) for own in every}
    renderings = len(renderers) * sum(len(trace.inference) for trace in recorded)
    with (
        _stage(folder, kept, chunk, simulate, costs) as stage,
        tqdm(total=renderings, desc="rendering", disable=not progress) as bar,
    ):
        for spec in specs:
            # A model that cannot serve one of them is refused before any work.
            stage.replayer(spec, bar.update)
        rendered = {
            own: _render(recorded, renderer, bar.update)
            for own, renderer in renderers.items()
        }
        sizes = set(capacities.values())
        bounds = [find_bounds(requests, sizes, kept) for requests in rendered[default]]
        bar.reset(sum(_tokens(rendered[spec.rules]) for spec in specs))
        rows: list[dict[str, Any]] = []
        for spec in specs:
            bar.set_description(spec.name)
            for requests in rendered[spec.rules]:
                replayer = stage.replayer(spec, bar.update)
                outcomes = {
                    request.id: replayer.replay(request)
                    for request in order_as_planned(requests)
                }
                rows += [
                    _row(spec, capacities[spec], request, outcomes[request.id])
                    for request in requests
                    if request.id in outcomes
                ]
    frame = pd.DataFrame(rows)
    costs = costs if simulate else _fitted(frame, specs, stage) or costs
    found = [own for per_trace, _ in bounds for own in per_trace]
    beside = [_bound_columns(b, capacities[s], costs) for s in specs for b in found]
    notes = sum((r.notes for r in renderers.values()), Counter())
    return Comparison(
        requests=frame.join(pd.DataFrame(beside)),
        bounds=tabulate_bounds(found, max(held for _, held in bounds), costs),
        manifest=describe_run(
            recorded,
            folder,
            specs,
            notes,
            stage.environment,
            layout=kept,
            costs=costs,
        ),
        segments=_segments(rendered[default]),
    )


def _other_layout(layout: LayoutLike, simulate: bool) -> CacheLayout:
    if not simulate:
        raise MlxlabError(
            "layout: a live replay stores what the model keeps; leave layout out, or "
            "simulate"
        )
    return read_layout(layout, "layout")


def _render(
    traces: Sequence[Trace], renderer: Renderer, progress: Progress
) -> Rendered:
    rendered = [render_trace(trace, renderer, progress) for trace in traces]
    return label_sessions(traces, rendered)


def _tokens(rendered: Rendered) -> int:
    return sum(len(request.prompt) for requests in rendered for request in requests)


class _Stage:
    """Makes replayers: simulators, or live ones where a model is loaded."""

    def __init__(
        self,
        folder: ModelFolder,
        layout: CacheLayout,
        live: LiveModel | None,
        costs: CostModel | None,
    ) -> None:
        self.folder = folder
        self.layout = layout
        self.live = live
        self.costs = costs
        self.environment = live.describe() if live else {}

    def replayer(self, spec: StrategySpec, progress: Progress) -> Replayer:
        strategy = spec.make(self.layout)
        if self.live is None:
            return Simulator(strategy, progress, self.costs)
        return self.live.replayer(strategy, progress)


@contextmanager
def _stage(
    folder: ModelFolder,
    layout: CacheLayout,
    chunk: int,
    simulate: bool,
    costs: CostModel | None,
) -> Iterator[_Stage]:
    if simulate:
        yield _Stage(folder, layout, None, costs)
        return
    # Simulation has to work where mlx is not installed.
    from mlxlab.replay.live import live_model

    with live_model(folder, chunk=chunk) as live:
        yield _Stage(folder, layout, live, None)


def _fitted(
    rows: pd.DataFrame, specs: Iterable[StrategySpec], stage: _Stage
) -> CostModel | None:
    """Fit a cost model to a live replay's own requests; None without exact ones.

    Strategies that move keys compute in several places, which no point can describe.
    Reading from disk is no part of the model's restores.
    """
    exact = [spec.name for spec in specs if spec.exact]
    in_memory = rows.strategy.isin(exact) & (rows.disk_tokens == 0)
    measured = rows[in_memory].dropna(subset="ttft_s")
    if measured.empty:
        return None
    environment: Mapping[str, Any] = stage.environment
    return fit_costs(
        [
            Point(
                start=row.reused_tokens,
                stop=row.prompt_tokens,
                restore_s=row.restore_s,
                prefill_s=row.prefill_s,
            )
            for row in measured.itertuples()
        ],
        model=stage.folder.digest,
        machine=Machine.here(environment["chunk"]),
        device=environment["device"],
        blas=environment["blas"],
        day=datetime.now(UTC).date(),
    )


def _bound_columns(
    bounds: Bounds, capacity: int, costs: CostModel | None
) -> dict[str, float | None]:
    """Return the bounds of one request, in tokens and in seconds."""
    tokens = bounds.at(capacity)
    seconds = {
        f"{name}_s": None
        if costs is None or reused is None
        else costs.ttft_s(reused, bounds.tokens)
        for name, reused in tokens.items()
    }
    return {**tokens, **seconds}


def _row(
    spec: StrategySpec, capacity: int, request: RenderedRequest, outcome: Outcome
) -> dict[str, Any]:
    return {
        "strategy": spec.name,
        "rules": spec.rules_label,
        "capacity": capacity,
        "session": request.session,
        "request": request.id,
        "prompt_tokens": len(request.prompt),
        "reused_tokens": outcome.reused_tokens,
        "disk_tokens": outcome.disk_tokens,
        "computed_tokens": len(request.prompt) - outcome.reused_tokens,
        "prefill_s": outcome.prefill_s,
        "ttft_s": outcome.ttft_s,
        "restore_s": outcome.restore_s,
        "stored_bytes": outcome.stored_bytes,
        "evicted": outcome.evicted,
    }


def _segments(rendered: Rendered) -> pd.DataFrame:
    """Count the tokens of each request by kind of content."""
    frame = pd.DataFrame(
        {
            "session": request.session,
            "request": request.id,
            "role": str(segment.role),
            "tokens": len(segment),
        }
        for requests in rendered
        for request in requests
        for segment in request.prompt.segments
    )
    keys = ["session", "request", "role"]
    return frame.groupby(keys, sort=False, as_index=False).sum()
