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
from typing import Any, Protocol

import httpx

from mlxlab.errors import ServerError
from mlxlab.limits import BODY_BYTES
from mlxlab.replay.endpoints.dialect import Dialect, Usage

__all__ = ["WARM_UP", "Answer", "AskedServer", "BrokenAnswerError", "ask"]

#: A request for a first token, in which a server loads what it needs.
WARM_UP = {"model": "any", "messages": [{"role": "user", "content": "Say hello."}]}

_HEADERS = {"content-type": "application/json", "accept-encoding": "identity"}
#: Bytes of a refusal that are read.
_REASON_BYTES = 4096
#: What events that are none raise.
_UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


class AskedServer(Protocol):
    """A server, as far as a question needs it.

    Attributes:
        name: for errors.
        dialect: the protocol of its requests.
        model: the model id that requests name; empty for its own choice.
    """

    @property
    def name(self) -> str: ...
    @property
    def dialect(self) -> Dialect: ...
    @property
    def model(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """A streamed answer.

    Attributes:
        sent_s: when the request was sent, in seconds of the client's clock.
        tokens_s: when each piece of text arrived; the end of an answer without text.
        generated: tokens of the answer; None if the server does not report it.
        usage: tokens of the prompt; None if the server does not report it.
        ended_s: when the answer ended; None if it did not.
    """

    sent_s: float
    tokens_s: tuple[float, ...]
    generated: int | None = None
    usage: Usage | None = None
    ended_s: float | None = None

    @property
    def ttft_s(self) -> float:
        """Seconds from sending to the first token."""
        return self.tokens_s[0] - self.sent_s

    @property
    def gaps(self) -> list[tuple[float, float]]:
        """Begin and end of the time between two pieces."""
        return list(pairwise(self.tokens_s))

    @property
    def itl_s(self) -> float | None:
        """Mean seconds between two tokens; None if they came at once.

        A piece may hold several tokens, so the server's count of them divides.
        """
        tokens = self.generated or len(self.tokens_s)
        seconds = self.tokens_s[-1] - self.tokens_s[0]
        return seconds / (tokens - 1) if seconds and tokens > 1 else None


class BrokenAnswerError(ServerError):
    """A request that was refused, or an answer that broke off or cannot be read.

    Args:
        reason: in one line, without the name of the server.
        server: its name.
        answer: what had arrived until then.
    """

    def __init__(self, server: str, reason: str, answer: Answer) -> None:
        super().__init__(f"{server} {reason}")
        self.reason = reason
        self.answer = answer


def ask(
    server: AskedServer,
    client: httpx.Client,
    body: Mapping[str, Any],
    *,
    max_tokens: int = 1,
    recorded: Mapping[str, str] | None = None,
    stop: Callable[[int], bool] = lambda arrived: False,
) -> Answer:
    """Send a Messages request and read the answer.

    The time that a proxy takes to translate the request does not count.

    Args:
        server: what is asked.
        client: has the base URL and the credentials of the server.
        body: the request.
        max_tokens: most tokens of the answer.
        recorded: headers of the request, of which the protocol keeps some.
        stop: called with the number of chunks that have arrived; True breaks off.

    Raises:
        BrokenAnswerError: the server refused, broke off, or gave no token.
        RequestError: the protocol has no place for the request.
    """
    request = server.dialect.request(body, server.model, max_tokens)
    content = json.dumps(request).encode()
    headers = server.dialect.headers(recorded or {}) | _HEADERS
    arrived: list[tuple[float, bytes]] = []
    fault, stopped, size = "", False, 0
    cause: httpx.HTTPError | None = None
    sent_s = perf_counter()
    try:
        with client.stream(
            "POST", server.dialect.path, content=content, headers=headers
        ) as response:
            if not response.is_success:
                fault = _refusal(response)
            for chunk in () if fault else response.iter_raw():
                arrived.append((perf_counter(), chunk))
                size += len(chunk)
                stopped = stop(len(arrived))
                if stopped or size > BODY_BYTES:
                    break
    except httpx.HTTPError as error:
        fault, cause = f"broke off: {error!r}", error
    if size > BODY_BYTES:
        fault = f"broke off: an answer over {BODY_BYTES:,} bytes"
    heard = _Heard(server.dialect, sent_s)
    unread = heard.read(arrived)
    fault = fault or unread
    if not fault and not stopped and heard.ended_s is None:
        fault = "broke off: the answer ended before its end"
    if fault:
        if token := client.headers.get("x-api-key"):
            fault = fault.replace(token, "[token]")  # some servers repeat it
        raise BrokenAnswerError(server.name, fault, heard.answer) from cause
    return heard.answer


def _refusal(response: httpx.Response) -> str:
    data = b""
    for chunk in response.iter_raw():
        data += chunk
        if len(data) > _REASON_BYTES:
            break
    reason = " ".join(data.decode(errors="replace").split())
    return f"refused a request: {response.status_code} {reason:.200}"


class _Heard:
    """An answer, event by event."""

    def __init__(self, dialect: Dialect, sent_s: float) -> None:
        self.dialect = dialect
        self.sent_s = sent_s
        self.texts_s: list[float] = []
        self.ended_s: float | None = None
        self.usage: Usage | None = None
        self.generated: int | None = None

    def read(self, arrived: Iterable[tuple[float, bytes]]) -> str:
        """Take in what has arrived; return why it is not an answer, or nothing."""
        fault: Any = None
        event: Any = {}
        try:
            for time_s, event in _events(arrived):
                self._take(time_s, event)
                fault = event.get("error") or fault
        except _UNREADABLE as error:
            return f"broke off: an event that cannot be read: {error!r:.200}"
        if not self.answer.tokens_s:
            return f"gave no token: {fault or event}"
        return f"broke off: {fault}" if fault else ""

    @property
    def answer(self) -> Answer:
        """The answer so far."""
        ends = () if self.ended_s is None else (self.ended_s,)
        return Answer(
            self.sent_s,
            tuple(self.texts_s) or ends,
            self.generated,
            self.usage,
            self.ended_s,
        )

    def _take(self, time_s: float, event: Mapping[str, Any]) -> None:
        dialect = self.dialect
        if dialect.has_text(event):
            self.texts_s.append(time_s)
        if dialect.is_end(event):
            self.ended_s = time_s
        self.generated = dialect.generated(event) or self.generated
        if usage := dialect.usage(event):
            self.usage = self.usage.updated(usage) if self.usage else usage


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
