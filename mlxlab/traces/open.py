"""Opens whatever can be replayed, by what is in it: recorded and hashed traces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mlxlab.errors import TraceError
from mlxlab.files import unpacked
from mlxlab.traces.bundled import bundled_traces, load_trace
from mlxlab.traces.hashed.file import open_hashed
from mlxlab.traces.hashed.mooncake import open_mooncake
from mlxlab.traces.hashed.trace import HashedTrace
from mlxlab.traces.hashed.weka import open_weka
from mlxlab.traces.trace import Trace

__all__ = ["is_hashed", "open_trace", "open_traces"]

#: What a hashed trace has near its beginning, and who opens it.
_SIGNS = {
    b'"kind":"hashed"': open_hashed,
    b'"input_length"': open_mooncake,
    b'"block_size"': open_weka,
}
_HEAD = 1 << 14


def open_traces(names: Iterable[str | Path]) -> list[Trace | HashedTrace]:
    """Traces by name or path; a folder stands for all trace files in it.

    Raises:
        TraceError: as :func:`open_trace`, or a folder without one.
    """
    return [open_trace(path) for name in names for path in _files(name)]


def open_trace(name: str | Path) -> Trace | HashedTrace:
    """A trace by the name of a recorded one or the path of a file.

    Raises:
        TraceError: no such file, or it cannot be read.
    """
    if str(name) in bundled_traces():
        return load_trace(name)
    opened = _opener(Path(name))
    return opened(Path(name)) if opened else load_trace(name)


def is_hashed(path: Path) -> bool:
    """Whether a file is a hashed trace, by how it begins."""
    return _opener(path) is not None


def _opener(path: Path) -> Callable[[Path], HashedTrace] | None:
    head = _head(path).replace(b" ", b"")
    return next((opened for sign, opened in _SIGNS.items() if sign in head), None)


def _files(name: str | Path) -> Iterator[str | Path]:
    if str(name) in bundled_traces() or not Path(name).is_dir():
        yield name
        return
    files = [*Path(name).glob("*.jsonl"), *Path(name).glob("*.json*.gz")]
    if not files:
        raise TraceError(f"{name}: no trace in it; accepted: .jsonl, .json.gz")
    yield from sorted(files)


def _head(path: Path) -> bytes:
    """The beginning of a file, unpacked; nothing of one that cannot be read."""
    try:
        with unpacked(path) as file:
            return file.read(_HEAD)
    except OSError:
        return b""
