"""Notebooks are committed as a reader should find them: run once, top to bottom."""

import json
import re
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))

#: The order of reading, which the file names follow.
ORDER = [
    "00_quickstart",
    "01_serve",
    "02_why_it_misses",
    "03_compare",
    "04_tune",
    "05_approximate",
    "06_decoder",
    "07_any_model",
    "08_eviction",
]

#: The largest file, in bytes: diffs and pages stay readable.
LARGEST = 1_500_000

#: A header or variable for a token, with a value that could be one. A name such as
#: ``server.token`` is not a value.
TOKEN = re.compile(
    r"(ANTHROPIC_AUTH_TOKEN|ANTHROPIC_API_KEY|MLXLAB_TOKEN|x-api-key|--token|"
    r"auth_token|api_key|Bearer)[\"'\\]*\s*[=: ]\s*[\"'\\]*(?!server\.token\b)"
    r"(?=[\w-]*[\d_-])[\w-]{8,}",
    re.IGNORECASE,
)
SECRET = re.compile(r"\bsk-[\w-]{8,}")
#: Folders that only one machine has.
FOLDER = re.compile(r"(?<![\w.])/(home|Users|root|work|private|var|tmp|opt|usr)/\w")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@each_notebook
def test_cells_were_executed_in_order_and_without_errors(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(o.output_type == "error" for cell in code for o in cell.outputs)
    assert not any(o.get("name") == "stderr" for cell in code for o in cell.outputs)


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) >= 2


def test_names_give_the_order_of_reading() -> None:
    assert [path.stem for path in NOTEBOOKS] == ORDER


@each_notebook
def test_it_begins_with_what_the_reader_gets_and_ends_with_the_next_step(
    path: Path,
) -> None:
    first, *_, last = nbformat.read(path, as_version=4).cells
    assert first.source.startswith("# ")
    assert "**You get:**" in first.source
    assert "**Next:**" in last.source


@each_notebook
def test_pictures_need_no_backend(path: Path) -> None:
    assert "%matplotlib" not in path.read_text()


@each_notebook
def test_links_lead_somewhere(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    text = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", text)
    assert links
    for link in links:
        assert link.startswith("https://") or (path.parent / link).is_file(), link


def test_the_next_step_leads_through_all_of_them() -> None:
    for path, following in pairwise(NOTEBOOKS):
        last = nbformat.read(path, as_version=4).cells[-1]
        assert f"({following.name})" in last.source, path.name


@each_notebook
def test_no_cell_and_no_output_holds_a_token_or_a_folder_of_a_machine(
    path: Path,
) -> None:
    cells = nbformat.read(path, as_version=4).cells
    for cell in cells:
        for output in cell.get("outputs", ()):
            output.get("data", {}).pop("image/png", None)
    text = json.dumps(cells, ensure_ascii=False)
    for pattern in (TOKEN, SECRET, FOLDER):
        found = pattern.search(text)
        assert found is None, found


@pytest.mark.parametrize(
    "line",
    [
        "ANTHROPIC_AUTH_TOKEN=only-for-this-notebook",
        'export ANTHROPIC_AUTH_TOKEN="Zk3wq9ZkPl0aQm1x"',
        "'x-api-key': 'Zk3wq9ZkPl0aQm1x'",
        r"\"x-api-key\": \"Zk3wq9ZkPl0aQm1x\"",
        "%serve --token only-for-this-notebook",
        'Anthropic(auth_token="Zk3wq9ZkPl0aQm1x")',
        "Authorization: Bearer Zk3wq9ZkPl0aQm1x",
    ],
)
def test_the_search_for_tokens_finds_them(line: str) -> None:
    assert TOKEN.search(line)


def test_the_search_for_tokens_passes_names() -> None:
    for line in ("auth_token=server.token", "<code>ANTHROPIC_AUTH_TOKEN</code> or"):
        assert not TOKEN.search(line)


@each_notebook
def test_files_stay_small(path: Path) -> None:
    assert path.stat().st_size < LARGEST
