"""What fidelity runs leave behind, and what is found of it later."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mlxlab.analysis.fidelity.result import Fidelity
from mlxlab.analysis.fidelity.run import fidelity
from mlxlab.analysis.fidelity.store import FidelityRecord, RecordKey, recall, remember
from mlxlab.errors import MlxlabError
from mlxlab.models.folder import find_model
from mlxlab.rendering.rules import DEFAULT_RULES
from mlxlab.replay.specs import StrategySpec
from mlxlab.strategies import parse_strategy
from tests.support.exchanges import small_trace
from tests.support.measured import sample_fidelity

ALL = DEFAULT_RULES
SMALL = "block=16,run=32,head=0,tail=16,rewritten=0,governing=0"
#: Parameters in the order of their declaration, as results name them.
MOVED = StrategySpec.parse(f"suffix:{SMALL}").name


def of_tiny(strategy: str, rules: tuple[str, ...] = ALL) -> RecordKey:
    return RecordKey.of(find_model().digest, StrategySpec.parse(strategy, rules))


def run(strategies: str, edits: str = "shift-16") -> Fidelity:
    return fidelity(
        small_trace(),
        strategies=strategies,
        edits=edits,
        quantized=(),
        tokens=8,
        greedy=2,
        floor_chunk=64,
        progress=False,
    )


def found(strategy: str, rules: tuple[str, ...] = ALL) -> FidelityRecord:
    record = recall(of_tiny(strategy, rules))
    assert record is not None
    return record


def test_a_run_leaves_the_figures_of_its_summary(measured: Path) -> None:
    done = run(f"paged:block=16,{MOVED},suffix-naive:block=16")
    summary = done.summary()
    row, floor = summary.loc[MOVED], summary.loc["noise floor"]
    record = found(MOVED)
    assert record.model_dump(exclude={"key", "day", "version"}) == {
        "traces": ("small",),
        "edits": ("shift-16",),
        "answers": row.requests,
        "recovered": row.recovered,
        "closeness": {
            "kld_median": row.kld_median,
            "kld_999": row.kld_999,
            "same_top": row.same_top,
        },
        "floor": {
            "kld_median": floor.kld_median,
            "kld_999": floor.kld_999,
            "same_top": floor.same_top,
        },
        "tasks_right": None,
        "reference_tasks_right": None,
    }
    assert record.version == done.manifest["packages"]["mlxlab"]
    assert abs((record.day - datetime.now(UTC).date()).days) <= 1
    assert str(record.day) == done.manifest["day"]
    assert found("suffix-naive:block=16") != record
    assert recall(of_tiny("paged:block=16")) is None
    assert [path.stem for path in measured.iterdir()] == [find_model().digest]


def test_findings_that_were_written_can_be_remembered_later(
    measured: Path, tmp_path: Path
) -> None:
    """With the day of the run."""
    sample_fidelity("suffix").to_json(tmp_path / "found.json.gz")
    remember(Fidelity.read_json(tmp_path / "found.json.gz"))
    assert str(found("suffix").day) == "2026-11-23"


def test_a_run_of_exact_strategies_leaves_nothing(measured: Path) -> None:
    run("paged:block=16", edits="none")
    assert not measured.exists()


def test_a_folder_that_cannot_be_written_does_not_lose_the_findings(
    measured: Path, caplog: pytest.LogCaptureFixture
) -> None:
    measured.parent.mkdir()
    measured.write_text("in the way")
    done = run(MOVED)
    assert MOVED in done.summary().index
    (warning,) = [r for r in caplog.records if "not remembered" in r.message]
    assert warning.levelno == logging.WARNING
    assert str(measured) in warning.message
    assert "\n" not in warning.message


def test_defaults_are_the_same_whether_given_or_not(measured: Path) -> None:
    remember(sample_fidelity("suffix"))
    shift = parse_strategy("suffix").parameters["shift"]
    assert found(f" suffix : shift = {shift} ") == found("suffix")
    assert recall(of_tiny("suffix:shift=1")) is None
    assert recall(of_tiny("segmented")) is None


def test_other_rules_are_another_subject(measured: Path) -> None:
    remember(sample_fidelity("suffix@none"))
    assert recall(of_tiny("suffix")) is None
    assert found("suffix", ()).key.rules == ()


def test_another_model_is_another_subject(measured: Path) -> None:
    remember(sample_fidelity("suffix"))
    other = RecordKey.of("0" * 16, StrategySpec.parse("suffix", ALL))
    assert recall(other) is None


def test_the_latest_measurement_replaces_the_one_before_and_no_other(
    measured: Path,
) -> None:
    remember(sample_fidelity("suffix,segmented", kld=0.1))
    remember(sample_fidelity("suffix,paged", kld=0.2))
    assert found("suffix").closeness.kld_median == 0.2
    assert found("segmented").closeness.kld_median == 0.1
    (file,) = measured.iterdir()
    assert len(json.loads(file.read_text())["measurements"]) == 2


def test_what_comes_with_mlxlab_is_behind_what_the_user_measured(
    measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are the same kind of file."""
    prepared = tmp_path / "prepared.json"
    monkeypatch.setattr("mlxlab.analysis.fidelity.store._PREPARED", prepared)
    remember(sample_fidelity("suffix,segmented", kld=0.1), prepared)
    assert not measured.exists()
    assert found("suffix").closeness.kld_median == 0.1
    remember(sample_fidelity("suffix", kld=0.2))
    assert found("suffix").closeness.kld_median == 0.2
    assert found("segmented").closeness.kld_median == 0.1


