"""Records the traces in data/traces with a real client; see the README there.

Each scenario runs in a fresh copy of its project and an empty home, against a recorder
that answers from the scenario's script. Raw recordings hold the client's own prompts,
so only their anonymised form is written to the repository.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from mlxlab.errors import MlxlabError
from mlxlab.traces import Trace, read_trace, write_trace
from mlxlab.traces.anonymize.anonymizer import anonymize
from mlxlab.traces.recording.recorder import recording
from mlxlab.traces.schema import HeaderLine

HERE = Path(__file__).parent
SCENARIOS = HERE / "scenarios"
CACHE = Path.home() / ".cache/mlxlab/client"
INSTALL_S = 300
PACKAGE = "@anthropic-ai/claude-code"
TOOLS = "Bash Read Edit Write Agent NotebookEdit"
STEP_S = 120
GIT = ("git", "-c", "user.name=Robin", "-c", "user.email=robin@example.org")


def install(version: str = "latest", folder: Path = CACHE) -> Path:
    """Install a client from npm outside the repository; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        "npm",
        "install",
        "--silent",
        "--prefix",
        str(folder),
        f"{PACKAGE}@{version}",
    ]
    subprocess.run(command, check=True, timeout=INSTALL_S)
    return folder / "node_modules/.bin/claude"


def environment(url: str, home: Path) -> dict[str, str]:
    """Return the client's environment: empty home, dummy key, no other traffic."""
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": str(home),
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_API_KEY": "sk-dummy",
        "DISABLE_TELEMETRY": "1",
        "DISABLE_AUTOUPDATER": "1",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "IS_SANDBOX": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def copied(scenario: Path, folder: Path) -> Path:
    """Copy the scenario's project and put it under version control."""
    project = folder / scenario.name
    shutil.copytree(scenario / "project", project)
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "First version"]):
        subprocess.run([*GIT, *command], cwd=project, check=True)
    return project


def take(
    step: dict[str, Any], client: Path, project: Path, env: dict[str, str]
) -> None:
    """Run the client with one prompt, to its end."""
    again = ["--continue"] if step.get("continue") else []
    subprocess.run(
        [client, "-p", *again, step["prompt"], "--allowedTools", TOOLS],
        cwd=project,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        timeout=STEP_S,
        check=True,
    )


def recorded(scenario: Path, client: Path) -> Trace:
    """Record the steps of a scenario; return the raw trace."""
    steps = json.loads((scenario / "steps.json").read_text())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        home = folder / "home"
        home.mkdir()
        project = copied(scenario, folder)
        out = folder / f"{scenario.name}.jsonl"
        with recording(out, script=scenario / "script.json") as recorder:
            env = environment(recorder.url, home)
            for step in tqdm(steps, desc=f"  {scenario.name}", leave=False):
                take(step, client, project, env)
        return read_trace(out)


def publish(trace: Trace, client: str) -> None:
    """Write the anonymised trace with its provenance, readable by all users."""
    anonymous = anonymize(trace, progress=False)
    notes = {"client": client, "scenario": trace.name}
    header = HeaderLine.model_validate(anonymous.header.model_dump() | notes)
    path = HERE / "traces" / f"{trace.name}.jsonl"
    write_trace(replace(anonymous, header=header), path)
    path.chmod(0o644)


def main(
    names: Annotated[
        list[str] | None, typer.Argument(help="Record these scenarios; all by default.")
    ] = None,
    client: Annotated[
        Path | None, typer.Option(help="Use this client instead of the newest one.")
    ] = None,
) -> None:
    """Record scenarios into data/traces."""
    known = sorted(path.parent.name for path in SCENARIOS.glob("*/steps.json"))
    unknown = set(names or ()) - set(known)
    if unknown:
        sys.exit(f"no scenario {', '.join(unknown)}; choose from {', '.join(known)}")
    binary = client or install()
    version = subprocess.check_output([binary, "--version"], text=True).strip()
    for name in tqdm(names or known, desc="scenarios"):
        publish(recorded(SCENARIOS / name, binary), version)


if __name__ == "__main__":
    try:
        typer.run(main)
    except (MlxlabError, OSError, subprocess.SubprocessError) as error:
        sys.exit(str(error))
