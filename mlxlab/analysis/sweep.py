"""Simulates strategies by capacities by users, over any number of requests.

Results are totals; :func:`mlxlab.compare` returns single requests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import chain, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pandas as pd

from mlxlab.analysis.jobs import Row, Task, run_tasks
from mlxlab.analysis.result import Result, describe_sizes, describe_traces
from mlxlab.analysis.tables import (
    Forms,
    format_bounds,
    format_columns,
    list_records,
    read_records,
)
from mlxlab.models.folder import BUNDLED, ModelFolder, find_model
from mlxlab.models.geometry import LayoutLike, read_layout
from mlxlab.models.layout import CacheLayout
from mlxlab.rendering.renderer import Renderer
from mlxlab.rendering.rules import parse_rules
from mlxlab.replay.bounds import BOUNDS, PLACEMENT, find_bounds, tabulate_bounds
from mlxlab.replay.cost_model import CostModel
from mlxlab.replay.manifest import describe_run
from mlxlab.replay.simulator import Simulator
from mlxlab.replay.specs import EXACT_SPECS, Strategies, StrategySpec, parse_specs
from mlxlab.replay.uses import describe_missing
from mlxlab.replay.workload import Sources, Workload, open_sources
from mlxlab.sizes import Size, format_size, read_size
from mlxlab.strategies import Strategy
from mlxlab.strategies.base import CAPACITY
from mlxlab.traces.open import Traces, open_traces

if TYPE_CHECKING:
    from mlxlab.analysis.plots.picture import Picture

__all__ = ["Sweep", "sweep"]

Rules: TypeAlias = tuple[str, ...]

_Data: TypeAlias = tuple[Sources, Sequence[StrategySpec], CacheLayout, CostModel | None]
"""Sources and strategies under the same rules, the model's layout, and the costs."""

_FORMS: Forms = {
    "strategy": ("strategy", str),
    "users": ("users", str),
    "capacity": ("capacity", lambda size: format_size(int(size))),
    "reused": ("reused", "{:.1%}".format),
    "of_unlimited": ("of un-\nlimited", "{:.1%}".format),
    "of_optimal": ("of\noptimal", "{:.1%}".format),
    "of_position_independent": ("of any\nposition", "{:.1%}".format),
    "of_placement": ("of best\nplacement", "{:.1%}".format),
    "from_disk": ("from\ndisk", "{:.1%}".format),
    "ttft_mean_s": ("TTFT\nest. s", "{:.2f}".format),
    "stored_gib": ("stored\nGiB", "{:.2f}".format),
    "checkpoints_gib": ("checkpoints\nGiB", "{:.2f}".format),
    "evicted_m": ("evicted\nM", "{:.1f}".format),
}


