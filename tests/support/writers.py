"""Everything that writes files, in a loop that may be killed at any moment.

``python -m tests.support.writers`` forks a writer for each JSON line on its input: its
name, the first number, the folder. The writer prints its process id, then each number
when it is written.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from mlxlab.analysis.fidelity.store import known, remember
from mlxlab.analysis.plots.picture import Picture
from mlxlab.analysis.sweep import Sweep, sweep
from mlxlab.client.discovery import Endpoint, publish, running
from mlxlab.files import read_json, replaced_folder, write_json
from mlxlab.models.folder import find_model
from mlxlab.models.layout import CacheLayout
from mlxlab.models.layout_record import LayoutRecord, keep_record, recall_record
from mlxlab.replay.cost_model import CostModel, Machine, Point, remember_costs
from mlxlab.traces import Response, read_trace, write_trace
from mlxlab.traces.hashed.file import HashedFile, Hasher, write_hashed
from mlxlab.traces.writer import TraceWriter
from tests.support.exchanges import small_trace
from tests.support.measured import sample_fidelity

__all__ = ["WRITERS", "Writer", "calibration", "swept"]

Run: TypeAlias = Callable[[Path, int], Iterator[int]]


@dataclass(frozen=True)
class Writer:
    """One way to write.

    Attributes:
        run: writes numbers into a folder, one after the other from the given one, and
            yields each that is written.
        found: returns the numbers in the folder; fails where anything is not whole.
        adds: whether earlier numbers stay, or each replaces the one before.
    """

    run: Run
    found: Callable[[Path], set[int]]
    adds: bool = False


def _each(write: Callable[[Path, int], object]) -> Run:
    def run(folder: Path, start: int) -> Iterator[int]:
        for number in count(start):
            write(folder, number)
            yield number

    return run


def _only(numbers: list[int], length: int) -> set[int]:
    """Return the one number of a whole file."""
    assert len(numbers) == length
    assert len(set(numbers)) == 1
    return set(numbers)


def _write_trace(folder: Path, number: int) -> None:
    trace = small_trace()
    exchanges = tuple(replace(own, t=float(number)) for own in trace.exchanges)
    write_trace(replace(trace, exchanges=exchanges), folder / "out.jsonl")


def _read_trace(folder: Path) -> set[int]:
    trace = read_trace(folder / "out.jsonl")
    assert not trace.skipped
    return _only([int(own.t) for own in trace.exchanges], len(small_trace().exchanges))


def _write_hashed(folder: Path, number: int) -> None:
    hasher, tokens = Hasher(64, b"salt"), np.arange(2000, dtype=np.int32)
    requests = (
        hasher.request(
            float(i), tokens[: 10 * i + 10], tokens[:0], [], session=str(number)
        )
        for i in range(200)
    )
    write_hashed(folder / "out.jsonl.gz", hasher, requests, {})


def _read_hashed(folder: Path) -> set[int]:
    requests = HashedFile().open(folder / "out.jsonl.gz")
    return _only([int(own.session or 0) for own in requests], 200)


def _write_json(folder: Path, number: int) -> None:
    write_json({"numbers": [number] * 5000}, folder / "out.json")


def _read_json(folder: Path) -> set[int]:
    return _only(read_json(folder / "out.json")["numbers"], 5000)


class _Drawn(Picture):
    """A picture that takes no time to draw."""

    number = 0

    def to_svg(self, salt: str = "") -> str:
        return f"<svg>{self.number}" + f"<path/>{self.number}" * 4999 + "</svg>"


def _write_plot(folder: Path, number: int) -> None:
    picture = _Drawn()
    picture.number = number
    picture.save(folder / "plots/out.svg")


def _read_plot(folder: Path) -> set[int]:
    text = (folder / "plots/out.svg").read_text()
    begun, _, rest = text.rpartition("</style>")
    assert (begun.startswith("<svg>"), rest.endswith("</svg>")) == (True, True)
    return _only(list(map(int, rest.removesuffix("</svg>").split("<path/>"))), 5000)


def calibration(chunk: int) -> CostModel:
    """Return a calibration for chunks of that size."""
    point = Point(start=0, stop=10, restore_s=0.0, prefill_s=1.0)
    return CostModel(
        model="digest",
        machine=replace_chunk(chunk),
        device="d",
        blas="b",
        day=date(2026, 1, 2),
        prefill=(1.0,) * 6,
        restore=(1.0,) * 2,
        points=(point,),
    )


@cache
def _here() -> Machine:
    return Machine.here(1)


def replace_chunk(chunk: int) -> Machine:
    """Return this machine with chunks of that size."""
    return _here().model_copy(update={"chunk": chunk})


def _caches(folder: Path) -> Path:
    """Make a folder the user's home and its cache, and return mlxlab's part."""
    os.environ["XDG_CACHE_HOME"] = os.environ["HOME"] = str(folder)
    return folder / "mlxlab"


def _write_calibration(folder: Path, number: int) -> None:
    _caches(folder)
    remember_costs(calibration(number + 1))


def _read_calibration(folder: Path) -> set[int]:
    kept = read_json(_caches(folder) / "calibration/digest.json")["calibrations"]
    return {CostModel.model_validate(own).machine.chunk - 1 for own in kept}


@cache
def _digest() -> str:
    return find_model().digest


def _write_fidelity(folder: Path, number: int) -> None:
    _caches(folder)
    remember(sample_fidelity(f"suffix:run={number + 1}"))


def _read_fidelity(folder: Path) -> set[int]:
    _caches(folder)
    own = [record for record in known(_digest()) if record.traces == ("one", "two")]
    runs = [record.key.parameters["run"] for record in own]
    return {run - 1 for run in runs if isinstance(run, int)}


def _write_layout(folder: Path, number: int) -> None:
    _caches(folder)
    layout = CacheLayout.plain(number + 1)
    keep_record(LayoutRecord.of(layout, "model"), "digest")


def _read_layout(folder: Path) -> set[int]:
    _caches(folder)
    kept = recall_record("digest")
    assert kept is not None
    return {kept.require("model").token_bytes() - 1}


def _write_endpoint(folder: Path, number: int) -> None:
    aliases = (str(number),) * 1000
    publish(Endpoint("http://localhost:1", "token", 1, aliases), folder)


def _read_endpoint(folder: Path) -> set[int]:
    # Of a process that runs, so that what a killed one has published stays.
    (path,) = folder.glob("[0-9]*.json")
    content: dict[str, Any] = read_json(path) | {"pid": os.getpid()}
    write_json(content, path)
    (endpoint,) = running(folder)
    return _only(list(map(int, endpoint.aliases)), 1000)


def _write_folder(folder: Path, number: int) -> None:
    with replaced_folder(folder / str(number)) as part:
        for name in range(4):
            (part / str(name)).write_text(str(number))


def _read_folder(folder: Path) -> set[int]:
    numbers = {int(own.name) for own in folder.glob("[0-9]*")}
    for number in numbers:
        texts = [own.read_text() for own in (folder / str(number)).iterdir()]
        assert texts == [str(number)] * 4
    return numbers


def _record(folder: Path, start: int) -> Iterator[int]:
    with TraceWriter(folder / f"{start}.jsonl") as writer:
        for number in count(start):
            body = {"messages": [{"role": "user", "content": f"{number} " * 2000}]}
            id = writer.request(
                t=1.0, method="POST", path="/v1/messages", headers={}, body=body
            )
            writer.response(
                id, Response(float(number), 200, 0.1, {"role": "assistant"})
            )
            yield number


def _read_records(folder: Path) -> set[int]:
    return {
        int(own.response.t)
        for path in folder.glob("[0-9]*.jsonl")
        if path.read_bytes().count(b"\n")  # else killed before anything was recorded
        for own in read_trace(path).exchanges
        if own.response
    }


def swept(folder: Path | None) -> Sweep:
    """Return a small sweep that keeps its results in a folder."""
    return sweep(
        small_trace(),
        "prefix,paged:block=16",
        capacities=["64KiB", "1MiB"],
        users=(1, 2),
        folder=folder,
        scheduler="here",
        progress=False,
    )


def _sweep(folder: Path, start: int) -> Iterator[int]:
    for number in count(start):
        swept(folder / str(number))
        yield number


@cache
def _figures(folder: Path | None) -> str:
    content = swept(folder).to_dict()
    return json.dumps({key: content[key] for key in ("requests", "bounds", "summary")})


def _read_sweeps(folder: Path) -> set[int]:
    """Continue all sweeps; those that are not as if never stopped are not found."""
    paths = folder.glob("[0-9]*")
    return {int(path.name) for path in paths if _figures(path) == _figures(None)}


WRITERS: dict[str, Writer] = {
    "trace": Writer(_each(_write_trace), _read_trace),
    "hashed trace": Writer(_each(_write_hashed), _read_hashed),
    "JSON report": Writer(_each(_write_json), _read_json),
    "plot": Writer(_each(_write_plot), _read_plot),
    "recording": Writer(_record, _read_records, adds=True),
    "calibration": Writer(_each(_write_calibration), _read_calibration, adds=True),
    "fidelity": Writer(_each(_write_fidelity), _read_fidelity, adds=True),
    "layout": Writer(_each(_write_layout), _read_layout),
    "endpoint": Writer(_each(_write_endpoint), _read_endpoint),
    "model folder": Writer(_each(_write_folder), _read_folder, adds=True),
    "sweep": Writer(_sweep, _read_sweeps, adds=True),
}


def _write(name: str, start: int, folder: str) -> None:
    print(os.getpid(), flush=True)
    for number in WRITERS[name].run(Path(folder), start):
        os.write(1, f"{number}\n".encode())  # at once, or not at all


if __name__ == "__main__":
    for line in sys.stdin:
        if pid := os.fork():
            os.waitpid(pid, 0)
            print("gone", flush=True)
        else:
            _write(*json.loads(line))
