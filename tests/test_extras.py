"""Where an extra is not installed, one line says what to install."""

import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlxlab.errors import MissingExtraError
from mlxlab.extras import needs
from mlxlab.traces import write_trace
from tests.support.exchanges import small_trace

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]

#: Packages that only an extra brings, as modules.
_OPTIONAL = (
    "IPython",
    "anyio",
    "anywidget",
    "dask",
    "distributed",
    "fastapi",
    "httpx",
    "ipywidgets",
    "llguidance",
    "matplotlib",
    "optuna",
    "prometheus_client",
    "pyarrow",
    "starlette",
    "uvicorn",
)

_WITHOUT = """
import sys
for name in {!r}:
    sys.modules[name] = None
from mlxlab.cli import main
sys.argv[0] = "mlxlab"
main()
"""


def run_without_extras(
    *arguments: object, without: tuple[str, ...] = _OPTIONAL
) -> subprocess.CompletedProcess[str]:
    script = _WITHOUT.format(without)
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def names_of(requirements: list[str]) -> set[str]:
    return {requirement.partition(">")[0] for requirement in requirements}


def test_a_missing_package_becomes_one_line_that_names_its_extra() -> None:
    with (
        pytest.raises(MissingExtraError) as caught,
        needs("record", "serve"),
    ):
        import_module("no_such_package.part")
    line = "record needs no_such_package: pip install 'mlxlab[serve]'"
    assert str(caught.value) == line


def test_a_missing_module_of_our_own_stays_a_bug() -> None:
    with pytest.raises(ModuleNotFoundError) as caught, needs("serve"):
        import_module("mlxlab.no_such_module")
    assert not isinstance(caught.value, MissingExtraError)


def test_misses_of_ones_own_history_need_no_extra(tmp_path: Path) -> None:
    done = run_without_extras("misses", ROOT / "data/traces/deferred.jsonl")
    assert done.returncode == 0, done.stderr
    assert "fresh content" in done.stdout


def test_a_live_comparison_needs_a_backend_alone(tmp_path: Path) -> None:
    trace = tmp_path / "small.jsonl"
    write_trace(small_trace(), trace)
    command = ["compare", trace, "--strategies", "paged"]
    done = run_without_extras(*command)
    assert done.returncode == 0, done.stderr
    done = run_without_extras(*command, without=("mlx",))
    line = "mlxlab: running a model needs mlx: pip install 'mlxlab[cpu]'"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, line)


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (["serve"], "serve needs "),
        (["record", "--out", "{}/trace.jsonl"], "record needs "),
        (["report"], "plots needs matplotlib: pip install 'mlxlab[plots]'"),
        (["sweep"], "sweep needs distributed: pip install 'mlxlab[sweep]'"),
        (["tune"], "tune needs optuna: pip install 'mlxlab[tune]'"),
        (
            ["compare", "--simulate", "--strategies", "none", "--plots", "{}"],
            "plots needs matplotlib: pip install 'mlxlab[plots]'",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_each_verb_names_the_extra_that_it_needs(
    command: list[str], line: str, tmp_path: Path
) -> None:
    done = run_without_extras(*(word.format(tmp_path) for word in command))
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"mlxlab: {line}")
    assert "pip install 'mlxlab[" in last


def test_a_public_name_says_which_extra_it_needs() -> None:
    script = "\n".join(
        [
            "import sys",
            f"for name in {_OPTIONAL!r}: sys.modules[name] = None",
            "import mlxlab as ml",
            "ml.compare, ml.misses, ml.import_trace",
            "try: ml.serve",
            "except ml.MlxlabError as error: print(error)",
        ]
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("serve needs ")
    assert done.stdout.endswith(": pip install 'mlxlab[serve]'\n")


def test_no_optional_package_is_a_dependency() -> None:
    always = names_of(PROJECT["project"]["dependencies"])
    optional = {name.lower().replace("_", "-") for name in _OPTIONAL}
    assert not always & optional


def test_lab_brings_every_package_of_the_features() -> None:
    assert "mlxlab[plots,sweep,tune,serve]" in EXTRAS["lab"]
    assert {"jupyterlab", "ipython", "ipywidgets"} <= names_of(EXTRAS["lab"])


def test_the_conda_environment_needs_no_checkout() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == "mlxlab"
    assert all(isinstance(line, str) for line in environment["dependencies"])
    python = next(d for d in environment["dependencies"] if d.startswith("python"))
    assert PROJECT["project"]["requires-python"] in python


@pytest.mark.parametrize("file", ["environment.yml", "README.md", "Makefile"])
def test_documented_commands_install_extras_that_exist(file: str) -> None:
    text = (ROOT / file).read_text()
    found = re.findall(r"(?:mlxlab|'\.)\[([a-z0-9,]+)\]'", text)
    assert found
    assert {name for names in found for name in names.split(",")} <= set(EXTRAS)
