"""Fidelity: what is evaluated, against what, and what the numbers have to be."""

import gzip
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mlxlab.analysis.fidelity.result import Fidelity
from mlxlab.analysis.fidelity.run import fidelity, parse_quantized
from mlxlab.analysis.plots import plot_pareto, save_fidelity_plots
from mlxlab.errors import (
    MlxlabError,
    ModelError,
    RuleError,
    StrategyError,
    TraceError,
)
from mlxlab.models.layout import CacheLayout
from mlxlab.replay.specs import FIDELITY_SPECS, StrategySpec, parse_specs
from mlxlab.traces import Trace
from mlxlab.traces.schema import HeaderLine
from tests.support.exchanges import exchange, small_trace
from tests.support.models import save_model
from training.tasks import TaskWriter

#: The package gives its name to the function in it.
module = import_module("mlxlab.analysis.fidelity.run")

#: Small enough that a short trace reaches every limit.
SMALL = "block=16,run=32,head=0,tail=16,rewritten=0,governing=0"
MOVED, FRESH = (
    StrategySpec.parse(text).name  # parameters in the order of their declaration
    for text in (f"suffix:{SMALL}", f"suffix:{SMALL},recompute=100")
)
PAGED = "paged:block=16"


def evaluated(
    traces: Trace | Sequence[Trace],
    strategies: str,
    edits: str = "none",
    quantized: Sequence[int] = (),
    **options: Any,
) -> Fidelity:
    small: dict[str, Any] = {"tokens": 8, "greedy": 2, "floor_chunk": 64} | options
    return fidelity(
        traces,
        strategies=strategies,
        edits=edits,
        quantized=quantized,
        progress=False,
        **small,
    )


@pytest.fixture(scope="module")
def found() -> Fidelity:
    specs = f"{PAGED},{MOVED},{FRESH},suffix-naive:block=16"
    return evaluated(small_trace(), specs, "shift-16,shift-64", (8, 5, 4, 3), tokens=64)


@pytest.fixture(scope="module")
def summary(found: Fidelity) -> pd.DataFrame:
    return found.summary()


def test_every_edited_request_is_evaluated_and_no_other(found: Fidelity) -> None:
    requests = found.requests
    assert list(requests.edit.unique()) == ["shift-16", "shift-64"]
    counts = requests.groupby(["edit", "request"], sort=False).size()
    assert list(counts.index) == [
        (edit, request) for edit in ("shift-16", "shift-64") for request in (4, 8)
    ]
    assert set(counts) == {10}


def test_baselines_come_first(summary: pd.DataFrame) -> None:
    assert list(summary.index) == [
        "full prefill",
        "noise floor",
        *(f"{bits}-bit weights" for bits in (8, 5, 4, 3)),
        PAGED,
        MOVED,
        FRESH,
        "suffix-naive:block=16",
    ]


def test_positions_are_those_of_the_recorded_answers(found: Fidelity) -> None:
    counts = found.positions.groupby("row").size()
    assert list(counts.index) == list(found.requests.index)
    lengths = counts.groupby(found.requests.request).unique()
    assert all(len(length) == 1 for length in lengths)
    assert not found.positions.surprisal.isna().any()


def test_the_reference_does_not_diverge_from_itself(summary: pd.DataFrame) -> None:
    own = summary.loc["full prefill"]
    assert (own.kld_mean, own.same_top, own.greedy_prefix) == (0, 1, 1)


def test_exact_reuse_and_recomputing_all_land_on_the_noise_floor(
    summary: pd.DataFrame,
) -> None:
    floor = summary.kld_mean["noise floor"]
    assert 0 < floor < 1e-6
    assert summary.kld_mean[PAGED] < 10 * floor
    assert summary.kld_mean[FRESH] < 10 * floor
    assert summary.kld_mean[MOVED] > 1000 * floor
    assert summary.same_top[FRESH] == summary.same_top[PAGED] == 1


