"""Strategies by capacities by users, over any amount of traffic, beside ceilings.

Totals only: what happens to single requests is :func:`mlxlab.compare`'s to tell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd

from mlxlab.analysis.jobs import Row, Task, run_tasks
from mlxlab.analysis.tables import (
    CEILING_NAMES,
    Forms,
    format_ceilings,
    format_columns,
    name_traces,
    spec_names,
)
from mlxlab.models.folder import BUNDLED, ModelFolder, find_model
from mlxlab.rendering.renderer import Renderer
from mlxlab.rendering.rules import parse_rules
from mlxlab.replay.bounds import CEILINGS, INFINITE, Foresight, any_position
from mlxlab.replay.cost_model import CostModel
from mlxlab.replay.manifest import describe_run
from mlxlab.replay.simulator import Simulator
from mlxlab.replay.sources import AnyTrace, Sources, open_sources
from mlxlab.replay.specs import EXACT_SPECS, StrategySpec, label_rules, parse_specs
from mlxlab.replay.workload import Workload
from mlxlab.sizes import format_size
from mlxlab.strategies import Strategy
from mlxlab.strategies.base import CAPACITY

__all__ = ["format_sweep", "format_sweep_ceilings", "sweep", "sweep_title"]

_FORMS: Forms = {
    "strategy": ("strategy", str),
    "users": ("users", str),
    "capacity": ("capacity", str),
    "reused": ("reused", "{:.1%}".format),
    "infinite": ("of in-\nfinite", "{:.1%}".format),
    "finite": ("of\nfinite", "{:.1%}".format),
    "any_position": ("of any\nplace", "{:.1%}".format),
    "ttft_s": ("TTFT\nest. s", "{:.2f}".format),
    "stored_gib": ("stored\nGiB", "{:.2f}".format),
    "evicted_m": ("evicted\nM", "{:.1f}".format),
}

Rules: TypeAlias = tuple[str, ...]


def sweep(
    traces: AnyTrace | Sequence[AnyTrace],
    *,
    strategies: str = EXACT_SPECS,
    capacities: Sequence[int] = (CAPACITY,),
    users: Sequence[int] = (1,),
    model: str | ModelFolder = BUNDLED,
    token_bytes: int | None = None,
    rules: str = "all",
    costs: CostModel | None = None,
    folder: str | Path | None = None,
    scheduler: str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Simulate every strategy at every capacity with every number of users.

    Traces that are not hashed are rendered for ``model``. Nothing is computed, so no
    weights are needed. A script that calls this has to do so under ``if __name__ ==
    "__main__"``, because processes are started.

    Args:
        traces: recorded ones or hashed ones, not both.
        strategies: see :func:`mlxlab.replay.specs.parse_specs`; exact ones
            only for hashed traces, under whatever rules they were hashed.
        capacities: bytes, for strategies whose parameters name none.
        users: how many traces are replayed at the same time into one cache.
        model: name, folder or hub repository.
        token_bytes: keys and values of one token, if other than the model's.
        rules: for strategies that name none of their own.
        costs: what seconds are estimated by, see
            :func:`mlxlab.analysis.calibrate.calibrate`; without, there are none.
        folder: keeps what was found as Parquet, a file for each task; a sweep that was
            stopped goes on from there.
        scheduler: see :func:`mlxlab.analysis.jobs.run_tasks`.
        progress: whether to show bars.

    Returns:
        A row per strategy, capacity and number of users: ``strategy``, ``rules``,
        ``users``, ``capacity`` (bytes), ``requests``, ``prompt_tokens``,
        ``reused_tokens``, ``evicted`` (tokens), ``stored_bytes`` (peak), and the
        ceilings under ``rules``: ``infinite``, ``finite`` and ``any_position`` in
        tokens, the last one missing where hashes do not tell, of prompts of
        ``ceiling_tokens``. With ``costs``, ``ttft_s``, ``infinite_s``, ``finite_s``
        and ``any_position_s``: seconds to first tokens, in sum. ``attrs["manifest"]``
        as in :func:`mlxlab.compare`.

    Raises:
        MlxlabError: anything unknown or unreadable, or no cluster.
        KeyboardInterrupt: stopped by hand; what was finished is in ``folder``.
    """
    traces = [traces] if isinstance(traces, AnyTrace) else list(traces)
    model = find_model(model) if isinstance(model, str) else model
    token_bytes = token_bytes or model.token_bytes
    specs = parse_specs(strategies, rules)
    every = dict.fromkeys([parse_rules(rules), *(c.rules for c in specs)])
    renderers = {own: Renderer(model, own) for own in every}
    data = {
        own: open_sources(traces, renderer, progress)
        for own, renderer in renderers.items()
    }
    tasks = list(_tasks(specs, data, capacities, users, token_bytes, costs))
    rows = run_tasks(
        _run,
        tasks,
        {own: (sources, costs) for own, sources in data.items()},
        folder=Path(folder) if folder is not None else None,
        scheduler=scheduler,
        progress=progress,
    )
    frame = _joined(pd.DataFrame(rows))
    notes = sum((r.notes for r in renderers.values()), Counter())
    frame.attrs["manifest"] = describe_run(
        traces, model, specs, notes, {}, token_bytes=token_bytes, costs=costs
    )
    return frame


