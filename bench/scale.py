"""Measures how long much traffic takes: ``python -m bench.scale FOLDER``.

FOLDER holds hashed traces. First all exact strategies and the bounds are simulated with
interleaved sessions, on one process per core. Then the strategies alone run over one
and over four times the traffic, to see whether memory grows with it. (The optimal bound
needs more memory, because it has to know all requests.) Exits with 1 if a target is
missed.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path
from time import perf_counter

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mlxlab.analysis.sweep import sweep
from mlxlab.models.geometry import known_layout
from mlxlab.replay.simulator import Simulator
from mlxlab.replay.specs import EXACT_SPECS, parse_specs
from mlxlab.replay.workload import HashedSource, Workload
from mlxlab.traces.hashed.trace import HashedTrace
from mlxlab.traces.open import open_traces

USERS = 8
CAPACITY = 16 << 30
LAYOUT = known_layout("Qwen3-Coder-30B-A3B")
COPIES = 4
MOST_S = 20.0
MOST_GROWTH = 1.2


def main() -> None:
    """Measure, print a table, and exit with 1 if a target is missed."""
    parser = ArgumentParser(prog="python -m bench.scale")
    parser.add_argument("folder", type=Path, help="read hashed traces from this folder")
    parser.add_argument(
        "--copies", type=int, help="print the peak memory of this many copies"
    )
    arguments = parser.parse_args()
    if arguments.copies:
        print(peak_mib(arguments.folder, arguments.copies))
        return
    seconds, tokens = simulate(arguments.folder)
    small, large = (measure_mib(arguments.folder, n) for n in (1, COPIES))
    table = Table(box=SIMPLE_HEAD)
    for heading in ("measurement", "found", "target", "ok"):
        table.add_column(heading)
    fine = [seconds <= MOST_S, large / small <= MOST_GROWTH]
    table.add_row(
        f"all exact strategies and bounds, {tokens / 1e6:,.0f} M tokens",
        f"{seconds:.1f} s",
        f"<= {MOST_S:.0f} s",
        "yes" if fine[0] else "NO",
    )
    table.add_row(
        f"memory over {COPIES} times the traffic",
        f"{small:.0f} -> {large:.0f} MiB",
        f"<= {MOST_GROWTH:.0%}",
        "yes" if fine[1] else "NO",
    )
    Console(width=100).print(table)
    sys.exit(not all(fine))


def simulate(folder: Path) -> tuple[float, int]:
    """Return the seconds of a sweep, process starts included, and its tokens."""
    begun = perf_counter()
    swept = sweep(
        folder,
        capacities=[CAPACITY],
        users=[USERS],
        layout=LAYOUT,
    )
    return perf_counter() - begun, int(swept.requests.prompt_tokens.iloc[0])


def measure_mib(folder: Path, copies: int) -> float:
    """Return the peak memory of a process that simulates all exact strategies."""
    command = [sys.executable, "-m", "bench.scale", str(folder), "--copies"]
    done = subprocess.run(
        [*command, str(copies)], check=True, capture_output=True, text=True
    )
    return float(done.stdout)


def peak_mib(folder: Path, copies: int) -> float:
    """Return the peak memory of this process, simulating all exact strategies."""
    traces = [t for t in open_traces([folder]) if isinstance(t, HashedTrace)]
    workload = Workload([HashedSource(t) for t in traces * copies], USERS)
    replayers = [
        Simulator(spec.make(LAYOUT, unit=workload.unit))
        for spec in parse_specs(EXACT_SPECS, capacity=CAPACITY)
    ]
    for request in workload:
        for replayer in replayers:
            replayer.replay(request)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    main()
