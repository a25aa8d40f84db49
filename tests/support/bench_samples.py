from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from bench.loads import Load, Loaded, LoadSample, Part, Visit
from bench.processes import Server
from mlxlab.replay.endpoints.answers import Answer
from mlxlab.replay.endpoints.messages import Messages


def stand_in(fault: str = "", name: str = "") -> Server:
    """Return a server that runs ``stand_in.py``, with one fault or none."""
    script = Path(__file__).with_name("stand_in.py")
    command = (sys.executable, str(script), *([fault] if fault else []))
    return Server(name or fault or "good", command, Messages(), model="m")


def loaded(
    server: str,
    number: int,
    load: Load,
    part: Part,
    tokens_s: Sequence[float],
    *,
    agents: int = 1,
    sent_s: float = 0.0,
    generated: int | None = None,
) -> Loaded:
    """Return an answer under load, from its times."""
    answer = Answer(sent_s, tuple(tokens_s), generated)
    return Loaded(server, number, load, agents, part, answer)


def rounds_under_load(server: str, pace: float) -> list[LoadSample]:
    """Two rounds of a server; all seconds are multiples of ``pace``.

    Alone it needs 1 to the first of five tokens and 1 for each further one. Two agents
    get first tokens after 1 and 3, and four tokens each, one of them hidden. Beside a
    prefill of 10 to 18 an answer has tokens at 9, 11, 17 and 19. A short request behind
    it waits 2.
    """

    def times(*units: float) -> list[float]:
        return [pace * unit for unit in units]

    def of(number: int) -> Iterator[LoadSample]:
        own = partial(loaded, server, number)
        yield own(Load.AGENTS, Part.AGENT, times(1, 2, 3, 4, 5), generated=5)
        for first in (1, 3):
            yield own(
                Load.AGENTS,
                Part.AGENT,
                times(first, first + 1, first + 5),
                agents=2,
                generated=4,
            )
        running = times(1, 9, 11, 17, 19, 20)
        yield own(Load.LONG, Part.RUNNING, running, agents=3)
        sent_s = 10 * pace
        yield own(Load.LONG, Part.SHORT, times(13), agents=3, sent_s=11 * pace)
        yield own(Load.LONG, Part.LONG, times(18), agents=3, sent_s=sent_s)
        yield Visit(
            server, number, peak_bytes=int(pace * 1e9) + number, samples=7, client=0.1
        )
        yield own(Load.RESTART, Part.WARM, times(2))
        yield own(Load.RESTART, Part.RESTARTED, times(3))
        yield own(Load.RESTART, Part.STARTED, times(8))
        for last in (8, 9, 20):
            yield own(Load.WRITING, Part.NOT_WRITING, times(2, last))
            yield own(Load.WRITING, Part.WRITING, times(3, 2 * last))

    return [sample for number in range(2) for sample in of(number)]
