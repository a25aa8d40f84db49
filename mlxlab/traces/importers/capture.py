"""Plain captures of HTTP requests, one JSON object per line.

``{"t", "method", "path", "headers", "body"}``, where ``body`` is the decoded
request or null; a ``response`` (the decoded answer) may follow.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from pydantic import BaseModel, ConfigDict, ValidationError
from tqdm.auto import tqdm

from mlxlab.content import open_content
from mlxlab.errors import TraceError
from mlxlab.traces.importers.base import IMPORTERS, Importer, Selection
from mlxlab.traces.importers.files import bytes_bar, find_sources, peek
from mlxlab.traces.importers.tally import Tally
from mlxlab.traces.redaction import kept_headers, kept_path
from mlxlab.traces.schema import Json, Seconds, decode
from mlxlab.traces.trace import Exchange, Response

__all__ = ["Capture"]


class _Captured(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)

    t: Seconds
    method: str
    path: str
    headers: dict[str, str] = {}
    body: dict[str, Json] | None = None
    response: dict[str, Json] | None = None


@IMPORTERS.register
class Capture(Importer):
    """A capture is one file; a damaged line is an error.

    Of a response only the message is known, so its time is the request's.
    """

    name = "capture"
    summary = "HTTP requests, one object {t, method, path, headers, body} per line"

    def recognizes(self, path: Path) -> bool:
        return any({"t", "method", "path"} <= line.keys() for line in peek(path)[:1])

    def exchanges(
        self, path: Path, selection: Selection, tally: Tally, *, progress: bool
    ) -> list[Exchange]:
        if path.is_dir():
            raise TraceError(f"{path}: a folder; give a capture (.jsonl)")
        try:
            with bytes_bar(find_sources(path, "", tally), progress) as bar:
                return [_exchange(line, tally) for line in _captured(path, bar)]
        except OSError as error:
            raise TraceError(f"{path}: {error.strerror}; give a capture") from None


def _captured(path: Path, bar: tqdm[NoReturn]) -> Iterator[_Captured]:
    number = 0
    with open_content(path) as lines:
        for number, line in enumerate(lines, start=1):
            bar.update(len(line))
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
    problem = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    return f"not JSON ({problem}); accepted: one object per line"


def _exchange(request: _Captured, tally: Tally) -> Exchange:
    answer = tally.cleaned(request.response)
    return Exchange(
        0,
        request.t,
        request.method.upper(),
        kept_path(request.path),
        kept_headers(request.headers),
        tally.cleaned(request.body),
        Response(request.t, 200, 0.0, answer) if answer is not None else None,
    )
