"""Ctrl-C at any moment: no traceback, soon, and at once the second time."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import httpx
import pytest

from tests.support.commands import started as started_program
from tests.support.endpoint import PATIENCE_S, TOKEN, ask, words

#: The line comes after the imports of Python itself, which nobody can shield. A shell
#: without job control has what ends in ``&`` ignore SIGINT, these tests too.
_PROGRAM = """
import signal
from mlxlab.__main__ import main
signal.signal(signal.SIGINT, signal.{})
print("up", flush=True)
main()
"""
#: Seconds that the end may take, on a busy machine.
_SOON_S = 15.0
#: Commands, and the seconds in which they are interrupted.
COMMANDS = {
    "compare sessions --json out.json": 4.0,
    "compare sessions --simulate --json out.json": 2.0,
    "sweep sessions --capacities 64MiB,128MiB --users 1,2 --out swept": 5.0,
    "tune sessions --memory 1GiB --trials 400": 3.0,
    "anonymize sessions --out out.jsonl": 2.0,
    "calibrate --seconds 20": 4.0,
    "report sessions --out out.html": 5.0,
    "export-trace sessions --out out.jsonl.gz": 3.0,
    "misses sessions --json out.json": 3.0,
    "fidelity resume": 4.0,
}


@dataclass(frozen=True)
class Ended:
    """How a process ended after Ctrl-C."""

    status: int
    errors: str
    seconds: float


@contextmanager
def started(
    line: str, home: Path, at_first: str = "default_int_handler"
) -> Iterator[subprocess.Popen[str]]:
    """Run a command in a group of its own, as a terminal does."""
    home.mkdir()
    with started_program(_PROGRAM.format(at_first), line, home) as process:
        yield process


def interrupt(process: subprocess.Popen[str], pauses: Sequence[float] = ()) -> Ended:
    """Press Ctrl-C, and again after each pause."""
    begun = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    for pause in pauses:
        with suppress(subprocess.TimeoutExpired):
            process.wait(pause)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
    errors = process.communicate(timeout=PATIENCE_S)[1]
    return Ended(process.returncode, errors, time.monotonic() - begun)


def interrupted(line: str, seconds: float, home: Path) -> Ended:
    with started(line, home) as process:
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        if process.poll() is not None:
            return Ended(process.returncode, process.communicate()[1], 0.0)
        return interrupt(process)


def check(ended: Ended) -> None:
    for sign in ("Traceback", "Exception", "terminate called", "leaked"):
        assert sign not in ended.errors, ended.errors
    assert ended.seconds < _SOON_S


def _stream(url: str) -> None:
    """Ask for long answers until the server has gone."""
    body = ask(words(300), stream=True, max_tokens=2000)
    headers = {"x-api-key": TOKEN}
    with suppress(httpx.HTTPError), httpx.Client(headers=headers) as client:
        while True:
            client.post(f"{url}/v1/messages", json=body, timeout=PATIENCE_S)


def serve_under_load(home: Path, seconds: float, pauses: Sequence[float]) -> Ended:
    with started("serve --port 0 --record out.jsonl", home) as process:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found
        clients = [Thread(target=_stream, args=(found[0],)) for _ in range(6)]
        for client in clients:
            client.start()
        time.sleep(seconds)
        ended = interrupt(process, pauses)
    for client in clients:
        client.join(PATIENCE_S)
    return ended


def commands(number: int, folder: Path) -> None:
    """Interrupt commands in turn, two at a time."""
    drawn = random.Random(15)
    lines = [(*COMMANDS.items(),)[i % len(COMMANDS)] for i in range(number)]
    with ThreadPoolExecutor(2) as pool:
        jobs = {
            pool.submit(
                interrupted, line, drawn.uniform(0, within), folder / str(i)
            ): line
            for i, (line, within) in enumerate(lines)
        }
        for job, line in jobs.items():
            ended = job.result()
            check(ended)
            assert ended.status in (0, -signal.SIGINT), (line, ended)


def servers(number: int, folder: Path) -> None:
    """Interrupt servers under load, every other one a second time."""
    drawn = random.Random(15)
    every = [[drawn.uniform(0.3, 0.8)] * (i % 2) for i in range(number)]
    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(
                serve_under_load, folder / str(i), drawn.uniform(0.1, 2), pauses
            )
            for i, pauses in enumerate(every)
        ]
    at_once = 0
    for pauses, job in zip(every, jobs, strict=True):
        ended = job.result()
        check(ended)
        assert ended.status in ((0, -signal.SIGINT) if pauses else (0,))
        if ended.status:
            assert ended.seconds < sum(pauses) + 2
            at_once += 1
    # Two signals are one where the first has not been seen when the second comes.
    assert at_once >= number // 4


def test_ctrl_c_ends_commands(tmp_path: Path) -> None:
    commands(3, tmp_path)


def test_ctrl_c_ends_a_server_under_load(tmp_path: Path) -> None:
    servers(1, tmp_path)


@pytest.mark.slow
def test_ctrl_c_ends_commands_at_any_moment(tmp_path: Path) -> None:
    commands(60, tmp_path)


@pytest.mark.slow
def test_ctrl_c_ends_servers_under_load_at_any_moment(tmp_path: Path) -> None:
    servers(20, tmp_path)


def test_a_command_behind_a_shell_ignores_ctrl_c(tmp_path: Path) -> None:
    with started("strategies", tmp_path / "home", "SIG_IGN") as process:
        ended = interrupt(process)
    assert (ended.status, ended.errors) == (0, "")
