"""Tries seeded hostile cases on mlxlab, and prints how they end as a table.

The exit code is 1 if a case ended badly: a 5xx but 529, a hang, a traceback, a death,
or another wrong end. Each such case is printed with the command that repeats it.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing.util import Finalize

# A thread would not survive a fork, and what it holds would stay locked.
os.environ |= {
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
# isort: split
from tests.hostile.cases.kinds import COMMANDS, EXCHANGES, counts
from tests.hostile.commands import prepare, run_command
from tests.hostile.exchanges import run_exchanges
from tests.hostile.outcome import BAD, Finding, Outcome, Row, format_table
from tests.support.limited_server import LimitedServer, limited_server

#: Cases that a process takes at a time; afterwards a server has to be idle and well.
_BATCH = 200
_SHOWN = 40


@dataclass(frozen=True, slots=True)
class _Batch:
    kind: str
    first: int
    count: int

    @property
    def seeds(self) -> list[str]:
        return [f"{self.kind} {n}" for n in range(self.first, self.first + self.count)]


class _Served:
    """The server of this process; one that has ended is replaced."""

    def __init__(self) -> None:
        self._opened = ExitStack()
        self.server: LimitedServer | None = None
        self.said = 0

    def get(self) -> LimitedServer:
        if self.server is None or self.server.process.poll() is not None:
            self._opened.close()
            self.server = self._opened.enter_context(limited_server())
            Finalize(self, self._opened.close, exitpriority=0)
            self.said = 0
        return self.server


_served = _Served()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases; return the exit code."""
    given = _parser().parse_args(arguments)
    if given.kind:
        wanted = {given.kind: given.cases}
    else:
        wanted = counts(given.cases, given.commands)
    batches = _batches(wanted, given.seed)
    rows: dict[str, Row] = {kind: Row() for kind in wanted}
    begun, bad = time.monotonic(), 0
    prepare()
    # Before threads and mlx: a fork would not take them along.
    pool = multiprocessing.get_context("fork").Pool(given.jobs)
    with pool:
        for batch, outcomes in pool.imap_unordered(_run, batches):
            rows[batch.kind].add(outcomes, batch.first)
            for seed, outcome in enumerate(outcomes, batch.first):
                if outcome.end in BAD:
                    bad += 1
                    if bad <= _SHOWN:
                        print(Finding(batch.kind, seed, outcome), "\n", flush=True)
        pool.close()
        pool.join()
    print(format_table(rows))
    print(f"{time.monotonic() - begun:.0f} s, seeds from {given.seed}")
    return 1 if bad else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m tests.hostile", description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--kind", choices=(*EXCHANGES, *COMMANDS), help="only this one")
    parser.add_argument(
        "--commands", type=float, default=0.3, help="the share of command lines"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    return parser


def _batches(wanted: dict[str, int], first: int) -> list[_Batch]:
    """Return batches of all kinds by turns, so that no process is idle at the end."""
    by_kind = [
        [
            _Batch(kind, first + start, min(_BATCH, cases - start))
            for start in range(0, cases, _BATCH)
        ]
        for kind, cases in wanted.items()
    ]
    turns = itertools.zip_longest(*by_kind)
    return [batch for turn in turns for batch in turn if batch]


def _run(batch: _Batch) -> tuple[_Batch, list[Outcome]]:
    if batch.kind in COMMANDS:
        make = COMMANDS[batch.kind][0]
        return batch, [run_command(make, seed) for seed in batch.seeds]
    return batch, _exchanged(batch)


def _exchanged(batch: _Batch) -> list[Outcome]:
    server = _served.get()
    exchanges = EXCHANGES[batch.kind][0]
    outcomes = asyncio.run(run_exchanges(server, exchanges, batch.seeds))
    end, reason = _state(server)
    memory = server.peak if server.process.poll() is None else 0
    outcomes = [replace(outcome, memory=memory) for outcome in outcomes]
    if end:
        last = replace(outcomes[-1], end=end, reason=f"in these {batch}: {reason}")
        outcomes[-1] = last
    return outcomes


def _state(server: LimitedServer) -> tuple[str, str]:
    """Return a bad end of the server and its reason, or empty texts."""
    if server.process.poll() is not None:
        return (
            "deaths",
            f"exit code {server.process.returncode}: {server.printed[-2000:]}",
        )
    state = server.state()
    said, _served.said = server.printed[_served.said :], len(server.printed)
    if "Traceback" in said:
        return "tracebacks", said[-3000:]
    if state != "idle":
        return "wrong", state
    return ("wrong", said[-2000:]) if said else ("", "")


if __name__ == "__main__":
    sys.exit(main())
