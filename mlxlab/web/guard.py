"""Refuses attacks by web pages and hostile clients, before all other code.

It works on the raw ASGI scope, so nothing that it refuses has been parsed by then.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlxlab.limits import BODY_BYTES
from mlxlab.web.errors import ApiError, error_response, new_request_id

__all__ = ["Bounds", "Guard", "is_loopback", "replayed"]

_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._-]+)(?::[0-9]{1,5})?")
_LENGTH_DIGITS = 20


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of a request and of its connection.

    Attributes:
        header_lines: most headers.
        header_bytes: most bytes of all header names and values.
        body_bytes: most bytes of a body.
        body_s: seconds from the headers to the last byte of the body.
        header_s: seconds from a request's first byte, or from the connection, to the
            end of its headers.
        idle_s: seconds between two requests on a connection.
        unread_s: seconds that a client may go on sending a refused body.
        connections: most open connections, fewer where file descriptors are short. A
            new one replaces the oldest without a complete request. Connections whose
            last request had a ``credential`` in its scope are dropped last.
    """

    header_lines: int = 100
    header_bytes: int = 32 * 2**10
    body_bytes: int = BODY_BYTES
    body_s: float = 60.0
    header_s: float = 10.0
    idle_s: float = 5.0
    unread_s: float = 2.0
    connections: int = 256


class Guard:
    """ASGI middleware: refuses in the API's error shape or passes a request on.

    It refuses a Host that is neither loopback nor ours, which a page whose name
    resolves to this machine sends. It refuses an Origin that is not ours, which any
    other page sends. It also refuses targets that are not paths, and requests beyond
    the bounds. It never sends a CORS header.

    The application gets the whole body as one ``http.request``. The
    ``http.disconnect`` of a leaving client comes after it.

    Args:
        app: the guarded application.
        names: further hosts that clients may use, such as the bound address.
        bounds: limits of a request.
    """

    def __init__(
        self, app: ASGIApp, names: Iterable[str] = (), bounds: Bounds | None = None
    ) -> None:
        self.app = app
        self.names = frozenset(map(_canonical, names))
        self.bounds = bounds or Bounds()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise TypeError(f"a {scope['type']} scope; the guard takes http only")
        try:
            self._check(scope)
            body = await self._body(receive)
        except ApiError as error:
            request_id = scope.get("request_id") or new_request_id()
            await error_response(error, request_id)(scope, receive, send)
            return
        if body is not None:
            await self.app(scope, replayed(body, receive), send)

    def _check(self, scope: Scope) -> None:
        self._check_size(scope)
        if not scope["raw_path"].startswith(b"/"):
            raise ApiError(400, "the request's target is not a path; begin it with /")
        hosts = _values(scope, b"host")
        match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if match is None or not self._is_ours(match[1].decode(), scope):
            raise ApiError(403, "a foreign Host; use 127.0.0.1 or localhost")
        own = scope["scheme"].encode() + b"://" + hosts[0]
        if any(origin != own for origin in _values(scope, b"origin")):
            raise ApiError(403, "a foreign Origin; web pages are not answered")

    def _check_size(self, scope: Scope) -> None:
        lines, size = self.bounds.header_lines, self.bounds.header_bytes
        headers = scope["headers"]
        if len(headers) > lines or sum(len(k) + len(v) for k, v in headers) > size:
            most = f"{lines} lines and {size} bytes"
            raise ApiError(431, f"the headers are too large; send at most {most}")
        for length in _values(scope, b"content-length"):
            if not length.isdigit() or len(length) > _LENGTH_DIGITS:
                raise ApiError(400, "content-length is not a number; give the bytes")
            if int(length) > self.bounds.body_bytes:
                raise self._too_large()

    def _is_ours(self, host: str, scope: Scope) -> bool:
        name = _canonical(host)
        # The address that the client reached; the bound one may be only 0.0.0.0.
        reached = (scope.get("server") or ("",))[0]
        return is_loopback(name) or name == _canonical(reached) or name in self.names

    async def _body(self, receive: Receive) -> bytes | None:
        """Return the whole body; None if the client has left."""
        chunks: list[bytes] = []
        left = self.bounds.body_bytes
        with anyio.move_on_after(self.bounds.body_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                chunks.append(message.get("body", b""))
                left -= len(chunks[-1])
                if left < 0:
                    raise self._too_large()
                if not message.get("more_body", False):
                    return b"".join(chunks)
        seconds = f"{self.bounds.body_s:g} s"
        closing = {"connection": "close"}
        raise ApiError(408, f"no complete body within {seconds}; send faster", closing)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"a body over {self.bounds.body_bytes} bytes; send less")


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is this machine's loopback."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _canonical(host: str) -> str:
    """Return one spelling for each name and address."""
    name = host.strip("[]").lower()
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name
    return str(getattr(address, "ipv4_mapped", None) or address)


def _values(scope: Scope, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key.lower() == name]


def replayed(body: bytes, receive: Receive) -> Receive:
    """Receive the body in one message, then the connection's own messages."""
    bodies = [body]

    async def receive_replayed() -> Message:
        if bodies:
            return {"type": "http.request", "body": bodies.pop(), "more_body": False}
        return await receive()

    return receive_replayed