def test_fewer_bits_diverge_more(summary: pd.DataFrame) -> None:
    quantized = [f"{bits}-bit weights" for bits in (8, 5, 4, 3)]
    assert summary.kld_mean[quantized].is_monotonic_increasing
    assert summary.kld_mean[quantized[0]] > summary.kld_mean["noise floor"]
    assert summary.same_top[quantized[0]] > summary.same_top[quantized[-1]]
    assert summary.ttft_median_s[quantized].isna().all()


def test_what_the_edit_lost_is_recovered_by_moving_it(
    found: Fidelity, summary: pd.DataFrame
) -> None:
    requests = found.requests
    assert summary.recovered[PAGED] == 0
    assert summary.recovered[FRESH] == 0
    assert 0.5 < summary.recovered[MOVED] <= 1
    assert (requests.recovered_tokens <= requests.lost_tokens).all()
    evaluated = requests[requests.kind == "reference"]
    bounds = found.bounds.set_index("bound")
    assert bounds.reused_tokens["unlimited"] == evaluated.exact_tokens.sum()
    assert bounds.reused_tokens["position_independent"] > evaluated.exact_tokens.sum()
    room = requests.prompt_tokens - requests.exact_tokens
    assert (requests.lost_tokens < room).all()
    # Later requests of a session find their edited predecessor.
    own = requests[requests.variant == PAGED]
    assert 0 < (own.lost_tokens > 0).sum() < len(own)


def test_shifts_are_those_of_the_edits(found: Fidelity) -> None:
    requests = found.requests
    moved = requests[(requests.variant == MOVED) & requests["shift"].notna()]
    near, far = (moved[moved.edit == edit]["shift"] for edit in moved.edit.unique())
    assert 10 < near.min() <= near.max() < 32
    assert 40 < far.min() <= far.max() < 128
    others = requests[requests.kind.isin(["reference", "floor", "quantized", "exact"])]
    assert others["shift"].isna().all()


def test_summary_by_edit_keeps_the_order_of_the_run(found: Fidelity) -> None:
    by_edit = found.summary(("edit", "variant"))
    assert len(by_edit) == 20
    assert list(by_edit.index[:2]) == [
        ("shift-16", "full prefill"),
        ("shift-16", "noise floor"),
    ]
    own = found.requests.query("edit == 'shift-64'").index
    positions = found.positions[found.positions.row.isin(own)].join(
        found.requests.variant, on="row"
    )
    median = positions[positions.variant == MOVED].kld.median()
    assert by_edit.kld_median["shift-64", MOVED] == median


def test_summary_is_that_of_the_rows(found: Fidelity, summary: pd.DataFrame) -> None:
    rows = found.requests[found.requests.variant == MOVED]
    positions = found.positions[found.positions.row.isin(rows.index)]
    own = summary.loc[MOVED]
    assert own.reused == rows.reused_tokens.sum() / rows.prompt_tokens.sum()
    assert own.recovered == rows.recovered_tokens.sum() / rows.lost_tokens.sum()
    assert own.rms_delta_p == pytest.approx(math.sqrt((positions.delta_p**2).mean()))
    # Grouped quantiles interpolate in another order.
    assert own.kld_999 == pytest.approx(positions.kld.quantile(0.999), rel=1e-12)
    assert "task_right" not in summary


def test_json_holds_manifest_summary_and_all_rows(
    found: Fidelity, tmp_path: Path
) -> None:
    found.to_json(tmp_path / "found.json")
    written = json.loads((tmp_path / "found.json").read_text())
    assert list(written) == [
        "kind",
        "manifest",
        "summary",
        "requests",
        "bounds",
        "positions",
        "types",
    ]
    assert len(written["requests"]) == len(found.requests)
    read = pd.DataFrame(written["positions"])
    assert list(read) == list(found.positions)
    kld = found.positions.kld.tolist()
    assert read.kld.tolist() == pytest.approx(kld, rel=1e-4, abs=1e-14)
    manifest = written["manifest"]
    assert manifest["edits"] == ["shift-16", "shift-64"]
    assert manifest["quantized"] == [8, 5, 4, 3]
    assert (manifest["tokens"], manifest["floor_chunk"]) == (64, 64)
    assert manifest["simulated"] is False


