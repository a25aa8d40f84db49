"""Sends a request to a server and notes when each piece of the answer arrived.

The arrivals are noted while the answer streams and read afterwards: the client shares
the processor with the server, and must not be what is measured.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter
from typing import Any

import httpx

from bench.dialects import Usage
from bench.processes import Server
from mlxlab.errors import ServerError

__all__ = ["WARM_UP", "Answer", "ask"]

WARM_UP = {"model": "any", "messages": [{"role": "user", "content": "Say hello."}]}

_HEADERS = {"content-type": "application/json", "accept-encoding": "identity"}


@dataclass(frozen=True, slots=True)
class Answer:
    """A streamed answer.

    Attributes:
        sent_s: when the request was sent, in seconds of the client's clock.
        tokens_s: when each piece of text arrived; the end of an answer without text.
        generated: tokens of the answer; None if the server does not report it.
        usage: tokens of the prompt; None if the server does not report it.
    """

    sent_s: float
    tokens_s: tuple[float, ...]
    generated: int | None = None
    usage: Usage | None = None

    @property
    def ttft_s(self) -> float:
        """Seconds from sending to the first token."""
        return self.tokens_s[0] - self.sent_s

    @property
    def gaps(self) -> list[tuple[float, float]]:
        """Begin and end of the time between two pieces."""
        return list(pairwise(self.tokens_s))


def ask(
    server: Server,
    client: httpx.Client,
    body: Mapping[str, Any],
    *,
    max_tokens: int = 1,
    stop: Callable[[int], bool] = lambda arrived: False,
) -> Answer:
    """Send a Messages request and read the answer.

    The time that a proxy takes to translate the request does not count.

    Args:
        server: what is asked.
        client: from :func:`bench.processes.running`.
        body: the request.
        max_tokens: most tokens of the answer.
        stop: called with the number of chunks that have arrived; True breaks off.

    Raises:
        ServerError: the server refused, broke off, or gave no token.
    """
    request = server.dialect.request(body, server.model, max_tokens)
    content = json.dumps(request).encode()
    arrived: list[tuple[float, bytes]] = []
    sent_s = perf_counter()
    try:
        with client.stream(
            "POST", server.dialect.path, content=content, headers=_HEADERS
        ) as response:
            _check(server, response)
            for chunk in response.iter_raw():
                arrived.append((perf_counter(), chunk))
                if stop(len(arrived)):
                    break
    except httpx.TransportError as error:
        raise ServerError(f"{server.name} broke off: {error!r}") from error
    return _read(server, sent_s, arrived)


def _check(server: Server, response: httpx.Response) -> None:
    if response.is_error:
        reason = response.read().decode(errors="replace")
        raise ServerError(
            f"{server.name} refused a request: {response.status_code} {reason:.200}"
        )


def _read(
    server: Server, sent_s: float, arrived: Iterable[tuple[float, bytes]]
) -> Answer:
    dialect = server.dialect
    texts_s: list[float] = []
    end_s: float | None = None
    usage: Usage | None = None
    generated: int | None = None
    event: dict[str, Any] = {}
    fault: Any = None
    for time_s, event in _events(arrived):
        if dialect.has_text(event):
            texts_s.append(time_s)
        elif dialect.has_token(event):
            end_s = time_s
        usage = dialect.usage(event) or usage
        generated = dialect.generated(event) or generated
        fault = event.get("error") or fault
    if end_s is not None and not texts_s:
        texts_s = [end_s]
    if not texts_s:
        raise ServerError(f"{server.name} gave no token: {fault or event}")
    return Answer(sent_s, tuple(texts_s), generated, usage)


def _events(
    arrived: Iterable[tuple[float, bytes]],
) -> Iterator[tuple[float, dict[str, Any]]]:
    """Yield the JSON events of a stream, and when each had arrived.

    Lines end at newlines only: httpx would also cut at other characters in texts.
    """
    rest = b""
    for time_s, chunk in arrived:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            data = line.removeprefix(b"data:").strip()
            if line.startswith(b"data:") and data != b"[DONE]":
                yield time_s, json.loads(data)
