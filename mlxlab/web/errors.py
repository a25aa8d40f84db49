"""Errors in the shape that clients of the Messages API expect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from starlette.responses import JSONResponse

__all__ = ["ApiError", "error_response", "new_request_id"]

_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
#: Seconds after which a client may retry an "overloaded" request.
_RETRY_AFTER_S = 5


class ApiError(Exception):
    """A request that is answered with an error.

    Args:
        status: status of the HTTP response, which decides the error's type. Unlisted
            statuses are an ``invalid_request_error`` below 500, else an ``api_error``.
        message: one line for the client's user.
        headers: more headers of the response. 529 always has ``retry-after``.
    """

    def __init__(
        self, status: int, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        retry = {"retry-after": str(_RETRY_AFTER_S)} if status == 529 else {}
        self.headers: Mapping[str, str] = {**retry, **(headers or {})}

    @property
    def kind(self) -> str:
        """The API's name for this type of error."""
        general = "invalid_request_error" if self.status < 500 else "api_error"
        return _KINDS.get(self.status, general)

    @property
    def error(self) -> dict[str, str]:
        """Type and message, as in a stream's ``error`` event."""
        return {"type": self.kind, "message": self.message}

    def body(self, request_id: str) -> dict[str, Any]:
        """Return the JSON object of the response."""
        return {"type": "error", "error": self.error, "request_id": request_id}


def error_response(error: ApiError, request_id: str) -> JSONResponse:
    """Return the response to a request that failed before its answer began."""
    headers = {**error.headers, "request-id": request_id}
    return JSONResponse(error.body(request_id), error.status, headers)


def new_request_id() -> str:
    """Return a new request id. Ids from clients are never used."""
    return f"req_{uuid4().hex[:24]}"
