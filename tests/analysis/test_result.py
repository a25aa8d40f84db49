"""Every verb returns one kind of object, which is shown, stored and read alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure

import mlxlab as ml
from mlxlab.analysis.calibration import Calibration
from mlxlab.errors import MlxlabError, StrategyError
from mlxlab.files import read_json, write_json
from mlxlab.replay.bounds import BOUNDS, STORING
from mlxlab.replay.cost_model import CostModel
from mlxlab.replay.decoding_costs import Decoding
from mlxlab.replay.specs import SpecLike, StrategySpec
from mlxlab.traces import Trace
from tests.replay.test_cost_model import fitted
from tests.strategies.test_registry import HeadOnly
from tests.support.exchanges import small_trace

#: A name that is markup for a browser and for rich.
MARKUP = "<script>alert(1)</script>[red]&"


def traced() -> Trace:
    return small_trace(MARKUP)


MAKERS: dict[str, Callable[[], ml.Result]] = {
    "compare": lambda: ml.compare(
        traced(), ["prefix@none", "paged"], simulate=True, progress=False
    ),
    "misses": lambda: ml.misses(traced(), "prefix@none", progress=False),
    "fidelity": lambda: ml.fidelity(
        traced(),
        ["paged:block=16", "suffix-naive:block=16"],
        edits="shift-16",
        quantized=(),
        tokens=4,
        greedy=2,
        floor_chunk=64,
        progress=False,
    ),
    "sweep": lambda: ml.sweep(
        traced(),
        ["prefix", "paged"],
        capacities=["256KiB", "1MiB"],
        scheduler="here",
        progress=False,
    ),
    "tune": lambda: ml.tune(traced(), memory="1MiB", trials=6, progress=False),
    "plan": lambda: ml.plan(traced(), most=2, costs=decoding(), progress=False),
    "evictions": lambda: ml.evictions(
        traced(), memory="256KiB", policies=["residual"], progress=False
    ),
    "calibrate": lambda: Calibration.of(
        fitted(),
        replace(ml.find_model(), name=MARKUP),
        {"device": "d", "blas": "b", "chunk": 1000},
    ),
}

COLUMNS = [
    "bound",
    "memory",
    "prompt_tokens",
    "reused_tokens",
    "reused",
    "ttft_mean_s",
    "ttft_median_s",
]


def decoding() -> CostModel:
    decode = Decoding(step=0.02, row=0.01, token=0.0, padded=0.0)
    return fitted().model_copy(update={"decode": decode})


every_verb = pytest.mark.parametrize("verb", MAKERS)


@cache
def made(verb: str) -> ml.Result:
    return MAKERS[verb]()


@every_verb
def test_every_verb_returns_a_result_with_all_members(verb: str) -> None:
    result = made(verb)
    assert isinstance(result, ml.Result)
    assert result.kind == verb
    assert len(result.requests)
    assert len(result.summary())
    assert isinstance(result.plot(), Figure)
    assert result.manifest["model"]["digest"] == ml.find_model().digest
    assert MARKUP in result.title
    assert all(isinstance(note, str) for note in result.notes)


@every_verb
def test_bounds_have_the_same_columns_everywhere(verb: str) -> None:
    bounds = made(verb).bounds
    assert [c for c in bounds if c != "users"] == COLUMNS
    assert set(bounds.bound) <= {*BOUNDS, STORING}
    assert (bounds.reused == bounds.reused_tokens / bounds.prompt_tokens).all()
    anywhere = bounds.bound == "position_independent"
    assert bounds.memory[anywhere].isna().all()
    assert bounds.memory[~anywhere].notna().all()


@every_verb
@pytest.mark.parametrize("name", ["result.json", "result.json.gz"])
def test_a_written_result_can_be_read(verb: str, name: str, tmp_path: Path) -> None:
    result = made(verb)
    result.to_json(tmp_path / name)
    for read in (
        ml.read_result(tmp_path / name),
        type(result).read_json(tmp_path / name),
    ):
        assert type(read) is type(result)
        assert read.manifest == result.manifest
        for field in fields(result):
            value = getattr(result, field.name)
            if isinstance(value, pd.DataFrame):
                other = getattr(read, field.name)
                pd.testing.assert_frame_equal(other, value, rtol=1e-5, atol=0)
        assert repr(read) == repr(result)
        assert len(read.summary()) == len(result.summary())


@every_verb
def test_no_frame_carries_attributes(verb: str) -> None:
    result = made(verb)
    values = [getattr(result, field.name) for field in fields(result)]
    assert all(not v.attrs for v in values if isinstance(v, pd.DataFrame))


class Tags(HTMLParser):
    """Collects tags and text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@every_verb