@dataclass(frozen=True, eq=False, repr=False)
class Sweep(Result):
    """The result of :func:`mlxlab.sweep`.

    Attributes:
        requests: totals over all requests, one row per strategy, capacity and number of
            users. Columns: ``strategy`` (with its rules behind ``@`` where not all
            apply), ``rules``, ``users``, ``capacity`` (bytes), ``requests``,
            ``prompt_tokens``, ``reused_tokens``, ``disk_tokens`` (of them from
            disk), ``evicted`` (tokens), ``stored_bytes``
            (peak), ``checkpoint_bytes`` (peak, part of them), and with a cost model
            ``ttft_s`` (sum of the seconds to first tokens).
        bounds: one row per bound and number of users (column ``users``), and per
            capacity for ``optimal`` and ``placement``.
    """

    kind = "sweep"

    @property
    def title(self) -> str:
        traces = describe_traces(self.manifest)
        requests, tokens = self.requests[["requests", "prompt_tokens"]].iloc[0]
        kept = describe_sizes(self.manifest)
        return (
            f"{traces}: {requests:,} requests, {tokens:,} tokens of {kept}, simulated"
        )

    def summary(self) -> pd.DataFrame:
        """Return one row per strategy, number of users and capacity.

        Columns: ``strategy``, ``users``, ``capacity`` (bytes), ``reused`` (share of all
        prompt tokens), ``of_unlimited``, ``of_optimal``, ``of_position_independent``,
        ``of_placement`` (that share, relative to the bound), ``from_disk`` (share of
        all prompt tokens; only with a disk that was used), ``ttft_mean_s``
        (estimated), ``stored_bytes`` (peak), ``checkpoint_bytes`` (peak, part of them;
        only for a model that resumes at checkpoints), ``evicted`` (tokens). Columns
        without data are dropped.
        """
        rows = self.requests
        reused = rows.reused_tokens / rows.prompt_tokens
        table = rows[["strategy", "users", "capacity"]].assign(reused=reused)
        for name in (*BOUNDS, PLACEMENT):
            own = self.bounds[self.bounds.bound == name]
            limited = name in ("optimal", PLACEMENT)
            most = own.set_index(["users", "memory"] if limited else ["users"]).reused
            index = pd.MultiIndex.from_frame(rows[["users", "capacity"]])
            at = index if limited else index.get_level_values("users")
            table[f"of_{name}"] = reused / most.reindex(at).to_numpy()
        if "ttft_s" in rows:
            table["ttft_mean_s"] = rows.ttft_s / rows.requests
        if "disk_tokens" in rows and rows.disk_tokens.any():
            table["from_disk"] = rows.disk_tokens / rows.prompt_tokens
        table["stored_bytes"] = rows.stored_bytes
        if rows.checkpoint_bytes.any():
            table["checkpoint_bytes"] = rows.checkpoint_bytes
        table["evicted"] = rows.evicted
        return table.dropna(axis="columns", how="all")

    def tables(self) -> list[pd.DataFrame]:
        summary = self.summary()
        # A strategy that stores nothing is the same at every capacity.
        same = summary.duplicated(["strategy", "users"])
        shown = summary[(summary.stored_bytes > 0) | ~same]
        shown = shown.assign(
            capacity=shown.capacity.where(shown.stored_bytes > 0),
            stored_gib=shown.stored_bytes / 2**30,
            evicted_m=shown.evicted / 1e6,
        )
        if "checkpoint_bytes" in shown:
            shown = shown.assign(checkpoints_gib=shown.checkpoint_bytes / 2**30)
        if shown.users.nunique() == 1:
            shown = shown.drop(columns="users")
        return [pd.DataFrame(format_columns(shown, _FORMS)), format_bounds(self.bounds)]

    def plot(self) -> Picture:
        """Draw the reused share over memory, one panel per number of users."""
        from mlxlab.analysis.plots import plot_capacity

        return plot_capacity(self)


def sweep(
    traces: Traces,
    strategies: Strategies = EXACT_SPECS,
    *,
    capacities: Sequence[Size] = (CAPACITY,),
    users: Sequence[int] = (1,),
    model: str | ModelFolder = BUNDLED,
    layout: LayoutLike | None = None,
    rules: str = "all",
    costs: CostModel | None = None,
    folder: str | Path | None = None,
    scheduler: str | None = None,
    progress: bool = True,
) -> Sweep:
    """Simulate every strategy at every capacity with every number of users.

    Recorded traces are rendered for ``model``; no weights are loaded. A script has to
    call this under ``if __name__ == "__main__"``, because it starts processes.

    Args:
        traces: names, paths or opened traces; either recorded or hashed ones.
        strategies: see :func:`mlxlab.replay.specs.parse_specs`. Hashed traces allow
            exact strategies only, under the rules that the hashes were made with.
        capacities: bytes or sizes such as ``16GiB``, for strategies whose parameters
            name none.
        users: how many traces are replayed at the same time into one cache.
        model: name, folder or hub repository.
        layout: what a model keeps for its tokens, see
            :func:`mlxlab.models.geometry.read_layout`; None for this model's.
        rules: default rules, for strategies without ``@rules``.
        costs: estimates seconds, see :func:`mlxlab.calibrate`; None for no seconds.
        folder: keeps the results as Parquet files, one per task. A stopped sweep
            continues from them.
        scheduler: see :func:`mlxlab.analysis.jobs.run_tasks`.
        progress: whether to show bars.

    Raises:
        MlxlabError: an unknown name, an unreadable file, or no cluster.
        KeyboardInterrupt: stopped by the user; finished tasks stay in ``folder``.
    """
    opened = open_traces(traces)
    model = find_model(model) if isinstance(model, str) else model
    kept = model.layout if layout is None else read_layout(layout, "layout")
    sizes = [read_size(capacity, "capacities") for capacity in capacities]
    specs = parse_specs(strategies, rules)
    for spec, size in product(specs, sizes):
        replace(spec, capacity=size).make(kept)  # refused before any work
    every = dict.fromkeys([parse_rules(rules), *(c.rules for c in specs)])
    renderers = {own: Renderer(model, own) for own in every}
    data = {
        own: open_sources(opened, renderer, progress)
        for own, renderer in renderers.items()
    }
    rows = run_tasks(
        _run,
        list(_tasks(specs, data, sizes, users, kept, costs)),
        {
            own: (sources, [spec for spec in specs if spec.rules == own], kept, costs)
            for own, sources in data.items()
        },
        folder=Path(folder) if folder is not None else None,
        scheduler=scheduler,
        progress=progress,
    )
    notes = sum((r.notes for r in renderers.values()), Counter())
    manifest = describe_run(opened, model, specs, notes, {}, layout=kept, costs=costs)
    manifest["warnings"] = describe_missing(
        Workload(next(iter(data.values()))), [spec.evict for spec in specs]
    )
    return Sweep(
        requests=_frame([row for row in rows if "strategy" in row]),
        bounds=_frame([row for row in rows if "bound" in row]),
        manifest=manifest,
    )


