"""Sends recorded requests to servers and measures the time to the first token."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from time import perf_counter
from typing import Any

import httpx
from tqdm import tqdm

from bench.dialects import Usage
from bench.processes import Server, running
from mlxlab.errors import ServerError
from mlxlab.traces import Exchange, Trace

__all__ = ["Kind", "Sample", "ask", "kinds_of", "measure"]

_WARM_UP = {"model": "any", "messages": [{"role": "user", "content": "Say hello."}]}


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
    samples: list[Sample] = []
    left_out: dict[str, str] = {}
    progress = tqdm(total=rounds * len(servers) * len(traces), leave=False)
    for number in range(rounds):
        for server in servers[:: -1 if number % 2 else 1]:
            for trace in traces:
                progress.set_description(f"{server.name}: {trace.name}")
                if server.name not in left_out:
                    try:
                        samples += _replay(server, trace, number, library)
                    except ServerError as error:
                        left_out[server.name] = str(error)
                progress.update()
    progress.close()
    return [s for s in samples if s.server not in left_out], left_out


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


def ask(
    server: Server, client: httpx.Client, body: Mapping[str, Any]
) -> tuple[float, Usage | None]:
    """Send a Messages request and read the answer to its end.

    The time that a proxy takes to translate the request does not count.

    Returns:
        Seconds from sending to the first token, and the server's usage report.

    Raises:
        ServerError: the server refused, broke off, or gave no token.
    """
    dialect = server.dialect
    content = json.dumps(dialect.request(body, server.model)).encode()
    headers = {"content-type": "application/json"}
    ttft_s: float | None = None
    usage: Usage | None = None
    event: dict[str, Any] = {}
    started = perf_counter()
    try:
        with client.stream(
            "POST", dialect.path, content=content, headers=headers
        ) as response:
            _check(server, response)
            for event in _events(response):
                if ttft_s is None and dialect.has_token(event):
                    ttft_s = perf_counter() - started
                usage = dialect.usage(event) or usage
    except httpx.TransportError as error:
        raise ServerError(f"{server.name} broke off: {error!r}") from error
    if ttft_s is None:
        raise ServerError(f"{server.name} gave no token; its last event: {event}")
    return ttft_s, usage


def _replay(
    server: Server, trace: Trace, number: int, library: Path | None
) -> Iterator[Sample]:
    with running(server, library) as client:
        ask(server, client, _WARM_UP)
        for exchange, kind in kinds_of(trace):
            ttft_s, usage = ask(server, client, exchange.body or {})
            yield Sample(
                server=server.name,
                trace=trace.name,
                round=number,
                request=exchange.id,
                kind=kind,
                ttft_s=ttft_s,
                prompt_tokens=usage.prompt if usage else None,
                reused_tokens=usage.reused if usage else None,
            )


def _check(server: Server, response: httpx.Response) -> None:
    if response.is_error:
        reason = response.read().decode(errors="replace")
        raise ServerError(
            f"{server.name} refused a request: {response.status_code} {reason:.200}"
        )


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """Yield the JSON events of a stream.

    Lines end at newlines only: httpx would also cut at other characters in texts.
    """
    rest = b""
    for chunk in response.iter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            data = line.removeprefix(b"data:").strip()
            if line.startswith(b"data:") and data != b"[DONE]":
                yield json.loads(data)
