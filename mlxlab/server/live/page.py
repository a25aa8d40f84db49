"""The live view at ``GET /`` for a browser: a page, its events and its changes.

The page holds no data and needs no token. Its script sends the token, which it takes
from the fragment of the address, where no server and no log sees it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from mlxlab.errors import MlxlabError, RequestError
from mlxlab.limits import VIEWS
from mlxlab.server.live.change import Change
from mlxlab.server.live.view import INTERVAL_S
from mlxlab.web.errors import ApiError
from mlxlab.web.sse import frame

if TYPE_CHECKING:
    from mlxlab.server.server import Server

__all__ = ["FOLDER", "PAGE", "page_routes"]

FOLDER = Path(__file__).parent
#: The files of the page by their paths, which are open to all.
PAGE = {
    "/": ("page.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/panel.js": ("panel.js", "text/javascript"),
    "/panel.css": ("panel.css", "text/css"),
}
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cache-control": "no-cache",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
#: Seconds of silence after which a page hears that the server is there.
_PING_S = 10.0


def page_routes(server: Server) -> APIRouter:
    """Return the routes of a server's page."""
    routes = APIRouter(include_in_schema=False)
    for path, (name, kind) in PAGE.items():
        content = FOLDER.joinpath(name).read_bytes()
        answer = partial(Response, content, headers=_HEADERS, media_type=kind)
        routes.add_api_route(path, _constant(answer), methods=["GET"])
    pages = 0

    async def frames() -> AsyncIterator[bytes]:
        nonlocal pages
        pages += 1
        try:
            async for event in _events(server):
                yield event
        finally:
            pages -= 1

    @routes.get("/view")
    async def view() -> Response:
        """Stream the live view: a snapshot, then changes."""
        if pages >= VIEWS:
            raise ApiError(429, f"{VIEWS} pages are open; close one")
        return StreamingResponse(
            frames(), media_type="text/event-stream", headers=_HEADERS
        )

    @routes.post("/change", status_code=204)
    async def change(http: Request) -> Response:
        """Change the server, from its own page only."""
        if "origin" not in http.headers:  # a foreign one has been refused
            raise ApiError(403, "no Origin; change settings on the server's page")
        asked = Change.read(await http.body())
        try:
            await run_sync(asked.apply, server)
        except MlxlabError as error:
            raise RequestError(str(error)) from None
        return Response(status_code=204)

    return routes


def _constant(answer: partial[Response]) -> Callable[[], Awaitable[Response]]:
    async def file() -> Response:
        return answer()

    return file


async def _events(server: Server) -> AsyncIterator[bytes]:
    version, sent = 0, time.monotonic()
    while True:
        changed = server.view.since(version)
        if changed:
            version = changed["version"]
            yield frame("view", **changed)
        elif time.monotonic() - sent > _PING_S:
            yield b": here\n\n"
        else:
            await asyncio.sleep(INTERVAL_S)
            continue
        sent = time.monotonic()
        await asyncio.sleep(INTERVAL_S)
