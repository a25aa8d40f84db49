"""Who answers a recorded client: a script, or another endpoint.

Knows nothing of traces: what an answerer is given and returns is all there is to
record.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol
from urllib.parse import urlsplit

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
    "Answerer",
    "Call",
    "ScriptAnswerer",
    "UpstreamAnswerer",
]

#: Headers of one connection, which a proxy does not pass on.
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
    """A request as it came in.

    Attributes:
        path: with its query, below the base URL.
        raw: the bytes of the body.
        body: the JSON object in it, None if there is none.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    raw: bytes
    body: dict[str, Json] | None


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer whose bytes are still to come.

    Attributes:
        chunks: to be closed by who iterates it.
        script: whether a script wrote it.
    """

    status: int
    headers: Mapping[str, str]
    chunks: AsyncIterator[bytes]
    script: bool = False


class Answerer(Protocol):
    """Anything that answers calls."""

    async def answer(self, call: Call) -> Answer:
        """Answer one call; called for several at a time.

        Raises:
            ApiError: what the client is to be told instead.
        """

    async def aclose(self) -> None:
        """Release connections."""


class ScriptAnswerer:
    """Answers from a script, in the form that the client asks for."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self._turn = anyio.Lock()

    async def answer(self, call: Call) -> Answer:
        path = urlsplit(call.path).path
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
                raise ApiError(400, "the body is no JSON object; send one")
        raise ApiError(404, f"{call.method} {path} is not served by a script")

    async def aclose(self) -> None:
        """Nothing to release."""

    def _message(self, body: Mapping[str, Json]) -> Answer:
        message = self.script.answer(body)
        if not body.get("stream"):
            return replace(_json_answer(200, message), script=True)
        headers = {"content-type": "text/event-stream", "cache-control": "no-cache"}
        return Answer(200, headers, _chunks(frames(message)), script=True)


class UpstreamAnswerer:
    """Passes calls on to another endpoint, and its bytes back as they arrive.

    Args:
        url: what the client's base URL would be without a recorder.

    Raises:
        TraceError: no http(s) URL.
    """

    def __init__(self, url: str) -> None:
        host = _host(url)
        if host is None:
            raise TraceError(f"upstream {url!r}: no URL; give http(s)://HOST[:PORT]")
        self.url = url.rstrip("/")
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(_SILENCE_S, connect=_CONNECT_S),
            limits=httpx.Limits(max_connections=None),
            # Proxies are for hosts elsewhere.
            trust_env=not is_loopback(host),
        )

    async def answer(self, call: Call) -> Answer:
        # What is recorded has to be readable, so no compression.
        headers = {**_passed(call.headers.items()), "accept-encoding": "identity"}
        try:
            request = self._client.build_request(
                call.method, self.url + call.path, headers=headers, content=call.raw
            )
            response = await self._client.send(request, stream=True)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            what = str(error) or type(error).__name__
            raise ApiError(502, f"upstream {self.url}: {what}") from None
        passed = _passed(response.headers.multi_items())
        return Answer(response.status_code, passed, _forwarded(response))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def _host(url: str) -> str | None:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return None
    return (parsed.host or None) if parsed.scheme in ("http", "https") else None


def _json_answer(status: int, body: dict[str, Json] | None) -> Answer:
    data = [] if body is None else [encode(body)]
    headers = {"content-type": "application/json"}
    return Answer(status, headers, _chunks(data))


async def _chunks(parts: Iterable[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def _forwarded(response: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in response.aiter_raw():
            yield chunk
    except httpx.HTTPError as error:
        what = str(error) or type(error).__name__
        if "text/event-stream" in response.headers.get("content-type", ""):
            yield frame("error", error=ApiError(500, what).error)
    finally:
        await response.aclose()


def _passed(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {name.lower(): v for name, v in headers if name.lower() not in _HOP}
