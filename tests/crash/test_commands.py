"""kill -9 of whole commands and of a server that records."""

from __future__ import annotations

import json
import random
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from threading import Thread

import httpx
import pytest

from mlxlab.files import read_json
from mlxlab.traces import Trace, read_trace
from mlxlab.traces.hashed.file import HashedFile
from tests.support.commands import started
from tests.support.endpoint import PATIENCE_S, TOKEN, ask

#: Commands, and the file or folder that each writes.
COMMANDS = {
    "import-trace history --out out.jsonl": "out.jsonl",
    "anonymize resume --out out.jsonl": "out.jsonl",
    "export-trace resume --salt s --out out.jsonl.gz": "out.jsonl.gz",
    "compare resume --simulate --json out.json --plots plots": "out.json",
    "report resume --out out.html": "out.html",
    "sweep resume --capacities 64MiB,128MiB --out swept --json out.json": "out.json",
}
_PROGRAM = "from mlxlab.cli import main; print('up', flush=True); main()"


def run(line: str, home: Path) -> float:
    """Run a command to its end; return the seconds that it took."""
    begun = time.monotonic()
    with started(_PROGRAM, line, home) as process:
        errors = process.communicate(timeout=PATIENCE_S)[1]
    assert process.returncode == 0, errors
    return time.monotonic() - begun


def kill(line: str, home: Path, seconds: float) -> None:
    with started(_PROGRAM, line, home) as process, suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def hidden(folder: Path) -> list[Path]:
    others = {"cache", ".config"}  # of matplotlib
    return [path for path in folder.rglob(".*") if not others & {*path.parts}]


def write_history(home: Path) -> None:
    """Write a history of a client, to be imported."""
    lines = [
        {
            "uuid": f"{kind}{i}",
            "parentUuid": f"a{i - 1}" if i and kind == "u" else f"u{i}",
            "sessionId": "s",
            "type": "user" if kind == "u" else "assistant",
            "timestamp": f"2026-01-01T00:{i:02}:0{'ua'.index(kind)}.000Z",
            "message": {
                "role": "user" if kind == "u" else "assistant",
                "content": [{"type": "text", "text": f"word {i} " * 50}],
            },
        }
        for i in range(50)
        for kind in "ua"
    ]
    folder = home / "history/project"
    folder.mkdir(parents=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "s.jsonl").write_text(text)


def whole(path: Path) -> bytes:
    """Return what does not depend on the day, the process or the time."""
    if path.suffix == ".json":
        content = read_json(path)
        return json.dumps([content["summary"], content["requests"]]).encode()
    if path.suffix == ".jsonl":
        trace = read_trace(path)
        assert isinstance(trace, Trace)
        return repr((len(trace), trace.skipped)).encode()
    if path.suffix == ".gz":
        return repr([own.tokens for own in HashedFile().open(path)]).encode()
    return path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_may_be_killed(line: str, tmp_path: Path) -> None:
    write_history(tmp_path)
    out, drawn = tmp_path / COMMANDS[line], random.Random(line)
    seconds = run(line, tmp_path)
    expected = whole(out)
    for _ in range(4):
        before = out.read_bytes()
        kill(line, tmp_path, drawn.uniform(0, seconds))
        assert out.read_bytes() == before or whole(out) == expected
    run(line, tmp_path)
    assert whole(out) == expected
    assert hidden(tmp_path) == []


def _ask(url: str, client: int, answered: list[str]) -> None:
    """Ask until the server has gone; note what was answered whole."""
    headers = {"x-api-key": TOKEN}
    with suppress(httpx.HTTPError), httpx.Client(headers=headers) as http:
        for number in range(10**6):
            text = f"client {client} number {number}"
            body = ask(text, stream=number % 2 == 0, max_tokens=3)
            if http.post(f"{url}/v1/messages", json=body, timeout=60).is_success:
                answered.append(text)


@pytest.mark.slow
def test_a_server_that_records_may_be_killed(tmp_path: Path) -> None:
    drawn = random.Random(15)
    for number in range(6):
        path, answered = tmp_path / f"{number}.jsonl", list[str]()
        with started(_PROGRAM, f"serve --port 0 --record {path}", tmp_path) as process:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            threads = [Thread(target=_ask, args=(url, i, answered)) for i in range(6)]
            for thread in threads:
                thread.start()
            time.sleep(drawn.uniform(0.3, 2))
        for thread in threads:
            thread.join()
        trace = read_trace(path)
        assert isinstance(trace, Trace)
        kept = [
            own.body["messages"][0]["content"]
            for own in trace.exchanges
            if own.response and own.body
        ]
        assert answered
        assert set(answered) <= set(kept)
