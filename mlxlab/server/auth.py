"""Lets in requests with a valid token, and separates the caches of different tokens.

It runs before all code that reads a body. Other attacks by pages or neighbours are
refused by :mod:`mlxlab.web.guard`.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from hashlib import sha256

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlxlab.server.credentials import check_token
from mlxlab.server.live.page import PAGE
from mlxlab.web.errors import ApiError, error_response, new_request_id
from mlxlab.web.guard import replayed

__all__ = ["Authentication"]

#: Asked by clients, monitors and browsers without a token; the answers reveal nothing.
_OPEN = {
    ("GET", "/health"),
    ("HEAD", "/"),
    ("HEAD", "/api/hello"),
    *(("GET", path) for path in PAGE),
}


class Authentication:
    """ASGI middleware: 401 without a token, else ``credential`` in the scope.

    It also gives every request an id: ``request_id`` in the scope and ``request-id`` in
    the response. Ids are made here and never taken from a client.

    Args:
        app: the protected application.
        tokens: each of them lets a client in.
        host: address that the server binds; see :func:`check_token`.

    Raises:
        ServerError: no token, or one that :func:`check_token` refuses.
    """

    def __init__(
        self, app: ASGIApp, tokens: Sequence[str], host: str | None = None
    ) -> None:
        for token in tokens or [""]:
            check_token(token, host)
        self.app = app
        self._tokens = [token.encode() for token in tokens]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope["request_id"] = request_id = new_request_id()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = (b"request-id", request_id.encode())
                others = (h for h in message["headers"] if h[0] != own[0])
                message = {**message, "headers": [*others, own]}
            await send(message)

        scope["credential"] = self._credential(scope)
        path = scope["path"].removeprefix("/anthropic")
        if scope["credential"]:
            await self.app(scope, receive, send_with_id)
            return
        if (scope["method"], path) in _OPEN:
            # A request without a token costs at most its headers.
            await self.app(scope, replayed(b"", receive), send_with_id)
            return
        error = ApiError(401, "send the server's token as x-api-key or Bearer")
        response = error_response(error, request_id)
        await response(scope, receive, send_with_id)

    def _credential(self, scope: Scope) -> str | None:
        """Return a name for the request's token; None if it is not one of ours."""
        for given in _given(scope):
            # Every token is compared, so that the time reveals nothing.
            right = [hmac.compare_digest(given, token) for token in self._tokens]
            if any(right):
                return name_of(given)
        return None


def name_of(token: bytes) -> str:
    """Return the name of a credential, which does not reveal it."""
    return sha256(token).hexdigest()[:16]


def _given(scope: Scope) -> list[bytes]:
    given = []
    for name, value in scope["headers"]:
        if name == b"x-api-key":
            given.append(value)
        elif name == b"authorization" and value[:7].lower() == b"bearer ":
            given.append(value[7:].strip())
    return given