def test_a_browser_sees_text_where_a_trace_holds_markup(verb: str) -> None:
    parser = Tags()
    parser.feed(made(verb)._repr_html_())
    assert MARKUP in parser.text
    assert "script" not in parser.tags
    assert parser.tags.count("table") == len(made(verb).tables())


@every_verb
def test_a_terminal_sees_the_title_and_tables_of_100_columns(verb: str) -> None:
    result = made(verb)
    text = repr(result)
    assert text.startswith(result.title)
    assert "…" not in text
    tables = text.removeprefix("\n".join([result.title, *result.lines()]))
    for note in result.notes:
        tables = tables.replace(note, "")
    assert max(map(len, tables.splitlines())) <= 100


@every_verb
def test_the_same_result_is_shown_the_same(
    verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = made(verb)
    before = repr(result), result._repr_html_()
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert (repr(result), result._repr_html_()) == before
    assert "\x1b" not in before[0]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({}, "no result in it"),
        ({"kind": "nope"}, "no result in it"),
        ({"kind": "compare", "manifest": {}, "types": {}}, "no result in it"),
        ({"kind": "tune", "types": {"requests": 1}, "manifest": {}}, "no result in it"),
    ],
)
def test_a_file_of_something_else_is_refused(
    content: dict[str, object], says: str, tmp_path: Path
) -> None:
    write_json(content, tmp_path / "other.json")
    with pytest.raises(MlxlabError, match=says):
        ml.read_result(tmp_path / "other.json")


def test_a_result_of_another_verb_is_refused(tmp_path: Path) -> None:
    made("misses").to_json(tmp_path / "misses.json")
    with pytest.raises(MlxlabError, match="of mlxlab misses; give one of tune"):
        ml.Tuning.read_json(tmp_path / "misses.json")


def test_a_summary_is_written_for_others_to_read(tmp_path: Path) -> None:
    result = made("compare")
    result.to_json(tmp_path / "compare.json")
    rows = read_json(tmp_path / "compare.json")["summary"]
    assert [row["strategy"] for row in rows] == ["prefix@none", "paged"]
    assert rows[1]["reused"] == pytest.approx(result.summary().reused["paged"], 1e-5)


def test_a_class_of_ones_own_stands_beside_names() -> None:
    """Registered or not; processes of a sweep get the class itself."""
    settings: dict[str, Any] = {"progress": False}
    mixed: list[SpecLike] = [
        HeadOnly,
        "paged@none",
        StrategySpec.parse("paged:block=16"),
    ]
    names = ["head-only", "paged@none", "paged:block=16"]
    compared = ml.compare(small_trace(), mixed, simulate=True, **settings)
    assert list(compared.summary().index) == names
    swept = ml.sweep(small_trace(), mixed, scheduler="here", **settings)
    assert swept.requests.strategy.tolist() == names
    totals = compared.requests.groupby("strategy", sort=False).reused_tokens.sum()
    assert swept.requests.reused_tokens.tolist() == totals.tolist()
    missed = ml.misses(small_trace(), HeadOnly, **settings)
    assert missed.strategy == "head-only"
    assert missed.requests.reused_tokens.sum() == totals["head-only"]
    with pytest.raises(StrategyError, match="no strategy 'head-only'"):
        ml.compare(small_trace(), "head-only", simulate=True, **settings)
