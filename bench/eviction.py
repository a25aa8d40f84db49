"""Judges eviction policies on sessions that nothing was learned from.

``python -m bench.eviction FOLDER`` reads hashed sessions with times and stop reasons,
draws halves of them, lets policies learn from one half, and simulates ``paged`` on the
other: several users at once, each taking the next session when one ends. It prints the
reused share of prompt tokens under each policy and under Belady's MIN, which knows the
future and need not keep the newest, and how much of the distance from LRU to MIN each
policy closes.
"""

from __future__ import annotations

import json
import random
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from os import cpu_count
from pathlib import Path
from time import perf_counter

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from bench.priors import learn
from mlxlab.models.geometry import read_layout
from mlxlab.models.layout import CacheLayout
from mlxlab.replay.bounds import OptimalMemory
from mlxlab.replay.simulator import Simulator
from mlxlab.replay.specs import StrategySpec
from mlxlab.replay.workload import HashedSource, Workload
from mlxlab.sizes import format_size, read_size
from mlxlab.strategies.eviction import DEFAULT, EVICTIONS
from mlxlab.traces.hashed.trace import HashedTrace
from mlxlab.traces.open import open_traces

MODEL = "Qwen3-Coder-30B-A3B"
OPTIMAL = "optimal"
#: Points of a reused share that a policy may be behind LRU, and what it is to close.
MOST_BEHIND, LEAST_CLOSED = 0.2, 0.6


@dataclass(frozen=True)
class Draw:
    """One half of the sessions for judging, the other for learning.

    Attributes:
        seed: of the draw.
        users: at the same time.
        layout: of the model.
        disk: bytes on disk, behind each memory; 0 for none.
    """

    paths: tuple[Path, ...]
    seed: int
    users: int
    layout: CacheLayout
    disk: int = 0

    @cached_property
    def halves(self) -> tuple[list[HashedTrace], list[HashedTrace]]:
        """The sessions to learn from, and those to be judged on."""
        order = random.Random(self.seed).sample(self.paths, len(self.paths))
        half = len(order) // 2
        return _open(order[:half]), _open(order[half:])

    def judge(
        self, policies: Sequence[str], sizes: Sequence[int]
    ) -> list[dict[str, object]]:
        """Return a row of reused tokens for each policy and bound, and capacity.

        The bound takes checkpoints to be everywhere and free, and a disk for memory.
        """
        known, judged = self.halves
        learned = learn(known)
        sources = [HashedSource(trace) for trace in judged]
        requests = list(Workload(sources, self.users))
        tokens = sum(request.tokens for request in requests)
        best = OptimalMemory(requests)
        rows = []
        for size in sizes:
            most = (size + self.disk) // self.layout.token_bytes()
            found = {OPTIMAL: sum(best.reused(most))}
            for policy in policies:
                text = f"paged:evict={policy},disk={self.disk}"
                spec = StrategySpec.parse(text, capacity=size)
                strategy = spec.make(self.layout, unit=sources[0].unit)
                strategy.recall(learned)
                replayer = Simulator(strategy)
                found[policy] = sum(
                    replayer.replay(request).reused_tokens for request in requests
                )
            rows += [
                {
                    "seed": self.seed,
                    "users": self.users,
                    "capacity": size,
                    "policy": policy,
                    "reused": reused / tokens,
                }
                for policy, reused in found.items()
            ]
        return rows


def _open(paths: Iterable[Path]) -> list[HashedTrace]:
    return [t for t in open_traces([*paths]) if isinstance(t, HashedTrace)]


def judge_all(
    draws: Sequence[Draw], policies: Sequence[str], sizes: Sequence[int]
) -> pd.DataFrame:
    """Judge all draws, on all cores."""
    with ProcessPoolExecutor(cpu_count()) as pool:
        waiting = [pool.submit(draw.judge, policies, sizes) for draw in draws]
        rows = [row for own in tqdm(waiting, leave=False) for row in own.result()]
    return _with_distance(pd.DataFrame(rows))


