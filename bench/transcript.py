"""Shows a task of Claude Code on our server, turn by turn, and its cost.

``python -m bench.transcript [SCENARIO]`` runs a scenario of data/scenarios. The answers
are scripted; the client, the prompts, their prefill and the decoding are real.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from data.record import SCENARIOS, copied, install, take
from mlxlab.analysis.compare import compare
from mlxlab.client.launch import client_environment, find_client
from mlxlab.engine import device_name
from mlxlab.errors import MlxlabError
from mlxlab.server.server import Options, serve
from mlxlab.traces import Exchange, Trace, read_trace

#: Inputs that describe a call, the most descriptive first.
_DESCRIPTIVE = ("command", "file_path", "description", "query")
_WIDTH = 62


@dataclass(frozen=True, slots=True)
class Turn:
    """One request and its answer.

    Attributes:
        who: the main loop or a sub-agent.
        answer: texts and calls of the model, one per line.
        simulated: tokens that a simulation of the recorded trace reuses.
        ttft_s: seconds from the request's arrival to the first token.
    """

    who: str
    answer: tuple[str, ...]
    prompt: int
    reused: int
    simulated: int
    ttft_s: float


@dataclass(frozen=True, slots=True)
class Transcript:
    """A task, from its first prompt to the changed files."""

    title: str
    turns: tuple[Turn, ...]
    changes: str

    @property
    def summary(self) -> str:
        """Reuse over all turns, and whether a simulation agrees."""
        prompt = sum(turn.prompt for turn in self.turns)
        reused = sum(turn.reused for turn in self.turns)
        differing = sum(turn.reused != turn.simulated for turn in self.turns)
        same = f"another number in {differing} turns" if differing else "the same"
        return (
            f"{reused / prompt:.1%} of {prompt:,} prompt tokens reused; a simulation "
            f"of the recorded trace says {same}"
        )


def transcribe(scenario: Path, client: Path, strategy: str) -> Transcript:
    """Let the client do a scenario's task.

    Raises:
        MlxlabError: an unknown strategy, or the server cannot be started.
        CalledProcessError: the client failed.
    """
    version = subprocess.check_output([client, "--version"], text=True).strip()
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        home, recorded = folder / "home", folder / "trace.jsonl"
        home.mkdir()
        project = copied(scenario, folder)
        options = Options(script=scenario / "script.json")
        with serve(strategy=strategy, record=recorded, options=options) as server:
            title = f"{scenario.name}: {version} on {server!r}, {device_name()}"
            env = client_environment(server.endpoint, _surroundings(home))
            for request in json.loads((scenario / "steps.json").read_text()):
                take(request, client, project, env)
        # In order of arrival, as in the trace.
        ttft_s = server.requests.sort_values("t").ttft_s.tolist()
        turns = tuple(_turns(read_trace(recorded), strategy, ttft_s))
        return Transcript(title, turns, _changes(project))


def _surroundings(home: Path) -> dict[str, str]:
    """Return an environment with an empty home, and only the path of this user's."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "CLAUDE_CODE_TMPDIR": str(home),
        "IS_SANDBOX": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _turns(trace: Trace, strategy: str, ttft_s: list[float]) -> Iterator[Turn]:
    compared = compare(trace, strategies=strategy, simulate=True, progress=False)
    simulated = compared.requests.reused_tokens.tolist()
    names = {"": "main"}
    for exchange, expected, seconds in zip(
        trace.inference, simulated, ttft_s, strict=True
    ):
        message = _message(exchange)
        usage = message["usage"]
        reused = usage["cache_read_input_tokens"]
        others = usage["input_tokens"] + usage["cache_creation_input_tokens"]
        yield Turn(
            names.setdefault(exchange.agent, f"agent {len(names)}"),
            tuple(map(_line, message["content"])),
            others + reused,
            reused,
            expected,
            seconds,
        )


def _message(exchange: Exchange) -> dict[str, Any]:
    response = exchange.response
    if response is None or response.status != 200 or response.message is None:
        raise MlxlabError(f"request {exchange.id} was not answered; see the log")
    return response.message


def _line(block: Mapping[str, Any]) -> str:
    """Return a block of an answer as one line."""
    match block["type"]:
        case "text":
            line = block["text"]
        case "tool_use":
            given = block["input"]
            about = next((given[key] for key in _DESCRIPTIVE if key in given), "")
            line = f"→ {block['name']} {about}"
        case kind:
            line = f"({kind})"
    return shorten(line, _WIDTH, placeholder=" …")


def _changes(project: Path) -> str:
    """Return the project's differences, new files included."""
    for command in (["add", "--all"], ["diff", "--cached", "--stat"]):
        told = subprocess.check_output(["git", *command], cwd=project, text=True)
    return told.rstrip()


def _table(transcript: Transcript) -> Table:
    table = Table(box=SIMPLE_HEAD, title=transcript.title, title_justify="left")
    for column in ("turn", "who", "answer"):
        table.add_column(column)
    for column in ("prompt", "reused", "new", "TTFT s"):
        table.add_column(column, justify="right")
    for number, turn in enumerate(transcript.turns, start=1):
        counts = (turn.prompt, turn.reused, turn.prompt - turn.reused)
        table.add_row(
            str(number),
            turn.who,
            "\n".join(turn.answer),
            *(f"{count:,}" for count in counts),
            f"{turn.ttft_s:.2f}",
        )
    return table


def main() -> None:
    """Run a scenario and print its transcript."""
    known = sorted(path.parent.name for path in SCENARIOS.glob("*/steps.json"))
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("scenario", nargs="?", default="loop", choices=known)
    parser.add_argument("--strategy", default="paged")
    given = parser.parse_args()
    client = find_client() or install()
    transcript = transcribe(SCENARIOS / given.scenario, client, given.strategy)
    console = Console(width=120, highlight=False)
    console.print(_table(transcript))
    console.print(transcript.changes, markup=False)
    console.print(f"\n{transcript.summary}")


if __name__ == "__main__":
    try:
        main()
    except (MlxlabError, OSError, subprocess.SubprocessError) as error:
        sys.exit(str(error))
