"""Sends recorded requests to servers and measures the time to the first token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from bench.processes import Server, running
from bench.rounds import visit_all
from mlxlab.replay.endpoints.answers import WARM_UP, ask
from mlxlab.traces import Exchange, Trace

__all__ = ["Kind", "Sample", "kinds_of", "measure"]


class Kind(StrEnum):
    """The cache before a request: empty, its own session, or other sessions."""

    TURN_1 = "turn 1"
    WARM = "warm turns"
    NEW_SESSION = "new session"
    SUB_AGENTS = "sub-agents"
    #: Requests of the loop that sub-agents work for.
    MAIN_LOOP = "main loop"


@dataclass(frozen=True, slots=True)
class Sample:
    """One request to one server in one round.

    Attributes:
        request: its id in the trace.
        ttft_s: seconds from sending to the first token.
        prompt_tokens: None if the server does not report it.
        reused_tokens: None if the server does not report it.
    """

    server: str
    trace: str
    round: int
    request: int
    kind: Kind
    ttft_s: float
    prompt_tokens: int | None
    reused_tokens: int | None


def measure(
    servers: Sequence[Server],
    traces: Sequence[Trace],
    *,
    rounds: int,
    library: Path | None,
) -> tuple[list[Sample], dict[str, str]]:
    """Send every trace to every server in every round, with a fresh start each time.

    Args:
        servers: in order; every other round goes backwards.
        traces: sent one request after the other.
        rounds: number of rounds.
        library: the BLAS of all servers, see :mod:`bench.processes`.

    Returns:
        The samples, and the reason for each server that was left out.
    """

    def visit(server: Server, number: int) -> Iterator[Sample]:
        for trace in traces:
            yield from _replay(server, trace, number, library)

    return visit_all(servers, rounds, visit)


def kinds_of(trace: Trace) -> Iterator[tuple[Exchange, Kind]]:
    """Yield the inference requests of a trace, each with its kind."""
    delegates = any(exchange.agent for exchange in trace.inference)
    seen: set[str] = set()
    for exchange in trace.inference:
        if delegates:
            kind = Kind.SUB_AGENTS if exchange.agent else Kind.MAIN_LOOP
        elif exchange.session in seen:
            kind = Kind.WARM
        else:
            kind = Kind.NEW_SESSION if seen else Kind.TURN_1
        seen.add(exchange.session)
        yield exchange, kind


def _replay(
    server: Server, trace: Trace, number: int, library: Path | None
) -> Iterator[Sample]:
    with running(server, library) as client:
        ask(server, client, WARM_UP)
        for exchange, kind in kinds_of(trace):
            answer = ask(server, client, exchange.body or {})
            usage = answer.usage
            yield Sample(
                server=server.name,
                trace=trace.name,
                round=number,
                request=exchange.id,
                kind=kind,
                ttft_s=answer.ttft_s,
                prompt_tokens=usage.prompt if usage else None,
                reused_tokens=usage.reused if usage else None,
            )
