"""Imports plain captures of HTTP requests, one JSON object a line.

``{"t", "method", "path", "headers", "body"}``, where ``body`` is the decoded
request or null; a ``response`` (the decoded answer) may follow. Knows nothing of
the form in which traces are stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from mlxlab.errors import TraceError
from mlxlab.traces.redaction import kept_headers, kept_path, redacted
from mlxlab.traces.schema import HeaderLine, Json, decode
from mlxlab.traces.trace import Exchange, Response, Trace

__all__ = ["import_capture"]


class _Captured(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)

    t: float
    method: str
    path: str
    headers: dict[str, str] = {}
    body: dict[str, Json] | None = None
    response: dict[str, Json] | None = None


def import_capture(path: str | Path) -> Trace:
    """Read a capture; requests are numbered in the order of their arrival.

    Credentials and obvious secrets are left out. Of a response only the message
    is known: its time is the request's.

    Raises:
        TraceError: no such file, or a line that is no captured request.
    """
    path = Path(path)
    if path.is_dir():
        raise TraceError(f"{path}: a folder; give a capture (.jsonl)")
    try:
        captured = sorted(_captured(path), key=lambda request: request.t)
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}; give a capture") from None
    exchanges = tuple(_exchange(id, request) for id, request in enumerate(captured))
    notes = {"imported": "capture"}
    return Trace(path.stem, exchanges, HeaderLine.model_validate(notes))


def _captured(path: Path) -> Iterator[_Captured]:
    number = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield _Captured.model_validate(decode(line))
            except (ValueError, RecursionError) as error:
                raise TraceError(f"{path}:{number}: {_reason(error)}") from None
    if number == 0:
        raise TraceError(f"{path}: empty; give one captured request per line")


def _reason(error: ValueError | RecursionError) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_context=False)[0]
        at = ".".join(map(str, first["loc"])) or "line"
        return f"{at}: {first['msg']}; accepted: t, method, path, headers, body"
    what = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    return f"not JSON ({what}); accepted: one object per line"


def _exchange(id: int, request: _Captured) -> Exchange:
    body, _ = redacted(request.body)
    answer, _ = redacted(request.response)
    return Exchange(
        id,
        request.t,
        request.method.upper(),
        kept_path(request.path),
        kept_headers(request.headers),
        body,
        Response(request.t, 200, 0.0, answer) if answer is not None else None,
    )