def _frame(rows: Sequence[Row]) -> pd.DataFrame:
    """Give each column one type, whether rows were computed or read from a file."""
    real = {"reused", *(name for name in rows[0] if name.endswith("_s"))}
    types = dict.fromkeys(rows[0], "Int64") | dict.fromkeys(real, "float64")
    types |= dict.fromkeys(("strategy", "rules", "bound"), "str")
    return read_records(rows, {name: types[name] for name in rows[0]})


def _tasks(
    specs: Sequence[StrategySpec],
    data: Mapping[Rules, Sources],
    capacities: Sequence[int],
    users: Sequence[int],
    layout: CacheLayout,
    costs: CostModel | None,
) -> Iterator[Task]:
    """List all tasks; bounds are found under the first rules."""
    first = next(iter(data))
    unit = Workload(data[first]).unit
    made = {
        spec: [
            replace(spec, capacity=size).make(layout, unit=unit) for size in capacities
        ]
        for spec in specs
    }
    sizes = {c: sorted({s.capacity for s in own}) for c, own in made.items()}
    every = sorted(set(chain(*sizes.values())))
    names = [*BOUNDS, PLACEMENT] if layout.checkpoint_bytes() else [*BOUNDS]
    bounds = {"bounds": names, "capacities": every}
    asked: list[tuple[Rules, dict[str, Any]]] = [
        (first, bounds),
        *(
            (
                spec.rules,
                {
                    "strategy": spec.strategy,
                    "parameters": [dict(strategy.parameters) for strategy in own],
                    "capacities": sizes[spec],
                },
            )
            for spec, own in made.items()
        ),
    ]
    for number in users:
        for rules, own in asked:
            known = {
                "version": version("mlxlab"),
                "sources": [source.digest for source in data[rules]],
                "rules": list(rules),
                "layout": [asdict(part) for part in layout.layers],
                "costs": [*costs.prefill, *costs.restore, costs.load]
                if costs
                else None,
            }
            yield Task({**known, **own, "users": number}, rules)


def _run(task: Task, data: _Data) -> list[Row]:
    """Run one task, in any process."""
    asked = task.asked
    sources, specs, layout, costs = data
    workload = Workload(sources, asked["users"])
    users = {"users": asked["users"]}
    if "bounds" in asked:
        bounds = tabulate_bounds(
            *find_bounds(workload, asked["capacities"], layout), costs
        )
        return [{**users, **row} for row in list_records(bounds)]
    spec = next(own for own in specs if own.strategy == asked["strategy"])
    strategies = [
        replace(spec, capacity=capacity).make(layout, unit=workload.unit)
        for capacity in asked["capacities"]
    ]
    name = {"strategy": spec.name, "rules": spec.rules_label, **users}
    return [{**name, **row} for row in _simulate(strategies, workload, costs)]


def _simulate(
    strategies: Sequence[Strategy], workload: Workload, costs: CostModel | None
) -> Iterator[Row]:
    """Add up the outcomes of strategies in one pass: requests may be slow to make."""
    replayers = [Simulator(strategy, costs=costs) for strategy in strategies]
    totals: list[dict[str, Any]] = [Counter() for _ in strategies]
    for request in workload:
        for replayer, total in zip(replayers, totals, strict=True):
            outcome = replayer.replay(request)
            total["requests"] += 1
            total["prompt_tokens"] += request.tokens
            total["reused_tokens"] += outcome.reused_tokens
            total["disk_tokens"] += outcome.disk_tokens
            total["evicted"] += outcome.evicted
            total["stored_bytes"] = max(total["stored_bytes"], outcome.stored_bytes)
            held = replayer.strategy.stored_checkpoints
            held *= replayer.strategy.checkpoint_bytes
            total["checkpoint_bytes"] = max(total["checkpoint_bytes"], held)
            if outcome.ttft_s is not None:
                total["ttft_s"] += outcome.ttft_s
    for strategy, total in zip(strategies, totals, strict=True):
        yield {"capacity": strategy.capacity, **total}
