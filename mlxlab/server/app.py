"""The routes: HTTP requests in, the service's events out.

Every path is served twice, with and without ``/anthropic`` in front.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from mlxlab.errors import (
    OUT_OF_MEMORY,
    MemoryFullError,
    MlxlabError,
    ModelError,
    RequestError,
    StrategyError,
    UnknownModelError,
)
from mlxlab.rendering.messages import describe_errors
from mlxlab.server.body import read_body
from mlxlab.server.event_log import Asker
from mlxlab.server.events import PING, WireEvent
from mlxlab.server.scheduler import QueueFullError
from mlxlab.server.schema import (
    Answer,
    ErrorBody,
    Health,
    InferenceRequest,
    ModelInfo,
    ModelList,
    TokenCount,
    TokenCountRequest,
)
from mlxlab.server.service import Service
from mlxlab.web.errors import ApiError, error_response
from mlxlab.web.sse import MessageAccumulator, frame

__all__ = ["create_app"]

T = TypeVar("T")

log = logging.getLogger(__name__)

#: Seconds between pings. Clients give up after five silent minutes and warn after 20 s.
_PING_S = 10.0
#: Seconds within which an error becomes an HTTP status, not an event in a stream.
_HOLD_S = 0.9
#: Seconds between checks that a client still waits for a whole answer.
_LOOK_S = 0.5
_CLIENT_GONE = 499
#: Most characters of a refusal.
_MESSAGE = 1000
#: Bodies that are read at once.
_READERS = 2


_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in ("4XX", "5XX")
}
_EVENT = {
    "type": "object",
    "properties": {
        "event": {"type": "string"},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
    "required": ["event", "data"],
}
_ANSWER: dict[int | str, dict[str, Any]] = _ERRORS | {
    200: {
        "description": "The message, or its events.",
        "model": Answer,
        "content": {"text/event-stream": {"itemSchema": _EVENT}},
    }
}
_METRICS: dict[int | str, dict[str, Any]] = _ERRORS | {
    200: {
        "description": "Counters.",
        "content": {"text/plain": {"schema": {"type": "string"}}},
    }
}


def create_app(service: Service, *, answer_s: float = 3600.0) -> FastAPI:
    """Make the Messages API of a service.

    The ASGI scope must hold ``credential`` and ``request_id``, see
    :mod:`mlxlab.server.auth`.

    Args:
        service: answers the requests.
        answer_s: most seconds from a request's arrival to the end of its answer.
    """
    app = FastAPI(title="mlxlab", docs_url=None, redoc_url=None, openapi_url=None)
    api = _routes(service, answer_s)
    app.include_router(api)
    app.include_router(api, prefix="/anthropic", include_in_schema=False)
    _add_errors(app)
    return app


def _routes(service: Service, answer_s: float) -> APIRouter:
    api = APIRouter(route_class=_bounded_route())
    started = datetime.now(UTC).isoformat(timespec="seconds")

    @api.post("/v1/messages", response_model=None, responses=_ANSWER)
    async def messages(body: InferenceRequest, http: Request) -> Response:
        """Answer a request, streamed or whole."""
        state = http.scope.setdefault("state", {})
        asker = Asker.of(http.headers, body.model_extra or {})
        events = service.answer(body, http.scope["credential"], state.update, asker)
        answer = _Answer(http, events, time.monotonic() + answer_s)
        return await (answer.streamed() if body.stream else answer.whole())

    @api.post(
        "/v1/messages/count_tokens",
        responses=_ERRORS,
        response_model_exclude_none=True,
    )
    async def count_tokens(body: TokenCountRequest, http: Request) -> TokenCount:
        """Count the tokens of a prompt as it would be rendered."""
        return await service.count(body, http.scope["credential"])

    @api.get("/v1/models", responses=_ERRORS)
    async def models() -> ModelList:
        """List the aliases."""
        return ModelList.of(
            _model(service, name, started) for name in service.aliases.names()
        )

    @api.get("/v1/models/{model_id:path}", responses=_ERRORS)
    async def model(model_id: str) -> ModelInfo:
        """Return the model that answers a model id."""
        name, _ = service.aliases.resolve(model_id)
        return _model(service, name, started)

    @api.get("/metrics", response_class=Response, responses=_METRICS)
    async def metrics() -> Response:
        """Return counters in Prometheus' text format."""
        return Response(service.exposition(), media_type=CONTENT_TYPE_LATEST)

    @api.get("/health", responses=_ERRORS)
    async def health() -> Health:
        """Return whether the thread that answers is alive."""
        service.check()
        return Health(queue=service.scheduler.waiting)

    @api.head("/api/hello", include_in_schema=False)
    @api.head("/", include_in_schema=False)
    async def hello() -> Response:
        """Confirm to clients that a server answers here."""
        return Response()

    return api


class _Read(Request):
    """A request with the parsed body in place of its JSON."""

    def __init__(self, http: Request, data: bytes, parsed: object) -> None:
        super().__init__(http.scope, http.receive)
        self._data = data
        self._parsed = parsed

    async def body(self) -> bytes:
        return self._data

    async def json(self) -> object:
        return self._parsed