def _with_distance(rows: pd.DataFrame) -> pd.DataFrame:
    """Add ``points`` over LRU, and the share of the distance to MIN ``closed``."""
    keys = ["seed", "users", "capacity"]
    wide = rows.pivot(index=keys, columns="policy", values="reused").reset_index()
    rows = rows.merge(wide[[*keys, DEFAULT, OPTIMAL]], on=keys)
    gained = rows.reused - rows[DEFAULT]
    rows["points"] = 100 * gained
    rows["closed"] = gained / (rows[OPTIMAL] - rows[DEFAULT])
    return rows.drop(columns=[DEFAULT, OPTIMAL])


def cells(rows: pd.DataFrame) -> Table:
    """Lay out the medians over the draws, one row per policy, one column per cell."""
    table = Table("reused", box=SIMPLE_HEAD, title="users, memory; median of the draws")
    medians = rows.groupby(["users", "capacity", "policy"], sort=False).reused.median()
    places = list(dict.fromkeys((u, c) for u, c, _ in medians.index))
    for users, size in places:
        table.add_column(f"{users}\n{format_size(size)}", justify="right")
    for policy in _ordered(rows):
        shares = (medians[(*place, policy)] for place in places)
        table.add_row(policy, *(f"{share:.1%}" for share in shares))
    return table


def distances(rows: pd.DataFrame) -> Table:
    """Lay out how much of the distance each policy closes, over all cells."""
    table = Table("closed", box=SIMPLE_HEAD, title="LRU 0, Belady's MIN 1; all cells")
    seeds = list(rows.seed.unique())
    for name in (
        "median",
        *(f"seed {seed}" for seed in seeds),
        "least",
        "worst points",
    ):
        table.add_column(name, justify="right")
    for policy in _ordered(rows):
        own = rows[rows.policy == policy]
        by_seed = own.groupby("seed", sort=False).closed.median()
        shown = [own.closed.median(), *by_seed, own.closed.min()]
        table.add_row(policy, *(f"{x:.2f}" for x in shown), f"{own.points.min():+.1f}")
    return table


def _ordered(rows: pd.DataFrame) -> Iterator[str]:
    yield from (str(policy) for policy in rows.policy.unique() if policy != OPTIMAL)
    yield OPTIMAL


def main() -> None:
    """Simulate, print tables, and exit with 1 if ``residual`` misses its targets.

    Where a model resumes at checkpoints, MIN is out of reach, and the only target is
    not to be behind LRU.
    """
    parser = ArgumentParser(prog="python -m bench.eviction")
    parser.add_argument("folder", type=Path, help="read hashed sessions from here")
    parser.add_argument("--users", default="4,8,16", metavar="N,...")
    parser.add_argument("--memory", default="4GiB,8GiB,16GiB,32GiB", metavar="SIZE,...")
    parser.add_argument("--policies", default=",".join(EVICTIONS), metavar="NAME,...")
    parser.add_argument("--layout", default=MODEL, help="of a model, or sizes")
    parser.add_argument("--disk", metavar="SIZE", help="behind memory")
    parser.add_argument("--draws", type=int, default=4, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    paths = tuple(sorted(p for p in given.folder.iterdir() if ".json" in p.suffixes))
    layout = read_layout(given.layout, "--layout")
    disk = read_size(given.disk, "--disk") if given.disk else 0
    draws = [
        Draw(paths, seed, int(users), layout, disk)
        for seed in range(given.draws)
        for users in given.users.split(",")
    ]
    sizes = [read_size(size, "--memory") for size in given.memory.split(",")]
    policies = list(dict.fromkeys([DEFAULT, *given.policies.split(",")]))
    begun = perf_counter()
    rows = judge_all(draws, policies, sizes)
    console = Console(width=150)
    console.print(cells(rows), distances(rows))
    runs = len(draws) * len(sizes) * (len(policies) + 1)
    console.print(f"{runs:,} simulations in {perf_counter() - begun:.0f} s")
    if given.json:
        given.json.write_text(json.dumps(rows.to_dict("records")))
    own = rows[rows.policy == "residual"]
    least = 0 if layout.checkpoint_bytes() else LEAST_CLOSED
    fine = own.closed.median() >= least and own.points.min() >= -MOST_BEHIND
    raise SystemExit(not fine)


if __name__ == "__main__":
    main()
