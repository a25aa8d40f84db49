"""Settings for all tests. Its first import settles the BLAS before mlx is imported."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

import mlxlab.engine  # noqa: F401
from data.record import install
from mlxlab.client.launch import find_client

# The same examples on every run, however busy the machine is.
settings.register_profile("quick", derandomize=True, deadline=None, max_examples=40)
settings.register_profile("all", derandomize=True, deadline=None, max_examples=100)
settings.load_profile(os.environ.get("MLXLAB_EXAMPLES", "quick"))


@pytest.fixture(scope="session", autouse=True)
def _own_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests write nothing into the user's cache folder, nor do their commands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a test's measurements are; there are none yet."""
    prepared = tmp_path / "measurements.json"
    monkeypatch.setattr("mlxlab.analysis.fidelity.store._PREPARED", prepared)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "mlxlab/fidelity"


@pytest.fixture(scope="session")
def client() -> Path:
    """Claude Code as it is installed, else the newest from npm."""
    found = find_client()
    if found:
        return found
    if shutil.which("npm") is None:
        pytest.skip("neither Claude Code nor npm is installed")
    try:
        return install()
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"npm cannot install Claude Code: {error}")


@pytest.fixture
def half_a_minute() -> Iterator[None]:
    """End a test that waits for a pipe, or reads a device, for ever."""

    def stop(number: int, frame: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
