"""The help, completions and suggestions; and how fast they start."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import mlxlab
from mlxlab.cli import app
from mlxlab.cli.completion import (
    complete_edits,
    complete_formats,
    complete_models,
    complete_policies,
    complete_rules,
    complete_strategies,
    complete_texts,
    complete_traces,
)
from mlxlab.sizes import format_size
from mlxlab.strategies.base import CAPACITY

COMMANDS = get_command(app).commands  # type: ignore[attr-defined]
GROUPS = {
    "See": [
        *("doctor", "strategies", "placements", "rules", "read-trace"),
        *("misses", "compare", "report", "audit"),
    ],
    "Decide": ["calibrate", "sweep", "tune", "fidelity", "evictions", "plan"],
    "Serve": ["serve", "claude", "agents"],
    "Share": ["record", "import-trace", "anonymize", "export-trace", "notebooks"],
}
VERBS = [
    *("anonymize", "audit", "calibrate", "compare", "doctor", "evictions"),
    *("export_trace", "fidelity", "import_trace"),
    *("misses", "plan", "read_trace", "record", "report", "serve", "sweep", "tune"),
]


def shown(*arguments: str) -> str:
    done = CliRunner().invoke(app, [*arguments, "--help"], env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    return done.output


def test_commands_stand_in_groups_in_order_of_use() -> None:
    lines = shown().splitlines()
    found: dict[str, list[str]] = {}
    for line in lines[lines.index("See:") :]:
        if line.endswith(":"):
            group = found.setdefault(line.rstrip(":"), [])
        elif line:
            group.append(line.split()[0])
    assert found == GROUPS


def test_a_verb_has_one_name_in_shell_and_python() -> None:
    assert set(VERBS) < set(mlxlab.__all__)
    assert {verb.replace("_", "-") for verb in VERBS} < COMMANDS.keys()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_explained_in_45_characters(command: str) -> None:
    short = COMMANDS[command].get_short_help_str(200)
    assert 10 <= len(short) <= 45
    assert short.endswith(".")


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)], ids=str)
def test_helps_fit_80_columns_and_are_clauses(command: tuple[str, ...]) -> None:
    text = shown(*command)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "..." not in text.replace(",...", "").replace("]...", "")
    if command:
        for parameter in COMMANDS[command[0]].params:
            assert parameter.help[0].isupper(), parameter.name
            assert parameter.help.rstrip().endswith("."), parameter.name


def test_brackets_of_specs_are_shown() -> None:
    assert "name[:key=value,...][@rules]" in shown("compare")


def test_helps_name_the_defaults_of_the_verbs() -> None:
    for command in ("tune", "report"):
        assert f"{format_size(CAPACITY)} by default" in " ".join(shown(command).split())


def test_without_a_command_the_help_is_shown() -> None:
    done = CliRunner().invoke(app, [])
    assert done.exit_code == 0
    assert "Decide:" in done.output


def test_the_version_is_shown() -> None:
    assert CliRunner().invoke(app, ["--version"]).output.startswith("mlxlab 0.")


def test_the_help_loads_nothing_heavy() -> None:
    script = """
import sys
sys.argv = ["mlxlab", "--help"]
from mlxlab.cli import main
try:
    main()
except SystemExit:
    pass
heavy = {"pandas", "numpy", "dask", "distributed", "optuna", "matplotlib", "fastapi",
         "transformers", "tokenizers", "mlx", "mlx_lm", "IPython", "httpx", "tqdm",
         "rich.table", "mlxlab.strategies", "mlxlab.traces", "mlxlab.rendering"}
found = sorted(heavy & set(sys.modules))
sys.exit(f"loaded {found}" if found else 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Decide:" in done.stdout


def test_names_are_completed() -> None:
    assert "sessions" in complete_traces("ses")
    assert complete_traces("tests/cl") == ["tests/cli/", "tests/client/"]
    assert complete_models("tin") == ["tiny"]
    assert complete_models("smol") == ["smollm2"]
    assert complete_texts("re") == ["redacted"]
    assert complete_formats("cap") == ["capture"]
    assert complete_edits("header,dat") == ["header,date"]
    assert complete_policies("lru,res") == ["lru,residual"]


@pytest.mark.parametrize(
    ("incomplete", "completed"),
    [
        ("pag", ["paged"]),
        ("prefix@none,pag", ["prefix@none,paged"]),
        ("prefix@no", ["prefix@none"]),
        ("prefix@plain-content+in", ["prefix@plain-content+inline-system"]),
        ("paged:bl", ["paged:block="]),
        ("paged:block=32,cap", ["paged:block=32,capacity="]),
        ("paged:block=32,pre", ["paged:block=32,prefix"]),
        ("paged:checkpoints=omlx+ev", ["paged:checkpoints=omlx+every"]),
        ("paged:block=32,checkpoints=oll", ["paged:block=32,checkpoints=ollama"]),
        ("paged:windows=to", ["paged:windows=tokens"]),
        ("suffix:rotate=n", ["suffix:rotate=no"]),
        ("mlx-lm:checkpoints=t", []),
        ("paged:share=1", []),
        ("nope", []),
    ],
)
def test_strategies_are_completed(incomplete: str, completed: list[str]) -> None:
    assert complete_strategies(incomplete) == completed


def test_rules_are_completed() -> None:
    assert complete_rules("al") == ["all"]
    assert complete_rules("-plain-content,-in") == ["-plain-content,-inline-system"]


def test_a_shell_completes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mlxlab"],
        env={
            "_MLXLAB_COMPLETE": "complete_bash",
            "COMP_WORDS": "mlxlab compare sessions --strategies prefix,pag",
            "COMP_CWORD": "4",
            "PYTHONPATH": ":".join(sys.path),
            "HOME": "/nonexistent",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["prefix,paged"], done.stderr
