"""Some of the seeded cases, and what their judges object to."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from random import Random

import pytest

from mlxlab.errors import OUT_OF_MEMORY
from tests.hostile.cases.exchange import Exchange, posted
from tests.hostile.cases.kinds import COMMANDS, EXCHANGES, counts
from tests.hostile.commands import judge as judge_command
from tests.hostile.exchanges import judge as judge_answers
from tests.hostile.outcome import Outcome, Row, format_table

CASES = 1000
#: Command lines take longer than requests, and are tried by the hundred here.
COMMANDS_SHARE = 0.1


def test_all_cases_end_well() -> None:
    command = (sys.executable, "-m", "tests.hostile", "--cases", str(CASES))
    done = subprocess.run(
        [*command, "--commands", str(COMMANDS_SHARE)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    rows = {
        name: [int(cell.replace(",", "")) for cell in cells.split()]
        for name, cells in re.findall(
            r"^(\w+) +((?:[\d,]+ +){4})", done.stdout, re.MULTILINE
        )
    }
    assert rows.keys() == {*EXCHANGES, *COMMANDS, "all"}
    assert rows["all"][0] == CASES
    for kind, (cases, refused, served, _) in rows.items():
        if cases >= 40:
            assert refused > cases // 10, (kind, done.stdout)
            assert served > cases // 20, (kind, done.stdout)


def test_a_case_is_made_of_its_seed() -> None:
    for make, _ in EXCHANGES.values():
        first, again, other = (make(Random(seed)) for seed in ("1", "1", "2"))
        assert first == again
        assert first != other


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("cases", [1, 7, 2000, 100_000])
def test_there_are_as_many_cases_as_wanted(cases: int, share: float) -> None:
    found = counts(cases, share)
    assert sum(found.values()) == cases
    assert all(count >= 0 for count in found.values())


LINE = "mlxlab: a.jsonl: no trace; give one\n"


@pytest.mark.parametrize(
    ("status", "said", "complained", "end"),
    [
        (0, "2 requests\n", "", "served"),
        (2 << 8, "", LINE, "refused"),
        (2 << 8, "", f"a warning\n{LINE}", "refused"),
        (2 << 8, "", "", "wrong"),
        (2 << 8, "", LINE + LINE, "wrong"),
        (1 << 8, "", LINE, "wrong"),
        (1 << 8, "", "Traceback (most recent call last):\n", "tracebacks"),
        (0, "", "Traceback (most recent call last):\n", "tracebacks"),
        (0, "\x1b[2J", "", "wrong"),
        (2 << 8, "", f"mlxlab: {OUT_OF_MEMORY}\n", "deaths"),
        (2 << 8, "", f"\x07{LINE}", "wrong"),
        (0, "", "x.py:1: RuntimeWarning: overflow\n", "wrong"),
        (0, '{\n "a": NaN\n}\n', "", "wrong"),
        (0, '{\n "a": 1\n}\nmore\n', "", "served"),
        (signal.SIGSEGV, "", "", "deaths"),
        (signal.SIGKILL, "", "", "deaths"),
        (signal.SIGXCPU, "", "", "hangs"),
        (None, "", "", "hangs"),
    ],
)
def test_ends_of_commands_are_told_apart(
    status: int | None, said: str, complained: str, end: str
) -> None:
    assert status is None or os.WIFEXITED(status) or os.WIFSIGNALED(status)
    assert judge_command(status, said, complained)[0] == end


def answer(status: int, body: str = '{"type":"message"}') -> bytes:
    return f"HTTP/1.1 {status} x\r\n\r\n{body}".encode()


@pytest.mark.parametrize(
    ("answers", "end"),
    [
        ([answer(200), answer(200)], "served"),
        ([answer(400), answer(400)], "refused"),
        ([answer(529), answer(200)], "wrong"),
        ([answer(400, "max_tokens: no"), answer(200)], "refused"),
        ([answer(400), answer(200)], "wrong"),
        ([answer(200, "{}"), answer(200)], "wrong"),
        ([answer(405), answer(405)], "wrong"),
        ([answer(500), answer(500)], "5xx"),
        ([answer(200), answer(503)], "5xx"),
        ([answer(529), answer(529)], "refused"),
        ([answer(529, OUT_OF_MEMORY), answer(200)], "5xx"),
        ([b"", answer(200)], "wrong"),
        ([answer(200), None], "hangs"),
    ],
)
def test_answers_are_told_apart(answers: list[bytes | None], end: str) -> None:
    whole = Exchange((posted("/v1/messages", b"{}"),))
    assert judge_answers([whole, whole], answers)[0] == end


@pytest.mark.parametrize(
    ("received", "leaves", "end"),
    [
        (b"", None, "refused"),
        (answer(404), None, "refused"),
        (answer(200, ""), None, "served"),
        (answer(500), None, "5xx"),
        (b"HTTP/1.1 2", 9, "left"),
        (None, None, "hangs"),
    ],
)
def test_answers_to_no_request_are_told_apart(
    received: bytes | None, leaves: int | None, end: str
) -> None:
    exchange = Exchange((b"GET",), whole=False, leaves=leaves)
    assert judge_answers([exchange], [received])[0] == end


def test_the_table_counts_all_ends() -> None:
    row = Row()
    row.add([Outcome("served", 0.5, 2**20), Outcome("deaths", 2.0, 2**21, "x")], 7)
    *_, line, _ = format_table({"names": row}).splitlines()
    assert line.split()[:10] == ["names", *"201000010"]
    assert line.split()[10:] == ["2.0", "s", "8", "2", "MiB"]