def _tasks(
    specs: Sequence[StrategySpec],
    data: Mapping[Rules, Sources],
    capacities: Sequence[int],
    users: Sequence[int],
    token_bytes: int,
    costs: CostModel | None,
) -> Iterator[Task]:
    """All that is to be found out; ceilings under the rules that come first."""
    first = next(iter(data))
    unit = Workload(data[first]).unit
    made = {
        spec: [
            replace(spec, capacity=size).make(token_bytes, unit=unit)
            for size in capacities
        ]
        for spec in specs
    }
    sizes = {c: sorted({s.capacity for s in own}) for c, own in made.items()}
    every = sorted(set(chain(*sizes.values())))
    asked: list[tuple[Rules, dict[str, Any]]] = [
        (first, {"strategy": None, "capacities": every}),
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
                "token_bytes": token_bytes,
                "costs": [*costs.prefill, *costs.restore] if costs else None,
            }
            yield Task({**known, **own, "users": number}, rules)


def _run(task: Task, data: tuple[Sources, CostModel | None]) -> list[Row]:
    """Find out what a task asks, in whatever process."""
    what = task.what
    sources, costs = data
    workload = Workload(sources, what["users"])
    if what["strategy"] is None:
        found = _ceilings(workload, what["token_bytes"], what["capacities"], costs)
    else:
        specs = [
            StrategySpec.parse(what["strategy"], what["rules"], size)
            for size in what["capacities"]
        ]
        strategies = [
            spec.make(what["token_bytes"], unit=workload.unit) for spec in specs
        ]
        found = _simulated(strategies, workload, costs)
    rules = label_rules(tuple(what["rules"]))
    common = {"strategy": what["strategy"], "rules": rules, "users": what["users"]}
    return [{**common, **row} for row in found]


def _simulated(
    strategies: Sequence[Strategy], workload: Workload, costs: CostModel | None
) -> Iterator[Row]:
    """Totals of strategies, all in one pass, which may take long to make."""
    replayers = [Simulator(strategy, costs=costs) for strategy in strategies]
    totals: list[dict[str, Any]] = [Counter() for _ in strategies]
    for request in workload:
        for replayer, total in zip(replayers, totals, strict=True):
            outcome = replayer.replay(request)
            total["requests"] += 1
            total["prompt_tokens"] += request.tokens
            total["reused_tokens"] += outcome.reused_tokens
            total["evicted"] += outcome.evicted
            total["stored_bytes"] = max(total["stored_bytes"], outcome.stored_bytes)
            if outcome.ttft_s is not None:
                total["ttft_s"] += outcome.ttft_s
    for strategy, total in zip(strategies, totals, strict=True):
        yield {"capacity": strategy.capacity, **total}


