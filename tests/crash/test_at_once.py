"""Several processes keep something at once: all of it is there afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Barrier, BrokenBarrierError

import pytest

from mlxlab.analysis.fidelity import store
from mlxlab.models.layout import CacheLayout
from mlxlab.models.layout_record import LayoutRecord, Trial, keep_record, recall_record
from mlxlab.replay import cost_model
from mlxlab.replay.cost_model import remember_costs
from tests.support.measured import sample_fidelity
from tests.support.writers import WRITERS, calibration

_WRITERS = 6


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def together(write: Callable[[int], object], number: int = _WRITERS) -> None:
    """Call from several threads; the lock keeps threads apart as it does processes."""
    with ThreadPoolExecutor(number) as pool:
        list(pool.map(write, range(number)))


def meet(
    monkeypatch: pytest.MonkeyPatch, module: object, name: str, number: int
) -> None:
    """Let all threads read before any of them writes, if nothing keeps them apart."""
    read, barrier = getattr(module, name), Barrier(number)

    def read_together(*args: object) -> object:
        found = read(*args)
        with suppress(BrokenBarrierError):
            barrier.wait(0.2)
        return found

    monkeypatch.setattr(module, name, read_together)


def test_calibrations_at_once_are_all_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meet(monkeypatch, cost_model, "_kept", _WRITERS)
    together(lambda number: remember_costs(calibration(number + 1)))
    assert WRITERS["calibration"].found(tmp_path) == set(range(_WRITERS))


def test_fidelity_runs_at_once_are_all_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [sample_fidelity(f"suffix:run={i + 1}") for i in range(_WRITERS)]
    meet(monkeypatch, store, "_read", _WRITERS)
    together(lambda number: store.remember(made[number]))
    assert WRITERS["fidelity"].found(tmp_path) == set(range(_WRITERS))


def test_a_trial_is_kept_while_another_process_only_asks_for_the_layout() -> None:
    layout = CacheLayout.plain(64)
    passed = Trial(conditions="here", batched=True)
    tried = LayoutRecord.of(layout, "model", passed)
    keep_record(tried, "digest")
    keep_record(LayoutRecord.of(layout, "model"), "digest")
    assert recall_record("digest") == tried
    other = LayoutRecord.of(CacheLayout.plain(65), "model")
    keep_record(other, "digest")
    assert recall_record("digest") == other


@pytest.mark.slow
def test_six_calibrations_of_the_command_line_are_all_kept(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "mlxlab", "calibrate", "--seconds", "0"]
    every = [
        subprocess.Popen(
            [*program, "--tokens", "300", "--chunk", str(64 + chunk)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.DEVNULL,
        )
        for chunk in range(_WRITERS)
    ]
    assert [process.wait() for process in every] == [0] * _WRITERS
    (path,) = tmp_path.glob("mlxlab/calibration/*.json")
    kept = json.loads(path.read_text())["calibrations"]
    chunks = {own["machine"]["chunk"] for own in kept}
    assert chunks == {64 + chunk for chunk in range(_WRITERS)}