@pytest.mark.parametrize(
    "content", [b"", b"\0\1", b"[]", b'{"version": 2}', b'{"measurements": [{}]}']
)
def test_a_file_that_is_not_ours_is_warned_of_and_replaced(
    content: bytes, measured: Path, caplog: pytest.LogCaptureFixture
) -> None:
    measured.mkdir(parents=True)
    file = measured / f"{find_model().digest}.json"
    file.write_bytes(content)
    assert recall(of_tiny("suffix")) is None
    (warning,) = caplog.messages
    assert warning.startswith(f"{file}: not of this format")
    assert "\n" not in warning
    remember(sample_fidelity("suffix"))
    caplog.clear()
    assert found("suffix")
    assert not caplog.messages


def test_a_file_that_cannot_be_read_is_warned_of(
    measured: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (measured / f"{find_model().digest}.json").mkdir(parents=True)
    assert recall(of_tiny("suffix")) is None
    assert "Is a directory; its figures are ignored" in caplog.text
    with pytest.raises(MlxlabError, match="give a file to write"):
        remember(sample_fidelity("suffix"))


def test_what_others_may_have_written_is_not_believed(
    measured: Path, caplog: pytest.LogCaptureFixture
) -> None:
    remember(sample_fidelity("suffix"))
    assert measured.stat().st_mode & 0o777 == 0o700
    measured.chmod(0o777)
    assert recall(of_tiny("suffix")) is None
    (line,) = caplog.messages
    assert f"others may write {measured} (chmod go-w" in line
    assert "\n" not in line
    measured.chmod(0o755)
    assert found("suffix")


def test_in_words(measured: Path) -> None:
    remember(sample_fidelity("suffix"))
    first, second = found("suffix").lines()
    assert first == (
        "Measured 2026-11-23 on one, two (edits: 2, answers: 2): "
        "100% of lost tokens recovered,"
    )
    assert second == (
        "KLD median 0.5, 99.9% 0.5, same top 50.0% (noise floor: 0, 0, 100%)"
    )


def test_tasks_in_words_and_nothing_that_was_not_lost(measured: Path) -> None:
    remember(sample_fidelity("suffix", kld=2.1e-5, lost=0, tasks=True))
    first, second, third = found("suffix").lines()
    assert first.endswith("(edits: 2, answers: 2):")
    assert second.startswith("KLD median 2.1e-5, 99.9% 2.1e-5, same")
    assert third == "tasks right: 50.0% (full prefill: 100%)"


def test_unedited_requests_are_said_to_be(measured: Path) -> None:
    done = sample_fidelity("suffix", lost=0)
    remember(replace(done, manifest={**done.manifest, "edits": ["none"]}))
    assert "(edits: none, answers: 2)" in found("suffix").lines()[0]
