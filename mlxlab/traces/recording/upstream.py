"""The upstreams that answer a recorded client: another endpoint, or a script."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import anyio
import httpx

from mlxlab.errors import TraceError
from mlxlab.traces.recording.script import Script, estimated_tokens
from mlxlab.traces.schema import Json, encode
from mlxlab.web.errors import ApiError
from mlxlab.web.guard import is_loopback
from mlxlab.web.sse import frame, frames

__all__ = [
    "Answer",
    "Call",
    "EndpointUpstream",
    "ScriptUpstream",
    "Upstream",
]

#: Headers of one connection, which a proxy does not forward.
_HOP = frozenset(
    {
        "connection",
        "content-length",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_CONNECT_S = 10.0
_SILENCE_S = 600.0


@dataclass(frozen=True, slots=True)
class Call:
    """A request as received.

    Attributes:
        path: path below the base URL, with its query.
        headers: names in lower case.
        raw: the bytes of the body.
        body: the JSON object in the body, None if there is none.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    raw: bytes
    body: dict[str, Json] | None


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer whose body is still to be read.

    Attributes:
        chunks: the body; callers close the iterator.
        script: whether the answer comes from a script.
    """

    status: int
    headers: Mapping[str, str]
    chunks: AsyncIterator[bytes]
    script: bool = False


class Upstream(Protocol):
    """Answers calls."""

    async def answer(self, call: Call) -> Answer:
        """Answer one call; several calls may be answered at a time.

        Raises:
            ApiError: the error to send to the client instead.
        """

    async def aclose(self) -> None:
        """Release connections."""


class ScriptUpstream:
    """Answers from a script, streamed if the client asks for it."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self._turn = anyio.Lock()

    async def answer(self, call: Call) -> Answer:
        path = call.path.partition("?")[0]
        match call.method, path:
            case "HEAD", _:
                return _json_answer(200, None)
            case "GET", "/v1/models":
                empty = {"data": [], "has_more": False}
                return _json_answer(200, empty | {"first_id": None, "last_id": None})
            case "POST", "/v1/messages/count_tokens" if call.body is not None:
                count = {"input_tokens": estimated_tokens(call.body)}
                return replace(_json_answer(200, count), script=True)
            case "POST", "/v1/messages" if call.body is not None:
                async with self._turn:
                    await anyio.sleep(self.script.latency_s)
                return self._message(call.body)
            case "POST", "/v1/messages" | "/v1/messages/count_tokens":
                raise ApiError(400, "the body is not a JSON object; send one")
        raise ApiError(404, f"{call.method} {path} is not served by a script")

    async def aclose(self) -> None:
        """Nothing to release."""

    def _message(self, body: Mapping[str, Json]) -> Answer:
        message = self.script.answer(body)
        if not body.get("stream"):
            return replace(_json_answer(200, message), script=True)
        headers = {"content-type": "text/event-stream", "cache-control": "no-cache"}
        return Answer(200, headers, _chunks(frames(message)), script=True)


class EndpointUpstream:
    """Forwards calls to another endpoint, and its bytes back as they arrive.

    Args:
        url: the base URL that the client would have without a recorder.

    Raises:
        TraceError: not an http(s) URL.
    """

    def __init__(self, url: str) -> None:
        host = _host(url)
        if host is None:
            raise TraceError(f"upstream {url!r}: not a URL; give http(s)://HOST[:PORT]")
        self.url = url.rstrip("/")
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(_SILENCE_S, connect=_CONNECT_S),
            limits=httpx.Limits(max_connections=None),
            # Loopback is reached without a proxy.
            trust_env=not is_loopback(host),
        )

    async def answer(self, call: Call) -> Answer:
        # A compressed answer could not be recorded.
        headers = {**_without_hop(call.headers.items()), "accept-encoding": "identity"}
        try:
            request = self._client.build_request(
                call.method, self.url + call.path, headers=headers, content=call.raw
            )
            response = await self._client.send(request, stream=True)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise ApiError(502, f"upstream {self.url}: {reason}") from None
        forwarded = _without_hop(response.headers.multi_items())
        return Answer(response.status_code, forwarded, _chunks_of(response))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def _host(url: str) -> str | None:
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, UnicodeError):
        return None
    return (parsed.host or None) if parsed.scheme in ("http", "https") else None


def _json_answer(status: int, body: dict[str, Json] | None) -> Answer:
    data = [] if body is None else [encode(body)]
    headers = {"content-type": "application/json"}
    return Answer(status, headers, _chunks(data))


async def _chunks(parts: Iterable[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def _chunks_of(response: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in response.aiter_raw():
            yield chunk
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        if "text/event-stream" in response.headers.get("content-type", ""):
            yield frame("error", error=ApiError(500, reason).error)
    finally:
        await response.aclose()


def _without_hop(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {name.lower(): v for name, v in headers if name.lower() not in _HOP}