def _ceilings(
    workload: Workload,
    token_bytes: int,
    capacities: Sequence[int],
    costs: CostModel | None,
) -> Iterator[Row]:
    """Totals of what could be reused, at each capacity."""
    foresight = Foresight(workload)
    infinite = list(foresight.reused(INFINITE))
    anywhere = any_position(workload)
    for size in capacities:
        finite = list(foresight.reused(size // token_bytes))
        row: dict[str, Any] = {
            "capacity": size,
            "ceiling_tokens": sum(foresight.tokens),
        }
        for name, reused in zip(CEILINGS, (infinite, finite, anywhere), strict=True):
            row[name] = None if reused is None else sum(reused)
            if costs and reused is not None:
                row[f"{name}_s"] = sum(map(costs.ttft_s, reused, foresight.tokens))
        yield row


def _joined(rows: pd.DataFrame) -> pd.DataFrame:
    """Strategies with the ceilings beside them."""
    keys = ["users", "capacity"]
    names = ("ceiling_tokens", *CEILINGS)
    own = [c for c in rows.columns if c.removesuffix("_s") in names]
    ceilings = rows[rows.strategy.isna()][[*keys, *own]]
    strategies = rows[rows.strategy.notna()].drop(columns=own)
    frame = strategies.merge(ceilings, on=keys, how="left")
    counted = set(frame.columns) - {"strategy", "rules"}
    return frame.astype({c: "Int64" for c in counted if not c.endswith("_s")})


def sweep_title(frame: pd.DataFrame) -> str:
    """One line on what was simulated."""
    manifest = frame.attrs["manifest"]
    traces = name_traces(manifest)
    requests, tokens = frame.requests.iloc[0], frame.prompt_tokens.iloc[0]
    size = format_size(manifest["model"]["token_bytes"])
    return f"{traces}: {requests:,} requests, {tokens:,} tokens of {size}, simulated"


def format_sweep(frame: pd.DataFrame) -> pd.DataFrame:
    """A sweep as text under short headings, shares of ceilings in place of tokens.

    What stores nothing has one row; columns that nothing is known of are left out.
    """
    same = frame.duplicated(["strategy", "rules", "users"])
    frame = frame[(frame.stored_bytes > 0) | ~same]
    reused = frame.reused_tokens / frame.prompt_tokens
    shares = {name: reused / (frame[name] / frame.ceiling_tokens) for name in CEILINGS}
    shown = frame.assign(
        strategy=spec_names(frame),
        capacity=frame.capacity.map(format_size).where(frame.stored_bytes > 0),
        stored_gib=frame.stored_bytes / 2**30,
        reused=reused,
        evicted_m=frame.evicted / 1e6,
        **shares,
    )
    if "ttft_s" in frame:
        shown["ttft_s"] = frame.ttft_s / frame.requests
    if frame.users.nunique() == 1:
        shown = shown.drop(columns="users")
    return pd.DataFrame(format_columns(shown.dropna(axis="columns", how="all"), _FORMS))


def format_sweep_ceilings(frame: pd.DataFrame) -> pd.DataFrame:
    """What is possible on the traffic of a sweep, as text under short headings."""
    rows = []
    for users, own in frame.groupby("users"):
        for name in CEILINGS:
            most = own.drop_duplicates("capacity" if name == "finite" else "users")
            for row in most[most[name].notna()].itertuples():
                reused = getattr(row, name)
                seconds = getattr(row, f"{name}_s", None)
                rows.append(
                    {
                        "possible": CEILING_NAMES[name],
                        "users": users,
                        "capacity": row.capacity if name == "finite" else None,
                        "reused": reused / row.ceiling_tokens,
                        "mean_s": None if seconds is None else seconds / row.requests,
                    }
                )
    return format_ceilings(pd.DataFrame(rows))