@pytest.mark.parametrize("name", ["found.json", "found.json.gz"])
def test_what_is_written_can_be_read_again(
    found: Fidelity, tmp_path: Path, name: str
) -> None:
    found.to_json(tmp_path / name)
    read = Fidelity.read_json(tmp_path / name)
    pd.testing.assert_frame_equal(read.requests, found.requests, rtol=1e-4, atol=1e-14)
    pd.testing.assert_frame_equal(
        read.positions, found.positions, check_dtype=False, rtol=1e-4, atol=1e-14
    )
    assert read.title == found.title
    assert len(plot_pareto(read).axes) == 2


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("none.json", None, "No such file"),
        ("found.json", b"{", "not JSON"),
        ("found.json", b"[]", "no result in it"),
        ("found.json", b'{"requests": [], "positions": 1}', "no result in it"),
        ("found.json.gz", b"plain", "not JSON"),
        (
            "found.json.gz",
            gzip.compress(b"{}" * 99, mtime=0)[:15],
            "not a complete gzip file",
        ),
    ],
)
def test_files_of_something_else_are_refused(
    tmp_path: Path, name: str, data: bytes | None, says: str
) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(MlxlabError, match=says):
        Fidelity.read_json(tmp_path / name)


def test_table_fits_a_hundred_columns(found: Fidelity) -> None:
    table = found.tables()[0]
    widths = [
        max(len(line) for cell in [name, *table[name]] for line in cell.splitlines())
        for name in table
        if table[name].any()
    ]
    assert sum(widths) + len(widths) + 1 <= 100


def test_notebooks_show_title_table_and_notes(found: Fidelity) -> None:
    shown = found._repr_html_()
    assert "4 evaluated, edits: shift-16, shift-64" in shown
    assert ">noise floor</td>" in shown
    assert "BLAS" in shown
    assert "4 evaluated" in repr(found)
    assert max(map(len, repr(found).splitlines())) <= 100


def test_draws_recovery_and_shift(found: Fidelity, tmp_path: Path) -> None:
    written = save_fidelity_plots(found, tmp_path)
    assert [path.name for path in written] == ["pareto.svg", "shift.svg"]
    assert all(path.read_bytes().startswith(b"<svg") for path in written)


def test_without_edits_every_request_is_evaluated(tmp_path: Path) -> None:
    one, two = (small_trace(name) for name in ("one", "two"))
    options: dict[str, Any] = {"tokens": 2, "floor_chunk": 1024}
    found = evaluated([one, two], f"{PAGED}@none,{PAGED}", **options)
    counts = {
        trace: rows.groupby("variant", sort=False).size().to_dict()
        for trace, rows in found.requests.groupby("trace")
    }
    # Baselines answer once under each set of rules.
    expected = {
        "full prefill": 20,
        "noise floor": 20,
        f"{PAGED}@none": 10,
        PAGED: 10,
    }
    assert counts == {"one": expected, "two": expected}
    assert not found.requests.lost_tokens.any()
    assert "recovered" not in found.summary()
    assert save_fidelity_plots(found, tmp_path) == []


def task_trace() -> Trace:
    tasks = TaskWriter(held_out=True).dialogue(5, 300)[:3]
    exchanges = tuple(
        exchange(i, task.request, {"role": "assistant", "content": task.answer})
        for i, task in enumerate(tasks)
    )
    header = HeaderLine.model_validate({"tasks": True})
    return Trace("tasks", exchanges, header)


