"""Drive several strategies with the same traces and put the outcomes side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pandas as pd
from tqdm.auto import tqdm

from mlxlab.models.folder import BUNDLED, ModelFolder, find_model
from mlxlab.rendering.renderer import Renderer
from mlxlab.rendering.rules import parse_rules
from mlxlab.replay.bounds import InfiniteMemory, Reachable, reachable
from mlxlab.replay.cost_model import CostModel, Machine, Point, fit_costs
from mlxlab.replay.manifest import describe_run
from mlxlab.replay.requests import RenderedRequest, label_sessions, render_trace
from mlxlab.replay.simulator import Outcome, Progress, Replayer, Simulator
from mlxlab.replay.specs import DEFAULT_SPECS, StrategySpec, parse_specs
from mlxlab.traces import Trace

if TYPE_CHECKING:
    from mlxlab.replay.live import LiveModel

__all__ = ["compare"]


def compare(
    traces: Trace | Sequence[Trace],
    *,
    model: str | ModelFolder = BUNDLED,
    strategies: str = DEFAULT_SPECS,
    rules: str = "all",
    capacity: int | None = None,
    simulate: bool = False,
    costs: CostModel | None = None,
    chunk: int = 2048,
    progress: bool = True,
) -> pd.DataFrame:
    """Replay traces through strategies, each trace from an empty cache.

    The ceiling of infinite memory comes last, as if it were a strategy; ceilings are
    always simulated.

    Args:
        traces: one or more.
        model: name, folder or hub repository.
        strategies: see :func:`mlxlab.replay.specs.parse_specs`.
        rules: for strategies that name none of their own.
        capacity: bytes, likewise; None for what each takes by default.
        simulate: count tokens only; needs no mlx and no weights.
        costs: what a simulation estimates seconds by, see
            :func:`mlxlab.analysis.calibrate.calibrate`. A live replay estimates those
            of the ceilings by what it has measured of exact strategies itself, if any.
        chunk: tokens that a live replay computes at a time.
        progress: whether to show a bar.

    Returns:
        A row per strategy and request: ``strategy``, ``rules``, ``capacity`` (bytes),
        ``session``, ``request``, ``prompt_tokens``, ``reused_tokens``,
        ``computed_tokens``, ``prefill_s``, ``ttft_s``, ``restore_s`` (missing where
        nothing was computed), ``stored_bytes``, ``evicted`` (tokens), and what of the
        same request could have been reused under ``rules`` with infinite memory, with
        the strategy's own capacity and all the future known, and at any position:
        ``infinite``, ``finite``, ``any_position`` (tokens), and ``infinite_s``,
        ``finite_s``, ``any_position_s``, the seconds to a first token that this would
        take (missing where nothing tells). ``attrs["manifest"]`` holds what
        :func:`mlxlab.replay.manifest.describe_run` tells of the run.

    Raises:
        MlxlabError: anything unknown or unreadable; nothing has been replayed then.
    """
    traces = [traces] if isinstance(traces, Trace) else list(traces)
    folder = find_model(model) if isinstance(model, str) else model
    ceiling = StrategySpec(InfiniteMemory, {}, parse_rules(rules), capacity)
    named = parse_specs(strategies, rules, capacity)
    specs = tuple(dict.fromkeys([*named, ceiling]))
    made = {c: c.make(folder.token_bytes) for c in specs}
    renderers = {c.rules: Renderer(folder, c.rules) for c in specs}
    rows: list[dict[str, Any]] = []
    possible: list[tuple[Reachable, int]] = []  # with the capacity that counts
    renderings = len(renderers) * sum(len(trace.inference) for trace in traces)
    with (
        _stage(folder, chunk, simulate, costs) as stage,
        tqdm(total=renderings, desc="rendering", disable=not progress) as bar,
    ):
        for spec in specs:
            # A model that cannot serve one of them is refused before any work.
            stage.replayer(spec, bar.update)
        workload = {
            rules_in_force: label_sessions(
                traces, [render_trace(t, renderer, bar.update) for t in traces]
            )
            for rules_in_force, renderer in renderers.items()
        }
        sizes = {strategy.capacity_tokens for strategy in made.values()}
        ceilings = [reachable(requests, sizes) for requests in workload[ceiling.rules]]
        bar.reset(sum(_tokens(workload[c.rules]) for c in specs))
        for spec in specs:
            bar.set_description(spec.strategy)
            for requests, most in zip(workload[spec.rules], ceilings, strict=True):
                replayer = stage.replayer(spec, bar.update)
                strategy = made[spec]
                rows += [
                    _row(spec, strategy.capacity, request, replayer.replay(request))
                    for request in requests
                ]
                possible += [(at_most, strategy.capacity_tokens) for at_most in most]
    frame = pd.DataFrame(rows)
    if not simulate:
        exact = {c.strategy for c, strategy in made.items() if strategy.exact}
        measured = frame[frame.strategy.isin(exact)].dropna(subset="ttft_s")
        # What moves spans computes in several places, which no point can say.
        if not measured.empty:
            costs = _fitted(measured, folder, stage.environment)
    frame = frame.join(pd.DataFrame([_ceilings(*own, costs) for own in possible]))
    notes = sum((r.notes for r in renderers.values()), Counter())
    frame.attrs["manifest"] = describe_run(
        traces, folder, specs, notes, stage.environment, costs=costs
    )
    return frame


def _tokens(workload: Iterable[Iterable[RenderedRequest]]) -> int:
    return sum(len(request.prompt) for requests in workload for request in requests)


class _Stage:
    """Makes targets: simulated ones, and with a model live ones."""

    def __init__(
        self, folder: ModelFolder, live: LiveModel | None, costs: CostModel | None
    ) -> None:
        self.token_bytes = folder.token_bytes
        self.live = live
        self.costs = costs
        self.environment = live.describe() if live else {}

    def replayer(self, spec: StrategySpec, progress: Progress) -> Replayer:
        strategy = spec.make(self.token_bytes)
        if self.live is None or spec.is_ceiling:
            return Simulator(strategy, progress, self.costs)
        return self.live.replayer(strategy, progress)


@contextmanager
def _stage(
    folder: ModelFolder, chunk: int, simulate: bool, costs: CostModel | None
) -> Iterator[_Stage]:
    if simulate:
        yield _Stage(folder, None, costs)
        return
    # Simulation has to work where mlx is not installed.
    from mlxlab.replay.live import live_model

    with live_model(folder, chunk=chunk) as live:
        yield _Stage(folder, live, None)


def _fitted(
    rows: pd.DataFrame, folder: ModelFolder, environment: Mapping[str, Any]
) -> CostModel:
    """Costs by a live replay's own requests."""
    return fit_costs(
        [
            Point(
                start=row.reused_tokens,
                stop=row.prompt_tokens,
                restore_s=row.restore_s,
                prefill_s=row.prefill_s,
            )
            for row in rows.itertuples()
        ],
        model=folder.digest,
        machine=Machine.here(environment["chunk"]),
        device=environment["device"],
        blas=environment["blas"],
        day=datetime.now(UTC).date(),
    )


def _ceilings(
    possible: Reachable, capacity_tokens: int, costs: CostModel | None
) -> dict[str, float | None]:
    """What of one request could have been reused, and how soon it could have begun."""
    tokens = possible.columns(capacity_tokens)
    seconds = {
        f"{name}_s": None
        if costs is None or reused is None
        else costs.ttft_s(reused, possible.tokens)
        for name, reused in tokens.items()
    }
    return {**tokens, **seconds}


def _row(
    spec: StrategySpec, capacity: int, request: RenderedRequest, outcome: Outcome
) -> dict[str, Any]:
    return {
        "strategy": spec.strategy,
        "rules": spec.rules_label,
        "capacity": capacity,
        "session": request.session,
        "request": request.id,
        "prompt_tokens": len(request.prompt),
        "reused_tokens": outcome.reused_tokens,
        "computed_tokens": len(request.prompt) - outcome.reused_tokens,
        "prefill_s": outcome.prefill_s,
        "ttft_s": outcome.ttft_s,
        "restore_s": outcome.restore_s,
        "stored_bytes": outcome.stored_bytes,
        "evicted": outcome.evicted,
    }
