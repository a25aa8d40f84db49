"""Replays the same traces through several strategies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

import pandas as pd
from tqdm.auto import tqdm

from mlxlab.analysis.comparison import Comparison
from mlxlab.analysis.visits import Visits
from mlxlab.errors import ConfigError, MlxlabError
from mlxlab.models.folder import BUNDLED, ModelFolder, find_model
from mlxlab.models.geometry import LayoutLike, read_layout
from mlxlab.models.layout import CacheLayout
from mlxlab.rendering.renderer import Renderer
from mlxlab.rendering.rules import parse_rules
from mlxlab.replay.bounds import PLACEMENT, Bounds, find_bounds, tabulate_bounds
from mlxlab.replay.cost_model import CHUNK, CostModel, Machine, Point, fit_costs
from mlxlab.replay.manifest import describe_run
from mlxlab.replay.requests import RenderedRequest, label_sessions, render_trace
from mlxlab.replay.simulator import Outcome, Progress, Replayer, Simulator
from mlxlab.replay.specs import DEFAULT_SPECS, Strategies, StrategySpec, parse_specs
from mlxlab.replay.traffic import Orders, Rendered, Rules, Traffic
from mlxlab.replay.uses import describe_missing
from mlxlab.sizes import Size, read_size
from mlxlab.traces import Trace
from mlxlab.traces.open import Traces, open_recorded

if TYPE_CHECKING:
    from mlxlab.replay.live import LiveModel

__all__ = ["compare", "read_factor"]


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
    users: int | None = None,
    think_times: float | None = None,
    endpoints: str | Iterable[str] = (),
    token: str | None = None,
    answer_tokens: int | None = None,
    progress: bool = True,
) -> Comparison:
    """Replay traces through strategies.

    Without ``users`` each trace has an empty cache, and its requests are computed one
    after another. With them, each user takes the next trace when its current one ends,
    and all share one cache. A simulation then merges the traces by their recorded
    times. In a live replay the users really ask at once, as on our server: answers
    decode together, and a request waits for the answers before it and for the recorded
    think time, see :func:`mlxlab.replay.turns.list_turns`.

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
        users: how many traces are replayed at the same time into one cache; None for an
            empty cache per trace.
        think_times: factor on the recorded think times of live users: 0 for none, 1 if
            None.
        endpoints: running servers to send the requests to as well, each
            ``URL[#MODEL][=NAME]``. Their rows hold what the servers state.
        token: sent to the endpoints. By default that of a server of mlxlab that runs
            there.
        answer_tokens: most tokens of an endpoint's answer; 16 by default, or the
            recorded length where users ask at once.
        progress: whether to show a bar.

    Raises:
        MlxlabError: an unknown name, an unreadable file, or an endpoint that does not
            answer; nothing is replayed then.
    """
    listed = (endpoints,) if isinstance(endpoints, str) else tuple(endpoints)
    factor = read_factor(users, think_times, simulate and not listed)
    recorded = open_recorded(traces)
    folder = find_model(model) if isinstance(model, str) else model
    size = None if capacity is None else read_size(capacity, "capacity")
    specs = parse_specs(strategies, rules, size)
    default = parse_rules(rules)
    kept = folder.layout
    if layout is not None:
        kept = _other_layout(layout, simulate)
    sizes = [spec.make(kept).capacity for spec in specs]
    visits = Visits(listed, [spec.name for spec in specs], token, answer_tokens)
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
        traffic = Traffic(recorded, rendered, users, factor)
        find = partial(_find_bounds, traffic.requests[default], set(sizes), kept)
        whole, most = find(traffic.orders)
        asked = len(visits) * sum(own.tokens for own in traffic.requests[default])
        bar.reset(sum(stage.steps(traffic, spec.rules) for spec in specs) + asked)
        visits.replay(recorded, traffic, default, bar)
        rows: list[dict[str, Any]] = []
        beside: list[tuple[int | None, Bounds]] = []
        for spec, capacity in zip(specs, sizes, strict=True):
            bar.set_description(spec.name)
            outcomes = stage.replay(spec, traffic, bar.update)
            # Live users may ask in another order under each strategy.
            orders = traffic.orders if users is None else (tuple(outcomes),)
            own = whole if orders == traffic.orders else find(orders)[0]
            for number in sorted(outcomes):
                request = traffic.requests[spec.rules][number]
                rows.append(_row(spec, capacity, request, outcomes[number]))
                beside.append((capacity, own[number]))
        for visited in visits.replied:
            # Users of endpoints, too, ask in an order of their own.
            own = whole if users is None else find((visited.order,))[0]
            beside += [(None, own[number]) for number in sorted(own)]
    frame = pd.DataFrame(rows)
    if not simulate and users is None:
        costs = _fitted(frame, specs, stage) or costs
    columns = [_bound_columns(bounds, size, costs) for size, bounds in beside]
    notes = sum((r.notes for r in renderers.values()), Counter())
    described = describe_run(
        recorded, folder, specs, notes, stage.environment, layout=kept, costs=costs
    )
    missing = describe_missing(
        traffic.requests[default], [spec.evict for spec in specs]
    )
    described |= {"warnings": missing} if missing else {}
    if users is not None:
        described |= {"users": users}
        described |= {} if simulate and not visits else {"think_times": factor}
    return Comparison(
        requests=visits.below(frame).join(pd.DataFrame(columns)),
        bounds=tabulate_bounds(list(whole.values()), most, costs),
        manifest=visits.describe(described),
        segments=_segments(rendered[default]),
    )


def read_factor(
    users: int | None, think_times: float | None, simulate: bool = False
) -> float:
    """Return the factor on think times; 1 if None.

    Raises:
        ConfigError: a number of users or a factor that means nothing.
    """
    if users is not None and users < 1:
        raise ConfigError(f"users {users}: give a whole number >= 1")
    if think_times is None:
        return 1.0
    if users is None or simulate:
        raise ConfigError(
            "think times: only live users think; name users, and do not simulate"
        )
    if not 0 <= think_times < inf:
        raise ConfigError(f"think times {think_times}: give a factor >= 0")
    return think_times


def _find_bounds(
    requests: Sequence[RenderedRequest],
    sizes: set[int],
    layout: CacheLayout,
    orders: Orders,
) -> tuple[dict[int, Bounds], int]:
    """Return each request's bounds, and the most bytes that unlimited memory fills."""
    found: dict[int, Bounds] = {}
    most = 0
    for order in orders:
        bounds, filled = find_bounds([requests[i] for i in order], sizes, layout)
        found |= zip(order, bounds, strict=True)
        most = max(most, filled)
    return found, most


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

    def replay(
        self, spec: StrategySpec, traffic: Traffic, progress: Progress
    ) -> dict[int, Outcome]:
        """Return the outcomes by number, in the order of the plans."""
        requests = traffic.requests[spec.rules]
        if self.live is not None and traffic.users is not None:
            schedule = traffic.schedule()
            strategy = spec.make(self.layout)
            users = self.live.users(strategy, requests, schedule, progress)
            return {own.number: own.outcome for own in users.run()}
        outcomes: dict[int, Outcome] = {}
        for order in traffic.orders:
            replayer = self.replayer(spec, progress)
            outcomes |= {number: replayer.replay(requests[number]) for number in order}
        return outcomes

    def steps(self, traffic: Traffic, rules: Rules) -> int:
        """Count the tokens that a replay reports; only users decode answers."""
        decodes = self.live is not None and traffic.users is not None
        return sum(
            len(own.prompt) + (len(own.answer) if decodes else 0)
            for own in traffic.requests[rules]
        )


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
    bounds: Bounds, capacity: int | None, costs: CostModel | None
) -> dict[str, float | None]:
    """Return the bounds of one request, in tokens and in seconds.

    Without a capacity, as of an endpoint, those for a limited memory are missing.
    """
    tokens = bounds.at(max(bounds.optimal) if capacity is None else capacity)
    if capacity is None:
        tokens |= dict.fromkeys({"optimal", PLACEMENT} & set(tokens))
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
        "answer_tokens": len(request.answer),
        "arrived_s": outcome.arrived_s,
        "total_s": outcome.total_s,
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
