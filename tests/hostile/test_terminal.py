"""What others wrote is shown on a terminal, and not obeyed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlxlab.cli import main
from mlxlab.printable import printable
from mlxlab.traces.bundled import load_trace
from mlxlab.traces.writer import write_trace

#: It clears the screen, and is markup of rich.
NAME = "a\x1b[2J\u202e[bold]b[/x]".replace("/", "|")
OBEYED = ("\x1b", "\u202e", "\x07")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["mlxlab", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
    said = capsys.readouterr()
    return int(end.value.code or 0), said.out + said.err


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace whose name, session and texts hold escapes."""
    path = tmp_path_factory.mktemp("traces") / f"{NAME}.jsonl"
    write_trace(load_trace("resume"), path)
    text = path.read_text()
    session = next(e.session for e in load_trace("resume").inference)
    odd = json.dumps("\x1b[31m\x07")[1:-1]
    path.write_text(text.replace(session, odd))
    return path


@pytest.mark.parametrize(
    "command",
    [
        "read-trace",
        "misses",
        "misses --by-request",
        "compare --simulate --strategies paged",
        "sweep --capacities 1GiB --strategies paged",
    ],
)
def test_no_answer_is_obeyed(
    command: str, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *options = command.split()
    code, said = run(capsys, name, str(trace), *options)
    assert code == 0
    assert "x1b" in said
    assert not any(sign in said for sign in OBEYED)


@pytest.mark.parametrize("arguments", [[NAME], ["resume", "--strategy", NAME]])
def test_no_error_is_obeyed(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = run(capsys, "misses", *arguments)
    assert code == 2
    assert not any(sign in said for sign in OBEYED)
    assert r"\x1b[2J\u202e[bold]b[|x]" in said


def test_lines_and_letters_stay() -> None:
    text = "naïve 日本 👩‍💻\tend\n"
    assert printable(text) == text
    assert printable("\ud800\r\x9b") == r"\ud800\r\x9b"
