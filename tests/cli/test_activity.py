"""A terminal shows each request of its server as it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest

from mlxlab.cli.activity import describe_end
from mlxlab.server.event_log import Asker, EventLog, Stage
from tests.support.endpoint import TOKEN, Client, ask

FACTS = {
    "agent": "",
    "prompt_tokens": 14_554,
    "reused_tokens": 14_412,
    "queue_s": 0.04,
    "restore_s": 0.1,
    "prefill_s": 0.2,
    "decode_s": 1.2,
    "ttft_s": 0.34,
    "total_s": 1.54,
    "output_tokens": 34,
    "outcome": "tool_use",
}


COMPUTED = "142 of 14,554 tokens computed, 99% reused"
PARTS = "(queue 0.0 + restore 0.1 + prefill 0.2)"
ANSWERED = f"first token 0.3 s {PARTS}, 34 tokens in 1.2 s"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, f"#1 main      {COMPUTED}; {ANSWERED}; tool_use"),
        (
            {"agent": "explore", "ttft_s": None, "outcome": "cancelled"},
            f"#1 explore   {COMPUTED}; no answer in 1.5 s {PARTS}; cancelled",
        ),
    ],
)
def test_a_line_says_what_a_request_cost(changes: dict[str, object], line: str) -> None:
    log = EventLog()
    log.add(log.arrive(Asker(), "m"), Stage.ENDED, **FACTS | changes)
    assert [describe_end(event) for event in log.since()] == [None, line]


def test_a_refused_request_has_no_line() -> None:
    log = EventLog()
    log.add(log.arrive(Asker(), "m"), Stage.ENDED, outcome="refused")
    assert [describe_end(event) for event in log.since()] == [None, None]


def test_a_terminal_shows_requests_and_a_pipe_does_not_until_the_end() -> None:
    command = [sys.executable, "-m", "mlxlab", "serve"]
    environment = {**os.environ, "MLXLAB_TOKEN": TOKEN}
    for is_terminal in (True, False):
        seen, given = os.openpty() if is_terminal else os.pipe()
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=given, text=True, env=environment
        ) as server:
            os.close(given)
            assert server.stdout is not None
            url = server.stdout.readline().split()[-1]
            with Client(url) as client:
                client.headers["x-claude-code-agent-id"] = "explorer"
                client.ask(ask(max_tokens=2))
                if is_terminal:
                    server.send_signal(signal.SIGINT)
                else:
                    client.headers["origin"] = url
                    client.post("/change", json={"stop": True})
            # Not communicate(): with a limit it leaves out what was read ahead.
            shown = server.stdout.read()
            server.wait(timeout=60)
            assert f"Watch it at {url}/#{TOKEN}" in shown
        text = _read(seen)
        found = re.findall(r"#1 explorer +\d+ of \d+ tokens computed", text)
        assert len(found) == is_terminal, text
        assert ("0 running, 0 queued" in text) == is_terminal, text
        assert server.returncode == 0


def _read(descriptor: int) -> str:
    text = b""
    try:
        while data := os.read(descriptor, 2**16):
            text += data
    except OSError:  # a terminal whose other end is closed
        pass
    os.close(descriptor)
    return text.decode()
