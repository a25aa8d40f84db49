"""Predicts what users wait for on this machine, and checks it with the real engine.

    python -m bench.clock [--trace TRACE ...] [--users 1,2,4] [--think-times 1]
    python -m bench.clock --plan 2s [--trace TRACE ...]
    python -m bench.clock --speed TRACE ...

Calibrate first, on a quiet machine: ``mlxlab calibrate --force``. With ``--plan`` the
engine serves as many users as ``mlxlab plan`` says for that limit, and one more. With
``--speed`` nothing is computed: hashed traces are simulated, on made-up seconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import date
from time import process_time

import numpy as np
import pandas as pd

from mlxlab.analysis.capacity.check import check_clock, check_plan
from mlxlab.cli.options import known_costs, parse_seconds
from mlxlab.errors import ConfigError
from mlxlab.models.folder import find_model
from mlxlab.models.layout import CacheLayout
from mlxlab.replay.clock.arrivals import Sessions
from mlxlab.replay.clock.server import ClockedServer
from mlxlab.replay.cost_model import CHUNK, CostModel, Machine
from mlxlab.replay.decoding_costs import Decoding
from mlxlab.replay.specs import StrategySpec
from mlxlab.replay.workload import HashedSource
from mlxlab.sizes import read_size
from mlxlab.traces.hashed.trace import HashedTrace
from mlxlab.traces.open import open_recorded, open_traces

__all__ = ["main", "measure_speed"]

#: One for each user at least.
_TRACES = ("sessions", "tasks", "loop", "subagents")
_LAYOUT = CacheLayout.plain(96 << 10)  # Qwen3-Coder-30B-A3B
_MEMORY = read_size("16GiB", "memory")
_STRATEGIES = ("none", "prefix", "paged")
#: About those of a 30B model of which 3B are active, on a GPU.
COSTS = CostModel(
    model="",
    machine=Machine(system="", processor="", mlx="", chunk=CHUNK),
    device="",
    blas="",
    day=date(2026, 12, 1),
    prefill=(2e-3, 1e-3, 1e-4, 1e-9, 1e-9, 1e-8),
    restore=(1e-3, 1e-7),
    points=(),
    decode=Decoding(
        step=0.02,
        row=0.001,
        token=1e-7,
        padded=2e-7,
        join=(0.01, 1e-7),
        leave=(0.01, 1e-7),
    ),
)


def measure_speed(
    traces: Sequence[HashedTrace], users: Sequence[int] = (1, 8, 32)
) -> pd.DataFrame:
    """Simulate traces on the clock.

    Returns:
        One row per strategy and number of users. Columns: ``strategy``, ``users``,
        ``requests``, and ``per_s``: requests in a second of one core.
    """
    sources = [HashedSource(trace) for trace in traces]
    rows = []
    for strategy in _STRATEGIES:
        for number in users:
            sessions = Sessions(sources, number)
            spec = StrategySpec.parse(strategy, capacity=_MEMORY)
            server = ClockedServer(spec.make(_LAYOUT, unit=sources[0].unit), COSTS)
            started = process_time()
            server.serve(sessions.requests, sessions.schedule())
            taken_s = process_time() - started
            served = len(sessions.requests)
            row = {"strategy": strategy, "users": number, "requests": served}
            rows.append({**row, "per_s": served / taken_s})
    return pd.DataFrame(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print predicted and measured seconds, or the speed of the clock."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", nargs="+", default=_TRACES)
    parser.add_argument("--users", default="1,2,4")
    parser.add_argument("--think-times", type=float, default=1.0)
    parser.add_argument("--plan", metavar="SECONDS")
    parser.add_argument("--speed", nargs="+", metavar="TRACE")
    given = parser.parse_args(arguments)
    if given.speed:
        hashed = [t for t in open_traces(given.speed) if isinstance(t, HashedTrace)]
        print(
            measure_speed(hashed).to_string(index=False, float_format="{:,.0f}".format)
        )
        return
    folder = find_model()
    costs = known_costs(folder)
    if costs is None:
        raise ConfigError("no calibration; run: mlxlab calibrate")
    traces = open_recorded(given.trace)
    if given.plan:
        limit = parse_seconds(given.plan, "--plan")
        found = check_plan(traces, costs, limit, model=folder)
    else:
        found = check_clock(
            traces,
            costs,
            users=[int(n) for n in given.users.split(",")],
            think_times=given.think_times,
            model=folder,
        )
    off = found.measured.where(found.measured > 0, np.nan)
    found = found.assign(error=(found.predicted / off - 1).map("{:+.1%}".format))
    print(found.to_string(index=False, float_format="{:,.3f}".format))


if __name__ == "__main__":
    main()
