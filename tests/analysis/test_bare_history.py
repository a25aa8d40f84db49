"""Results of a history that lacks most of its prompts say so, and conclude nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import mlxlab as ml
from mlxlab.analysis.misses.causes import ABSENT, NOTHING
from mlxlab.analysis.plots import plot_causes
from mlxlab.cli import app
from mlxlab.traces import Trace, load_trace, write_trace
from mlxlab.traces.filling.fill import fill_history
from tests.support.bare_histories import import_bare

UNKNOWN = "What reuse could gain is not known: most of the prompts is absent."


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """A few requests of a history by a client that keeps the conversation only."""
    whole = load_trace("thinking")
    few = replace(whole, exchanges=whole.exchanges[:3])
    folder = tmp_path_factory.mktemp("bare")
    return import_bare(few, folder / "bare", version="2.1.330")


@pytest.fixture(scope="module")
def filled(bare: Trace) -> Trace:
    return fill_history(bare)


def line(trace: Trace) -> str:
    assert trace.completeness is not None
    return trace.completeness.line


def test_misses_do_not_say_that_nothing_could_be_saved(
    bare: Trace, filled: Trace, tmp_path: Path
) -> None:
    found = ml.misses(bare, progress=False)
    assert repr(found).startswith(line(bare))
    assert found._repr_html_().startswith(f"<div><p>{line(bare)}</p>")
    assert NOTHING not in repr(found)
    assert ABSENT in set(found.summary().remedy)
    assert found.requests.lost_tokens.sum() < found.requests.missed_tokens.sum()
    found.to_json(tmp_path / "m.json")
    assert repr(ml.read_result(tmp_path / "m.json")) == repr(found)
    whole = ml.misses(filled, progress=False)
    assert repr(whole).startswith(line(filled))
    assert any(remedy.startswith(NOTHING) for remedy in whole.summary().remedy)
    assert ABSENT not in repr(whole)


def test_of_several_traces_each_is_judged_by_itself(bare: Trace) -> None:
    found = ml.misses([bare, "deferred"], progress=False)
    assert repr(found).startswith(f"trace bare: {line(bare)}\nbare, deferred: ")
    own = found.causes.session.str.startswith("bare:")
    assert not found.causes.remedy[own].str.startswith(NOTHING).any()
    assert found.causes.remedy[~own].str.startswith(NOTHING).any()


def test_pictures_say_what_is_missing(bare: Trace) -> None:
    picture = plot_causes(ml.misses(bare, progress=False))
    *missing, title = picture.axes[0].get_title(loc="left").split("\n")
    assert " ".join(missing) == line(bare).partition(";")[0]
    assert title.startswith("paged: ")
    legend = [text.get_text() for text in picture.legends[0].get_texts()]
    assert "not known, most of the prompt is absent" in legend
    assert "had to be computed" not in legend


def test_comparisons_and_tunings_conclude_nothing(bare: Trace, filled: Trace) -> None:
    asked: dict[str, Any] = {
        "strategies": "none,paged",
        "simulate": True,
        "progress": False,
    }
    assert ml.compare(bare, **asked).lines() == [UNKNOWN]
    assert ml.compare(filled, **asked).lines()[0].startswith("Best: paged reuses ")
    tuned = ml.tune(bare, trials=1, progress=False)
    assert tuned.reasons() == [UNKNOWN]
    assert repr(tuned).startswith(line(bare))


def test_the_doctor_gives_no_advice_on_what_is_not_there(
    bare: Trace, filled: Trace
) -> None:
    found = ml.doctor(bare, progress=False)
    assert repr(found).startswith(line(bare))
    assert found.verdict == UNKNOWN
    assert "Run:" not in repr(found)
    assert "mlxlab serve --strategy" not in found._repr_html_()
    whole = ml.doctor(bare, fill=True, progress=False)
    assert repr(whole).startswith(line(filled))
    assert "of the prefill had been computed before" in whole.verdict


def test_the_command_fills_a_history_that_was_imported(
    bare: Trace, filled: Trace, tmp_path: Path
) -> None:
    path = tmp_path / "bare.jsonl"
    write_trace(bare, path, progress=False)

    def printed(*arguments: str) -> str:
        done = CliRunner().invoke(app, [*arguments], env={"COLUMNS": "400"})
        assert done.exit_code == 0, done.output
        return done.stdout

    assert printed("misses", str(path)).startswith(line(bare))
    for verb in ("misses", "read-trace"):
        assert printed(verb, str(path), "--fill").startswith(line(filled))
    out = str(tmp_path / "filled.jsonl")
    history = str(tmp_path / "p")
    import_bare(load_trace("thinking"), Path(history), version="2.1.330")
    said = printed("import-trace", history, "--out", out, "--fill")
    assert "filled from the bundled trace subagents (client 2.1.330)" in said
    assert "with assumed system and tools (7 times)" in said


def test_the_report_begins_with_it(bare: Trace, tmp_path: Path) -> None:
    ml.report(bare, tmp_path / "r.html", strategies="none,paged", progress=False)
    page = (tmp_path / "r.html").read_text()
    said = f'<p class="assumed">{line(bare)}</p>'
    assert page.index(said) < page.index('<p class="meta">')
