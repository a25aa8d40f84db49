"""The official SDK against a running server: the version of today and an old one.

Each runs the session of sdk_session.py in an interpreter of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.endpoint import served

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("sdk_script.json")
OLD = "anthropic<1"
CACHE = Path.home() / ".cache/mlxlab"
ALIASES = {"aliases": {"brief": {"max_thinking_tokens": 16}}}


@dataclass(frozen=True, slots=True)
class Sdk:
    """A version of the SDK; the installed one if ``path`` is None."""

    major: int
    path: Path | None = None


@pytest.fixture(scope="module")
def old_sdk() -> Path:
    """A folder with the old version, outside the repository, installed once."""
    # Wheels of pydantic-core and jiter are made for one version of Python.
    folder = CACHE / f"sdk-0-python{sys.version_info.major}.{sys.version_info.minor}"
    if folder.exists():
        return folder
    try:
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            installed = Path(scratch) / "sdk"
            _install(OLD, installed)
            installed.rename(folder)
    except (OSError, subprocess.SubprocessError) as error:
        if not folder.exists():  # else another run was faster
            reason = (getattr(error, "stderr", None) or str(error)).strip()
            pytest.skip(f"{OLD} cannot be installed: {reason.splitlines()[-1]}")
    return folder


def _install(requirement: str, folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    command = [*pip, "install", "--retries=0", "--target", str(folder), requirement]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module", params=["old", "new"])
def sdk(request: pytest.FixtureRequest) -> Sdk:
    if request.param == "new":
        return Sdk(2)
    return Sdk(0, request.getfixturevalue("old_sdk"))


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, Any]]:
    with (
        served(strategy="prefix", script=SCRIPT) as scripted,
        served(aliases=ALIASES) as sampled,
        served(queue=0, batch=1) as narrow,
    ):
        running = {"scripted": scripted, "sampled": sampled, "narrow": narrow}
        yield {
            name: {"url": server.url, "token": server.token}
            for name, server in running.items()
        }


def test_session(sdk: Sdk, servers: dict[str, Any], subtests: pytest.Subtests) -> None:
    result = _session(sdk, servers)
    assert int(result["version"].partition(".")[0]) == sdk.major
    assert len(result["outcomes"]) > 20
    for name, failure in result["outcomes"].items():
        with subtests.test(name):
            assert not failure, failure


def _session(sdk: Sdk, servers: dict[str, Any]) -> Any:
    # Neither the user's key nor their base URL.
    environment = {k: v for k, v in os.environ.items() if "ANTHROPIC" not in k}
    if sdk.path:
        environment["PYTHONPATH"] = str(sdk.path)
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.sdk_session"],
        input=json.dumps(servers),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
