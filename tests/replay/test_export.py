"""Exported hashes show repetition and hold no text."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxlab.errors import MlxlabError, TraceError
from mlxlab.replay.export import export_trace
from mlxlab.traces import Trace, write_trace
from mlxlab.traces.open import read_trace
from tests.support.exchanges import small_trace


def test_a_trace_is_given_as_an_object_a_path_or_a_name(tmp_path: Path) -> None:
    trace = small_trace()
    write_trace(trace, tmp_path / "small.jsonl")
    given: list[Trace | Path] = [trace, tmp_path / "small.jsonl"]
    written = [
        export_trace(one, tmp_path / f"{i}.jsonl", salt="s", progress=False)
        for i, one in enumerate(given)
    ]
    # The header holds the time of writing.
    first, second = (hashed.path.read_text().split("\n")[1:] for hashed in written)
    assert first == second
    named = export_trace("deferred", tmp_path / "d.jsonl.gz", progress=False)
    assert len(list(named)) == 5


def test_the_written_trace_is_returned(tmp_path: Path) -> None:
    trace = small_trace()
    hashed = export_trace(trace, tmp_path / "h.jsonl", progress=False)
    assert (hashed.name, hashed.unit) == ("h", 64)
    assert hashed.digest == read_trace(tmp_path / "h.jsonl").digest
    assert len(list(hashed)) == len(trace.inference)
    assert next(iter(hashed)).session == "1"


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no trace 'nope'"):
        export_trace("nope", tmp_path / "h.jsonl")
    with pytest.raises(MlxlabError, match="unknown model 'nope'"):
        export_trace(small_trace(), tmp_path / "h.jsonl", model="nope")
    assert not (tmp_path / "h.jsonl").exists()
