"""Compares the simulated clock, and what ``plan`` says, with the real engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import pandas as pd

from mlxlab.analysis.capacity.run import plan
from mlxlab.errors import ConfigError
from mlxlab.models.folder import BUNDLED, ModelFolder, find_model
from mlxlab.rendering.renderer import Renderer
from mlxlab.replay.clock.arrivals import Sessions
from mlxlab.replay.clock.server import ClockedServer
from mlxlab.replay.cost_model import CostModel
from mlxlab.replay.live import LiveModel, live_model
from mlxlab.replay.specs import StrategySpec
from mlxlab.replay.workload import Sources, open_sources
from mlxlab.traces import Trace

__all__ = ["check_clock", "check_plan"]


def check_clock(
    traces: Sequence[Trace],
    costs: CostModel,
    strategy: str = "paged",
    *,
    users: Sequence[int] = (1, 2, 4),
    think_times: float = 1.0,
    rules: str = "none",
    model: str | ModelFolder = BUNDLED,
) -> pd.DataFrame:
    """Let the same users ask a simulated server and the real engine.

    Args:
        traces: recorded traces; as many run at once as there are users.
        costs: this machine's calibration.
        strategy: ``name[:key=value,...][@rules]``.
        users: numbers of users.
        think_times: factor on the recorded seconds of thinking.
        rules: default rules.
        model: name, folder or hub repository.

    Returns:
        One row per number of users and measure (``ttft_p50_s``, ``ttft_p90_s``,
        ``tokens_per_s`` of answers, ``reused`` tokens), in columns ``predicted`` and
        ``measured``.

    Raises:
        ConfigError: more users than traces.
        MlxlabError: a trace or model that cannot be read, or a failed answer.
    """
    if max(users) > len(traces):
        raise ConfigError(
            f"{max(users)} users: give as many traces, {len(traces)} are too few"
        )
    folder = find_model(model) if isinstance(model, str) else model
    spec = StrategySpec.parse(strategy, rules)
    sources = open_sources(traces, Renderer(folder, spec.rules), False)
    rows: list[dict[str, Any]] = []
    with live_model(folder, chunk=costs.machine.chunk) as live:
        for number in users:
            found = _ask(live, sources, costs, spec, number, think_times)
            for measure, predicted, measured in found:
                row = {"users": number, "measure": measure}
                rows.append({**row, "predicted": predicted, "measured": measured})
    return pd.DataFrame(rows)


def check_plan(
    traces: Sequence[Trace],
    costs: CostModel,
    ttft: float,
    strategy: str = "paged",
    *,
    model: str | ModelFolder = BUNDLED,
) -> pd.DataFrame:
    """Let the real engine serve as many users as ``plan`` says, and one more.

    Args:
        traces: recorded traces; more users than traces are not tried.
        costs: this machine's calibration.
        ttft: limit of the seconds to the first token, for 90 % of the requests.
        strategy: ``name[:key=value,...][@rules]``.
        model: name, folder or hub repository.

    Returns:
        One row per number of users. Columns: ``users``, ``limit_s``, and the 90 %
        quantile of the seconds to the first token, ``predicted`` and ``measured``.

    Raises:
        MlxlabError: see :func:`check_clock`.
    """
    most = len(traces)
    planned = plan(
        traces,
        strategy,
        ttft=ttft,
        most=most,
        model=model,
        costs=costs,
        progress=False,
    )
    carries = planned.carries()
    users = [n for n in (carries, carries + 1) if 1 <= n <= most]
    found = check_clock(traces, costs, strategy, users=users, rules="all", model=model)
    found = found[found.measure == "ttft_p90_s"].drop(columns="measure")
    found.insert(1, "limit_s", ttft)
    return found.reset_index(drop=True)


def _ask(
    live: LiveModel,
    sources: Sources,
    costs: CostModel,
    spec: StrategySpec,
    users: int,
    think_times: float,
) -> Iterator[tuple[str, float, float]]:
    """Yield measures, as predicted and as measured."""
    sessions = Sessions(sources, users)
    layout = live.folder.layout
    server = ClockedServer(spec.make(layout), costs)
    told = server.serve(sessions.requests, sessions.schedule(think_times))
    schedule = sessions.schedule(think_times)
    asked = live.users(spec.make(layout), sessions.requests, schedule).run()
    found = [own.outcome for own in asked]
    waits = [own.ttft_s for own in found if own.ttft_s is not None]
    for share in (50, 90):
        predicted = told.quantile(share / 100, attrgetter("ttft_s"))
        yield f"ttft_p{share}_s", predicted, float(np.quantile(waits, share / 100))
    end_s = max((own.arrived_s or 0.0) + (own.total_s or 0.0) for own in found)
    tokens = sum(len(own.request.answer) for own in asked)
    yield "tokens_per_s", told.tokens_per_s, tokens / end_s
    predicted = sum(own.reused_tokens for own in told.timings)
    yield "reused", predicted, sum(own.reused_tokens for own in found)
