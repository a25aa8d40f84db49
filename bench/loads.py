"""Puts loads of several agents on servers.

One start of a server answers agents at once, decodes beside a long prefill, and answers
a short request behind one. Two more starts show what a restart costs. All prompts of a
start begin differently, so that no load profits from the one before.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any, TypeAlias

import httpx

from bench.answers import WARM_UP, Answer, ask
from bench.memory import Memory
from bench.processes import Server, running
from bench.prompts import Prompts
from bench.rounds import visit_all

__all__ = ["Load", "Loaded", "Part", "Visit", "put_on"]

#: Chunks of a stream after which its answer is surely being decoded.
_BEGUN = 16
#: Seconds after which a long prefill is surely under way.
_UNDER_WAY_S = 0.3
#: Seconds for a server to notice a closed connection, or to write its cache.
_IDLE_S = 2.0
#: Most tokens of an answer that runs beside a prefill.
_RUNNING = 600


class Load(StrEnum):
    """What a server has to do."""

    AGENTS = "agents"
    STALL = "answer beside a long prefill"
    BEHIND = "short request behind a long prefill"
    RESTART = "restart"


class Part(StrEnum):
    """What an answer stands for in its load."""

    AGENT = "agent"
    RUNNING = "running"
    LONG = "long"
    SHORT = "short"
    WARM = "warm"
    RESTARTED = "restarted"
    #: The same answer, counted from the start of the process.
    STARTED = "started"


@dataclass(frozen=True, slots=True)
class Loaded:
    """An answer under load.

    Attributes:
        agents: answers that were asked for at once.
    """

    server: str
    round: int
    load: Load
    agents: int
    part: Part
    answer: Answer


@dataclass(frozen=True, slots=True)
class Visit:
    """The cost of all loads but the restart, in one round.

    Attributes:
        peak_bytes: the server's most resident memory, of so many samples.
        samples: how often memory was sampled.
        client: the client's processor time, as a share of the seconds.
    """

    server: str
    round: int
    peak_bytes: int
    samples: int
    client: float


_Answers: TypeAlias = Iterator[tuple[Load, int, Part, Answer]]


def put_on(
    servers: Sequence[Server], prompts: Prompts, *, rounds: int, library: Path | None
) -> tuple[list[Loaded | Visit], dict[str, str]]:
    """Put all loads on every server in every round.

    Args:
        servers: in order; every other round goes backwards.
        prompts: of the loads.
        rounds: number of rounds.
        library: the BLAS of all servers, see :mod:`bench.processes`.

    Returns:
        The samples, and the reason for each server that was left out.
    """

    def visit(server: Server, number: int) -> Iterator[Loaded | Visit]:
        memory = Memory()
        began_s, began_client_s = time.perf_counter(), time.process_time()
        with running(server, library, memory=memory) as client:
            for found in _loads(server, client, prompts):
                yield Loaded(server.name, number, *found)
        seconds = time.perf_counter() - began_s
        share = (time.process_time() - began_client_s) / seconds
        yield Visit(server.name, number, memory.peak, memory.samples, share)
        for found in _restart(server, prompts, library):
            yield Loaded(server.name, number, *found)

    return visit_all(servers, rounds, visit)


def _loads(server: Server, client: httpx.Client, prompts: Prompts) -> _Answers:
    asking = partial(ask, server, client)
    asking(WARM_UP, max_tokens=prompts.sizes.answer)
    for number in prompts.sizes.agents:
        for answer in _at_once(asking, prompts.agents(number), prompts.sizes.answer):
            yield Load.AGENTS, number, Part.AGENT, answer
    running, long = _stall(asking, prompts)
    yield Load.STALL, 2, Part.RUNNING, running
    yield Load.STALL, 2, Part.LONG, long
    time.sleep(_IDLE_S)
    short, long = _behind(asking, prompts)
    yield Load.BEHIND, 2, Part.SHORT, short
    yield Load.BEHIND, 2, Part.LONG, long


def _at_once(
    asking: partial[Answer], bodies: Sequence[Mapping[str, Any]], max_tokens: int
) -> list[Answer]:
    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(partial(asking, max_tokens=max_tokens), bodies))


def _stall(asking: partial[Answer], prompts: Prompts) -> tuple[Answer, Answer]:
    """Return an answer that runs, and the first token of a long prompt beside it."""
    begun, ended = Event(), Event()

    def stop(arrived: int) -> bool:
        if arrived >= _BEGUN:
            begun.set()
        return ended.is_set()

    with ThreadPoolExecutor(1) as pool:
        body = prompts.short("a user who waits")
        running = pool.submit(asking, body, max_tokens=_RUNNING, stop=stop)
        running.add_done_callback(lambda _: begun.set())
        begun.wait()
        try:
            long = asking(prompts.long("another user"))
        finally:
            ended.set()
        return running.result(), long


def _behind(asking: partial[Answer], prompts: Prompts) -> tuple[Answer, Answer]:
    """Return a short request's first token, and that of a long prompt before it."""
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(asking, prompts.long("a third user"))
        time.sleep(_UNDER_WAY_S)
        short = asking(prompts.short("a fourth user"))
        return short, long.result()


def _restart(server: Server, prompts: Prompts, library: Path | None) -> _Answers:
    """Yield a session's turn before a restart, and its next one after it."""
    server = server.keeping
    first, second, third = prompts.turns("a fifth user", 3)
    with TemporaryDirectory() as home:
        with running(server, library, home=Path(home)) as client:
            ask(server, client, first)
            yield Load.RESTART, 1, Part.WARM, ask(server, client, second)
            time.sleep(_IDLE_S)
        started_s = time.perf_counter()
        with running(server, library, home=Path(home)) as client:
            answer = ask(server, client, third)
    yield Load.RESTART, 1, Part.RESTARTED, answer
    yield Load.RESTART, 1, Part.STARTED, replace(answer, sent_s=started_s)
