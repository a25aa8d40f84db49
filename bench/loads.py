"""Puts loads of several agents on servers.

One start of a server answers agents at once. Then it decodes an answer beside a long
prefill, behind which a short request waits. Two more starts show what a restart costs,
and two what writing to disk does.
All prompts of a start begin differently, so that no load profits from the one before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import TypeAlias

from bench.memory import Memory
from bench.processes import Server, running
from bench.prompts import Prompts
from bench.rounds import visit_all
from mlxlab.errors import ServerError
from mlxlab.replay.endpoints.answers import WARM_UP, Answer, ask

__all__ = ["Load", "LoadSample", "Loaded", "Part", "Refused", "Visit", "put_on"]

#: An answer alone is longer by this factor: there is only one to measure.
_ALONE = 4
#: Chunks of a stream after which its answer is surely being decoded.
_BEGUN = 16
#: Seconds after which a long prefill is surely under way.
_UNDER_WAY_S = 0.3
#: Seconds for a server to write its cache.
_IDLE_S = 2.0
#: Turns of a session that is answered with and without a disk; the first is not warm.
_TURNS = 8
#: So much longer than an agent's answer is one that runs beside a prefill, at most.
_RUNNING = 20


class Load(StrEnum):
    """What a server has to do."""

    AGENTS = "agents"
    LONG = "long prefill"
    RESTART = "after a restart"
    WRITING = "writing to disk"
    ALL = "all loads"


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
    #: Warm turns of a server that writes its cache to disk, and of one that does not.
    WRITING = "writing"
    NOT_WRITING = "not writing"


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
    """What the loads of one start took, in one round.

    Attributes:
        peak_bytes: the server's most resident memory.
        samples: how often memory was sampled.
        client: the client's processor time, as a share of the seconds.
    """

    server: str
    round: int
    peak_bytes: int
    samples: int
    client: float


@dataclass(frozen=True, slots=True)
class Refused:
    """A load that a server did not take, and its reason."""

    server: str
    round: int
    load: Load
    agents: int
    reason: str


LoadSample: TypeAlias = Loaded | Refused | Visit
_Job: TypeAlias = tuple[Load, int, Callable[[], list[tuple[Part, Answer]]]]


def put_on(
    servers: Sequence[Server], prompts: Prompts, *, rounds: int, library: Path | None
) -> tuple[list[LoadSample], dict[str, str]]:
    """Put all loads on every server in every round.

    Args:
        servers: in order; every other round goes backwards.
        prompts: of the loads.
        rounds: number of rounds.
        library: the BLAS of all servers, see :mod:`bench.processes`.

    Returns:
        The samples, and the reason for each server that was left out.
    """

    def visit(server: Server, number: int) -> Iterator[LoadSample]:
        memory = Memory()
        began_s, began_client_s = time.perf_counter(), time.process_time()
        with running(server, library, memory=memory) as client:
            asking = partial(ask, server, client)
            asking(WARM_UP, max_tokens=prompts.sizes.answer)
            for job in _jobs(asking, prompts):
                yield from _samples(server, number, job)
        seconds = time.perf_counter() - began_s
        share = (time.process_time() - began_client_s) / seconds
        yield Visit(server.name, number, memory.peak, memory.samples, share)
        restart = partial(_restart, server.keeping, prompts, library)
        yield from _samples(server, number, (Load.RESTART, 1, restart))
        if server.keep:
            writing = partial(_writing, server, prompts, library, number)
            yield from _samples(server, number, (Load.WRITING, 1, writing))

    return visit_all(servers, rounds, visit)


def _samples(server: Server, number: int, job: _Job) -> Iterator[Loaded | Refused]:
    load, agents, call = job
    try:
        for part, answer in call():
            yield Loaded(server.name, number, load, agents, part, answer)
    except ServerError as error:
        yield Refused(server.name, number, load, agents, str(error))


def _jobs(asking: partial[Answer], prompts: Prompts) -> Iterator[_Job]:
    for number in prompts.sizes.agents:
        yield Load.AGENTS, number, partial(_agents, asking, prompts, number)
    yield Load.LONG, 3, partial(_long, asking, prompts)


def _agents(
    asking: partial[Answer], prompts: Prompts, number: int
) -> list[tuple[Part, Answer]]:
    longer = _ALONE if number == 1 else 1
    asking = partial(asking, max_tokens=longer * prompts.sizes.answer)
    with ThreadPoolExecutor(number) as pool:
        return [(Part.AGENT, a) for a in pool.map(asking, prompts.agents(number))]


def _long(asking: partial[Answer], prompts: Prompts) -> list[tuple[Part, Answer]]:
    """Let an answer run, begin a long prompt beside it, and ask shortly behind that."""
    begun, ended = Event(), Event()

    def stop(arrived: int) -> bool:
        if arrived >= _BEGUN:
            begun.set()
        return ended.is_set()

    with ThreadPoolExecutor(2) as pool:
        body = prompts.short("a user who waits")
        most = _RUNNING * prompts.sizes.answer
        running = pool.submit(asking, body, max_tokens=most, stop=stop)
        running.add_done_callback(lambda _: begun.set())
        begun.wait()
        try:
            long = pool.submit(asking, prompts.long("another user"))
            time.sleep(_UNDER_WAY_S)
            found = [(Part.SHORT, asking(prompts.short("a third user")))]
            found.append((Part.LONG, long.result()))
        finally:
            ended.set()
        return [(Part.RUNNING, running.result()), *found]


def _restart(
    server: Server, prompts: Prompts, library: Path | None
) -> list[tuple[Part, Answer]]:
    """Compute a session's turn before a restart, and its next one after it."""
    first, second, third = prompts.turns("a fourth user", 3)
    with TemporaryDirectory() as home:
        with running(server, library, home=Path(home)) as client:
            ask(server, client, first)
            warm = ask(server, client, second)
            time.sleep(_IDLE_S)
        started_s = time.perf_counter()
        with running(server, library, home=Path(home)) as client:
            answer = ask(server, client, third)
    started = replace(answer, sent_s=started_s)
    return [(Part.WARM, warm), (Part.RESTARTED, answer), (Part.STARTED, started)]


def _writing(
    server: Server, prompts: Prompts, library: Path | None, number: int
) -> list[tuple[Part, Answer]]:
    """Answer a session without and with a disk; in every other round, with it first."""
    first, *turns = prompts.turns("a fifth user", _TURNS)
    own = [(Part.NOT_WRITING, server), (Part.WRITING, server.keeping)]
    found: list[tuple[Part, Answer]] = []
    for part, told in own[:: -1 if number % 2 else 1]:
        with running(told, library) as client:
            asking = partial(ask, told, client, max_tokens=prompts.sizes.answer)
            asking(first)
            found += [(part, asking(turn)) for turn in turns]
    return found