def _bounded_route() -> type[APIRoute]:
    """Return routes that read bodies off the event loop, within the limits."""
    # Few at a time, because each body may take its share of memory.
    limiter = CapacityLimiter(_READERS)

    class BoundedRoute(APIRoute):
        def get_route_handler(
            self,
        ) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()
            if self.body_field is None:
                return handle
            kind: Any = self.body_field.field_info.annotation

            async def handle_read(http: Request) -> Response:
                data = await http.body()
                if not data:
                    return await handle(http)
                parsed = await run_sync(read_body, kind, data, limiter=limiter)
                return await handle(_Read(http, data, parsed))

            return handle_read

    return BoundedRoute


class _Answer:
    """One answer while it is sent to a client.

    Args:
        http: reports when the client has left.
        events: the service's events.
        deadline: on the monotonic clock.
    """

    def __init__(
        self, http: Request, events: AsyncIterator[WireEvent | None], deadline: float
    ) -> None:
        self.http = http
        self.events = events
        self.deadline = deadline

    async def whole(self) -> Response:
        """Wait for the end, or until the client has left."""
        message = MessageAccumulator()
        looked = time.monotonic()
        async with aclosing(self.events):  # type: ignore[type-var]
            async for event in self._in_time():
                if event is not None:
                    message.feed(_frame(event))
                if time.monotonic() - looked > _LOOK_S:
                    if await self.http.is_disconnected():
                        return Response(status_code=_CLIENT_GONE)
                    looked = time.monotonic()
        return JSONResponse(message.message)

    async def streamed(self) -> Response:
        """Start to stream at the first event, or when the wait gets long."""
        started = time.monotonic()
        events = self._in_time()
        first: list[WireEvent | None] = []
        async for event in events:
            first.append(event)
            if event is not None or time.monotonic() - started > _HOLD_S:
                break
        return StreamingResponse(
            self._frames(first, events),
            media_type="text/event-stream",
            headers={"cache-control": "no-cache"},
        )

    async def _frames(
        self, first: list[WireEvent | None], rest: AsyncIterator[WireEvent | None]
    ) -> AsyncIterator[bytes]:
        last = 0.0
        async with aclosing(self.events):  # type: ignore[type-var]
            try:
                async for event in _chain(first, rest):
                    if event is None and time.monotonic() - last < _PING_S:
                        continue
                    yield _frame(event or PING)
                    last = time.monotonic()
            except Exception as error:
                # Too late for a status; the client reads this event instead.
                failure = as_api_error(error)
                yield _frame(failure.body(self.http.scope["request_id"]))

    async def _in_time(self) -> AsyncIterator[WireEvent | None]:
        async for event in self.events:
            yield event
            if time.monotonic() > self.deadline:
                raise ApiError(504, "the answer takes too long; ask for fewer tokens")


async def _chain(first: Iterable[T], rest: AsyncIterator[T]) -> AsyncIterator[T]:
    for item in first:
        yield item
    async for item in rest:
        yield item


def _frame(event: WireEvent) -> bytes:
    return frame(event["type"], **{k: v for k, v in event.items() if k != "type"})


def _model(service: Service, name: str, started: str) -> ModelInfo:
    alias = service.aliases.resolve(name)[1]
    shown = f"{name} ({alias.model}, {alias.strategy})"
    return ModelInfo(id=name, display_name=shown, created_at=started)


def as_api_error(error: Exception) -> ApiError:
    """Convert any exception to an error of the API."""
    match error:
        case ApiError():
            return error
        case RequestError():
            return ApiError(400, _cut(str(error)))
        case UnknownModelError():
            return ApiError(404, _cut(str(error)))
        case QueueFullError():
            return ApiError(529, "the queue is full; try again soon")
        case MemoryFullError():
            return ApiError(529, str(error))
        case MemoryError():
            log.error(OUT_OF_MEMORY)
            return ApiError(529, OUT_OF_MEMORY)
        case ModelError() | StrategyError():
            # The alias's owner can mend it; a client that tries again cannot.
            log.error("%s", error)
            return ApiError(404, f"the model cannot answer: {_cut(str(error))}")
        case MlxlabError():
            return ApiError(500, str(error))
        case RequestValidationError():
            return ApiError(400, _describe(error))
        case HTTPException():
            return ApiError(error.status_code, f"{error.detail}; see the API's paths")
    log.error("a request failed", exc_info=error)
    # Starlette raises the error again after the response, and uvicorn then hangs up.
    closing = {"connection": "close"}
    kind = type(error).__name__
    return ApiError(500, f"internal error: {kind}; see the log", closing)


def _cut(message: str) -> str:
    """Shorten a message, which may repeat what the client has sent."""
    if len(message) <= _MESSAGE:
        return message
    return message[: _MESSAGE - 1] + "…"


def _describe(error: RequestValidationError) -> str:
    return describe_errors([{**e, "loc": e["loc"][1:]} for e in error.errors()])


def _add_errors(app: FastAPI) -> None:
    async def answer(request: Request, error: Exception) -> Response:
        return error_response(as_api_error(error), request.scope["request_id"])

    for kind in (
        MemoryError,
        MlxlabError,
        ApiError,
        QueueFullError,
        RequestValidationError,
        HTTPException,
        Exception,
    ):
        app.add_exception_handler(kind, answer)