def test_recorded_answers_to_tasks_are_the_right_ones() -> None:
    found = evaluated(task_trace(), PAGED, greedy=1)
    assert found.requests.task_right.notna().all()
    # Else none that is longer than one token could be right.
    assert (found.requests.greedy_tokens > 1).all()
    assert "task_right" in found.summary()
    # The bundled model does such tasks.
    assert found.requests.task_right.all()
    assert found.requests.answer.str.startswith("<think>").all()
    assert found.requests.answer.str.endswith("<|im_end|>").all()


def test_a_model_of_random_weights_is_warned_of(tmp_path: Path) -> None:
    random = str(save_model(tmp_path / "random"))
    found = evaluated(small_trace(), PAGED, model=random)
    (warning,) = found.manifest["warnings"]
    assert "no better than chance" in warning
    assert "may be random" in warning
    assert warning in found._repr_html_()


def test_a_model_that_does_what_is_asked_is_not_warned_of() -> None:
    assert evaluated(task_trace(), PAGED).manifest["warnings"] == []


def test_bits_that_the_weights_do_not_have_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "mlxlab.analysis.fidelity.evaluator.stored_bits", lambda model: 4
    )
    found = evaluated(small_trace(), PAGED, quantized=(8, 4, 3))
    assert found.manifest["quantized"] == [3]
    assert "quantized: 8, 4 bits left out" in found.manifest["warnings"][-1]


def test_an_edit_that_a_trace_has_no_place_for_is_told() -> None:
    found = evaluated(small_trace(), PAGED, "block-moved,shift-16,shift-16")
    assert len(found.requests) == 2 * 3
    assert set(found.requests.edit) == {"shift-16"}
    assert "trace small: block-moved: not two" in found.manifest["warnings"][-1]


def test_default_specs_hold_the_controls() -> None:
    specs = parse_specs(FIDELITY_SPECS)
    names = [spec.name for spec in specs]
    for spec in specs:
        spec.make(CacheLayout.plain(1))
    assert {"paged", "suffix-naive", "suffix:rotate=no"} < set(names)
    assert "suffix:recompute=15,selection=random" in names
    assert "suffix:recompute=100" in names


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"strategies": "nope"}, StrategyError, "choose from none, prefix"),
        ({"strategies": "suffix@nope"}, RuleError, "known: all, none"),
        ({"model": "nope"}, ModelError, "unknown model 'nope'"),
        (
            {"quantized": (8, 7)},
            MlxlabError,
            "'8,7': give none, or different ones of 2, 3",
        ),
        ({"quantized": (8, 8)}, MlxlabError, "different ones"),
        ({"chunk": 512, "floor_chunk": 512}, MlxlabError, "give another size"),
        ({"edits": "date,nope"}, TraceError, "no edit 'nope'; choose from header"),
        (
            {"edits": "block-moved"},
            MlxlabError,
            "nothing to evaluate: trace small: block",
        ),
    ],
)
def test_bad_options_are_refused_before_a_model_is_loaded(
    options: dict[str, Any],
    error: type[MlxlabError],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mlxlab.replay.live.live_model", None)
    with pytest.raises(error, match=says):
        fidelity(small_trace(), **{"strategies": PAGED, "edits": "none"} | options)


def test_a_model_that_cannot_be_moved_is_refused_before_anything_is_rendered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(model: Any) -> None:
        raise ModelError("no rotary embedding")

    monkeypatch.setattr("mlxlab.engine.engine.Rope", refuse)
    monkeypatch.setattr(module, "render_scenarios", None)
    with pytest.raises(ModelError, match="no rotary"):
        evaluated(small_trace(), "paged,suffix")


def test_importing_it_loads_no_mlx() -> None:
    script = """
import sys
import mlxlab.cli, mlxlab.analysis.fidelity.run
sys.exit("mlx" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_reads_a_ruler() -> None:
    assert parse_quantized("8, 4") == (8, 4)
    assert parse_quantized("none") == ()
    for bad in ("", "4.5", "all", "-3", "8,"):
        with pytest.raises(MlxlabError, match="give none"):
            parse_quantized(bad)
