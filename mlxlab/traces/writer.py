"""Writes traces: line by line while recording, or whole and at once.

What a trace must not hold is left out here, so that no way of writing avoids it.
Knows nothing of HTTP.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Self, TypeVar

from tqdm.auto import tqdm

from mlxlab.errors import TraceError
from mlxlab.files import create, written
from mlxlab.traces.dedup import split
from mlxlab.traces.id_redaction import Tokenizers, find_tokenizer
from mlxlab.traces.redaction import Redactor, kept_headers, kept_path
from mlxlab.traces.schema import HeaderLine, Json, body_hash, check_depth, encode
from mlxlab.traces.trace import Exchange, Response, Trace

__all__ = ["TraceWriter", "write_trace"]

T = TypeVar("T")

log = logging.getLogger(__name__)


class TraceWriter:
    """Appends exchanges to a new trace file as they happen.

    Each record is one write and one fsync, so a crash loses at most the last one.
    Thread-safe. The file is readable by its owner only.

    Args:
        path: must not exist, but for a pipe or a device.
        notes: further keys of the first line, such as the client's version.
        tokenizers: by which generated ids are read, to find secrets in them.

    Raises:
        TraceError: the file exists or cannot be created.
    """

    def __init__(
        self,
        path: str | Path,
        notes: Mapping[str, Json] | None = None,
        tokenizers: Tokenizers = find_tokenizer,
    ) -> None:
        self.path = Path(path)
        self._lock = Lock()
        self._lines = _Lines(tokenizers)
        self._next = 0
        header = HeaderLine.model_validate(notes or {})
        self._is_new = not self.path.exists()
        self._descriptor = _create(self.path)
        self._append(lambda: self._lines.header(header))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        with self._lock:
            self._close()

    def discard(self) -> None:
        """Close the file and remove it, unless it was there before, as a pipe is."""
        self.close()
        if self._is_new:
            self.path.resolve().unlink()

    @property
    def is_open(self) -> bool:
        """Whether more can be recorded; not after the disk has refused a line."""
        return self._descriptor >= 0

    @property
    def requests(self) -> int:
        """Requests written so far."""
        return self._next

    @property
    def secrets(self) -> int:
        """Secrets replaced so far."""
        return self._lines.secrets

    def request(
        self,
        *,
        t: float,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: dict[str, Json] | None,
    ) -> int:
        """Record a request and return the id that its response is to carry.

        Raises:
            TraceError: it cannot be written as JSON, or the disk refused it.
        """
        with self._lock:
            exchange = Exchange(self._next, t, method, path, headers, body)
            self._append(lambda: self._lines.request(exchange))
            self._next += 1
            return exchange.id

    def response(self, id: int, response: Response) -> None:
        """Record the answer to request ``id``.

        Raises:
            TraceError: it cannot be written as JSON, or the disk refused it.
        """
        with self._lock:
            self._append(lambda: self._lines.response(id, response))

    def _append(self, make: Callable[[], bytes]) -> None:
        if self._descriptor < 0:
            raise TraceError(f"{self.path}: closed; give a new file to record into")
        with _one_line(self.path):
            data = make()
        end = os.fstat(self._descriptor).st_size
        try:
            _write(self._descriptor, data)
        except OSError as error:
            # What was half written would damage the middle of the file.
            with suppress(OSError):  # a pipe has no end to go back to
                os.ftruncate(self._descriptor, end)
            self._close()
            raise TraceError(
                f"{self.path}: {error.strerror}; {self._next} requests are in it"
            ) from None

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def write_trace(trace: Trace, path: str | Path, *, progress: bool = False) -> None:
    """Write a whole trace; ``path`` is replaced at once or stays as it was.

    Args:
        trace: what to write.
        path: the file, a pipe or a device; see :func:`mlxlab.files.written`.
        progress: whether to show a bar.

    Raises:
        TraceError: it cannot be written.
    """
    path = Path(path)
    with _one_line(path), written(path) as file:
        lines = _Lines(holds=True)
        file.write(lines.header(trace.header))
        exchanges = tqdm(trace.exchanges, desc="writing", disable=not progress)
        file.writelines(map(lines.exchange, exchanges))


class _Lines:
    """Encodes exchanges; remembers what earlier lines hold.

    Args:
        tokenizers: see :class:`TraceWriter`.
        holds: whether to keep hold of bodies, so that one that is the same object in
            many requests is hashed once. Only where they stay in memory anyway.
    """

    def __init__(
        self, tokenizers: Tokenizers = find_tokenizer, *, holds: bool = False
    ) -> None:
        self.secrets = 0
        self._tokenizers = tokenizers
        self._holds = holds
        self._held: dict[int, tuple[Json, str]] = {}  # by id(): body, hash as stored
        self._names: dict[str, str] = {}  # hash as sent -> hash as stored
        self._stored: set[str] = set()
        self._lists: dict[tuple[str, str], tuple[int, list[str]]] = {}

    def header(self, header: HeaderLine) -> bytes:
        unsaid = {key for key in ("skipped", "filled") if not getattr(header, key)}
        return _line(self._clean(header.model_dump(exclude=unsaid)))

    def exchange(self, exchange: Exchange) -> bytes:
        answer = exchange.response
        lines = self.request(exchange)
        return lines + self.response(exchange.id, answer) if answer else lines

    def request(self, exchange: Exchange) -> bytes:
        line: dict[str, Json] = {
            "kind": "request",
            "id": exchange.id,
            "t": exchange.t,
            "method": self._clean(exchange.method),
            "path": self._clean(kept_path(exchange.path)),
            "headers": self._clean(kept_headers(exchange.headers)),
        }
        if exchange.body is None:
            return _line(line)
        parts = split(exchange.body)
        named = {key: self._named(items) for key, items in parts.lists.items()}
        line["params"] = self._clean(dict(parts.params))
        line |= {key: self._short(key, names) for key, (names, _) in named.items()}
        if parts.cache_control:
            line["cache_control"] = self._clean(list(map(list, parts.cache_control)))
        fresh = {k: v for _, bodies in named.values() for k, v in bodies.items()}
        data = b"".join([*fresh.values(), _line(line)])
        self._remember(exchange.id, fresh, {k: v for k, (v, _) in named.items()})
        return data

    def response(self, id: int, response: Response) -> bytes:
        response = self._redacted(lambda redactor: redactor.clean_response(response))
        line: dict[str, Json] = {
            "kind": "response",
            "id": id,
            "t": response.t,
            "status": response.status,
            "first_byte_s": response.first_byte_s,
        }
        if response.message is not None:
            line["message"] = response.message
        if response.script:
            line["script"] = True
        if response.generated:
            line["generated"] = response.generated.to_json()
        if response.configuration:
            line["configuration"] = response.configuration.model_dump(mode="json")
        if response.order:
            line["order"] = response.order.model_dump(mode="json")
        if response.told:
            line["told"] = response.told.to_json()
        if response.timing:
            line["timing"] = response.timing.model_dump(mode="json")
        return _line(line)

    def _named(self, items: Json) -> tuple[str | list[str], dict[str, bytes]]:
        """Names for bodies, and lines for those that are not stored yet."""
        fresh: dict[str, bytes] = {}
        if isinstance(items, str):
            return self._name(items, fresh), fresh
        return [self._name(body, fresh) for body in items], fresh

    def _name(self, body: Json, fresh: dict[str, bytes]) -> str:
        if id(body) in self._held:
            return self._held[id(body)][1]
        sent = body_hash(body)
        known = self._names.get(sent)
        if known is None or not (known in self._stored or known in fresh):
            clean = self._clean(body)
            known = sent if clean is body else body_hash(clean)
            self._names[sent] = known
            if known not in self._stored:
                line = {"kind": "body", "hash": known, "body": clean}
                fresh.setdefault(known, _line(line))
        if self._holds:
            self._held[id(body)] = body, known
        return known

    def _short(self, key: str, names: str | list[str]) -> Json:
        """The names, those shared with an earlier list of the same start as a run."""
        if isinstance(names, str) or not names:
            return names
        id, earlier = self._lists.get((key, names[0]), (0, []))
        count = _shared(earlier, names)
        return [[id, count], *names[count:]] if count > 1 else names

    def _remember(
        self, id: int, fresh: Mapping[str, bytes], named: Mapping[str, str | list[str]]
    ) -> None:
        self._stored.update(fresh)
        for key, names in named.items():
            if isinstance(names, list) and names:
                self._lists[key, names[0]] = (id, names)

    def _clean(self, value: Json) -> Json:
        return self._redacted(lambda redactor: redactor.clean(value))

    def _redacted(self, clean: Callable[[Redactor], T]) -> T:
        redactor = Redactor(self._tokenizers)
        value = clean(redactor)
        if found := len(redactor.secrets):
            self.secrets += found
            log.warning("%d secrets replaced in a recorded body", found)
        return value


def _line(value: Json) -> bytes:
    """Return a line that can be read again."""
    check_depth(value)
    return encode(value) + b"\n"


def _shared(a: list[str], b: list[str]) -> int:
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def _create(path: Path) -> int:
    try:
        return create(path)
    except FileExistsError:
        raise TraceError(f"{path}: exists; give the name of a new file") from None
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}; give a new file") from None


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.fsync(descriptor)


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    try:
        yield
    except RecursionError:
        raise TraceError(f"{path}: a body is nested too deeply to write") from None
    except ValueError as error:
        raise TraceError(f"{path}: {error}; give JSON values") from None
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}; give a file to write") from None
