"""Where a token may come from, in which order, and who may see it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from mlxlab.errors import ServerError
from mlxlab.server.credentials import find_token

COMMAND = [sys.executable, "-m", "mlxlab", "serve", "--port", "0"]
CHOSEN = "chosen-by-the-test"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.touch(0o600)
    path.write_text(f"{CHOSEN}\n")
    return path


def test_what_is_given_beats_the_environment(file: Path) -> None:
    environment = {"MLXLAB_TOKEN": "of-the-environment"}
    assert find_token("given", None, environment) == "given"
    assert find_token(None, file, environment) == CHOSEN
    assert find_token(None, None, environment) == "of-the-environment"
    assert find_token(None, None, {}) is None
    assert find_token(None, None, {"MLXLAB_TOKEN": ""}) is None
    with pytest.raises(ServerError, match="exclude each other; give one"):
        find_token("given", file, environment)


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_a_file_of_ones_own_is_read(file: Path, mode: int) -> None:
    file.chmod(mode)
    assert find_token(None, file, {}) == CHOSEN


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644, 0o610])
def test_a_file_that_others_can_use_is_refused(file: Path, mode: int) -> None:
    file.chmod(mode)
    with pytest.raises(ServerError, match=r"others may .* chmod 600") as error:
        find_token(None, file, {})
    assert "\n" not in str(error.value)
    assert CHOSEN not in str(error.value)


def test_a_file_of_another_user_is_refused(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = file.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(ServerError, match=r"others may .*; own it"):
        find_token(None, file, {})


@pytest.mark.parametrize("content", [b"", b"\n \n", b"a" * 5000])
def test_a_file_without_a_token_is_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(ServerError, match="give one line that holds the token alone"):
        find_token(None, file, {})


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ServerError, match=r"; give a file to read"):
            find_token(None, path, {})


class Served:
    """`mlxlab serve` in a process of its own, until it is interrupted."""

    def __init__(self, home: Path, *options: str, **variables: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *options],
            env={**os.environ, "HOME": str(home), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip().rpartition(" at ")[2]

    def status(self, token: str) -> int:
        headers = {"x-api-key": token}
        answer = httpx.get(f"{self.url}/v1/models", headers=headers, timeout=20)
        return answer.status_code

    def end(self) -> list[str]:
        """The lines on stderr."""
        self.process.send_signal(signal.SIGINT)
        _, errors = self.process.communicate(timeout=60)
        assert self.process.returncode == 0
        return [line for line in errors.splitlines() if line.strip()]


def test_the_command_line_takes_it_from_everywhere(file: Path, tmp_path: Path) -> None:
    environment = Served(tmp_path, MLXLAB_TOKEN="of-the-environment")
    named = Served(tmp_path, "--token-file", str(file), MLXLAB_TOKEN="unused")
    assert environment.status("of-the-environment") == 200
    assert named.status(CHOSEN) == 200
    assert named.status("unused") == 401
    assert environment.end() == named.end() == []


def test_a_token_on_the_command_line_is_warned_of(tmp_path: Path) -> None:
    exposed = Served(tmp_path, "--token", CHOSEN)
    assert exposed.status(CHOSEN) == 200
    (warning,) = exposed.end()
    assert warning.startswith("--token: other users can read it in the process list")
    assert "MLXLAB_TOKEN" in warning
    assert "--token-file" in warning
    assert CHOSEN not in warning


def test_a_bad_file_is_one_line_and_exit_code_2(file: Path, tmp_path: Path) -> None:
    file.chmod(0o644)
    done = subprocess.run(
        [*COMMAND, "--token-file", str(file)],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "chmod 600" in done.stderr


def test_a_bad_alias_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    for option, says in (("x", "--alias 'x': give NAME=MODEL"), ("a b=c", "letters")):
        done = subprocess.run(
            [*COMMAND, "--alias", option],
            env={**os.environ, "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert says in done.stderr


def test_a_chat_that_thinks_is_answered_under_an_alias(tmp_path: Path) -> None:
    """What a user types first: short token, own model id, budget over max_tokens."""
    alias = "qwen3-coder-30b=tiny"
    server = Served(tmp_path, "--token", "sk-1234", "--alias", alias)
    body = {
        "model": "qwen3-coder-30b",
        "max_tokens": 500,
        "stream": True,
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "messages": [{"role": "user", "content": "What is 2+2? Think step by step."}],
    }
    answer = httpx.post(
        f"{server.url}/anthropic/v1/messages",
        json=body,
        headers={"x-api-key": "sk-1234"},
        timeout=60,
    )
    warnings = server.end()
    assert answer.status_code == 200, answer.text
    deltas = re.findall(r'"type": ?"(thinking_delta|text_delta)"', answer.text)
    assert {"thinking_delta", "text_delta"} == set(deltas)
    assert deltas == sorted(deltas, reverse=True)
    assert len(warnings) == 2
