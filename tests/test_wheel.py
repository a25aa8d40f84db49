"""A wheel holds all that the package reads, so that it works outside a checkout."""

from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZipFile]:
    folder = tmp_path_factory.mktemp("wheel")
    [path] = WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    with ZipFile(path) as opened:
        yield opened


@pytest.mark.parametrize(
    ("pattern", "place"),
    [
        ("notebooks/*.ipynb", "mlxlab/data/notebooks"),
        ("data/traces/*.jsonl", "mlxlab/data/traces"),
        ("data/fidelity/*.json.gz", "mlxlab/data/fidelity"),
        ("mlxlab/models/tiny/*", "mlxlab/models/tiny"),
        ("mlxlab/server/live/p*", "mlxlab/server/live"),
    ],
)
def test_files_are_inside_whole(wheel: ZipFile, pattern: str, place: str) -> None:
    sources = [path for path in ROOT.glob(pattern) if path.is_file()]
    assert sources
    for source in sources:
        assert wheel.read(f"{place}/{source.name}") == source.read_bytes()


def test_nothing_but_the_package_is_inside(wheel: ZipFile) -> None:
    names = wheel.namelist()
    assert not [n for n in names if "__pycache__" in n]
    assert {name.partition("/")[0] for name in names} <= {
        "mlxlab",
        next(n for n in names if ".dist-info/" in n).partition("/")[0],
    }
