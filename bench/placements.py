"""Compares placements of checkpoints: ``python -m bench.placements [FOLDER]``.

Simulates the default placement and those of other projects on the recorded traces, and
on the hashed traces in FOLDER, at several capacities, with the layouts of models that
people run. All places are evicted in one way. Exits with 1 if a placement of another
project reuses more than the default by over half a point of all prompt tokens.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mlxlab.analysis.sweep import Sweep, sweep
from mlxlab.models.geometry import known_layout
from mlxlab.models.layout import CacheLayout
from mlxlab.replay.bounds import PLACEMENT
from mlxlab.replay.specs import parse_specs
from mlxlab.sizes import format_size
from mlxlab.strategies.base import CAPACITY
from mlxlab.traces.bundled import bundled_traces

MODELS = ("Qwen3-Coder-Next", "Qwen3.5-27B", "gpt-oss-20b", "gemma-3-27b")
CAPACITIES = (1 << 30, CAPACITY, 16 << 30)
OURS = "paged"
PEERS = (
    "omlx",
    "llama.cpp",
    "ollama",
    "lm-studio",
    "rapid-mlx",
    "vllm",
    "sglang",
    "mlx-lm",
)
OTHERS = ("checkpoints=every2048", "checkpoints=answer", "share=50")
MOST_BEHIND = 0.005

_CAPTION = "reused; of the best placement; of checkpoints anywhere; checkpoints in GiB"


@dataclass(frozen=True, slots=True)
class Traffic:
    """Traces, and how many of them reach one cache at a time."""

    name: str
    traces: tuple[str, ...]
    users: tuple[int, ...]


def main() -> None:
    """Simulate, print tables, and exit with 1 if the default is behind."""
    parser = ArgumentParser(prog="python -m bench.placements")
    parser.add_argument(
        "folder", nargs="?", help="read hashed traces from this folder too"
    )
    parser.add_argument(
        "--results", type=Path, metavar="FOLDER", help="keep results, and go on there"
    )
    parser.add_argument("--models", default=",".join(MODELS), help="layouts, by model")
    arguments = parser.parse_args()
    traffic = [Traffic("recorded", tuple(bundled_traces()), (1, 4))]
    if arguments.folder:
        traffic.append(Traffic("hashed", (arguments.folder,), (1, 8)))
    console = Console(width=120)
    behind = []
    for own in traffic:
        for model in arguments.models.split(","):
            swept = simulate(own, known_layout(model), arguments.results)
            for users in own.users:
                console.print(tabulate(swept, users, f"{own.name}, {model}"))
                behind += [
                    f"{own.name}, {model}, users: {users}: {line}"
                    for line in compare(swept, users)
                ]
    console.print(*behind or ["The default is behind no other project."], sep="\n")
    sys.exit(bool(behind))


def simulate(traffic: Traffic, layout: CacheLayout, results: Path | None) -> Sweep:
    """Sweep all placements at the capacities that hold a checkpoint."""
    given = [*(f"checkpoints={peer}" for peer in PEERS), *OTHERS]
    given += ["windows=tokens"] if layout.windows else []
    specs = parse_specs([OURS, *(f"{OURS}:{parameters}" for parameters in given)])
    share = specs[0].make(layout).share
    return sweep(
        traffic.traces,
        specs,
        capacities=[
            size
            for size in CAPACITIES
            if size * share // 100 >= layout.checkpoint_bytes()
        ],
        users=traffic.users,
        layout=layout,
        folder=results,
        progress=False,
    )


def tabulate(swept: Sweep, users: int, title: str) -> Table:
    """Lay out one row per placement and bound, and one group per capacity."""
    table = Table(
        "placement", box=SIMPLE_HEAD, title=f"{title}, users: {users}", caption=_CAPTION
    )
    rows = _rows(swept, users)
    sizes = list(rows.capacity.unique())
    for size in sizes:
        table.add_column(format_size(size), justify="right")
    for name, own in rows.groupby("strategy", sort=False):
        table.add_row(str(name).removeprefix(f"{OURS}:"), *map(_cell, own.itertuples()))
    bounds = swept.bounds[swept.bounds.users == users]
    for name in (PLACEMENT, "optimal"):
        most = bounds[bounds.bound == name].set_index("memory").reused
        table.add_row(f"bound {name}", *(f"{most[size]:.1%}" for size in sizes))
    most = bounds[bounds.bound == "unlimited"].reused
    table.add_row("bound unlimited", *(f"{most.iloc[0]:.1%}" for _ in sizes))
    return table


def compare(swept: Sweep, users: int) -> Iterator[str]:
    """Yield a line for each other project's placement that reuses clearly more."""
    for size, rows in _rows(swept, users).groupby("capacity"):
        reused = rows.set_index("strategy").reused
        for peer in PEERS:
            ahead = reused[f"{OURS}:checkpoints={peer}"] - reused[OURS]
            if ahead > MOST_BEHIND:
                memory = format_size(int(str(size)))
                yield f"{peer} is {100 * ahead:.1f} points ahead at {memory}"


def _rows(swept: Sweep, users: int) -> pd.DataFrame:
    summary = swept.summary()
    return summary[summary.users == users]


def _cell(row: Any) -> str:
    shares = (row.reused, row.of_placement, row.of_optimal)
    held = row.checkpoint_bytes / 2**30
    return " ".join([*(f"{share:6.1%}" for share in shares), f"{held:5.2f}"])


if __name__ == "__main__":
    main()
