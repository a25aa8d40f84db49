"""What a user imports is what the package says it offers."""

import subprocess
import sys

import pytest

import mlxlab


def test_all_names_are_there_and_sorted() -> None:
    assert all(hasattr(mlxlab, name) for name in mlxlab.__all__)
    constants = [name for name in mlxlab.__all__ if name.isupper()]
    classes = [name for name in mlxlab.__all__ if name[0].isupper() and name[1:2] > "Z"]
    functions = [name for name in mlxlab.__all__ if name.islower()]
    for kind in (constants, classes, functions):
        assert kind == sorted(kind)


def test_every_public_name_is_documented() -> None:
    for name in mlxlab.__all__:
        thing = getattr(mlxlab, name)
        assert name.isupper() or (thing.__doc__ or "").strip()


def test_what_one_sees_is_what_it_offers() -> None:
    assert dir(mlxlab) == sorted(mlxlab.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'explain'"):
        _ = mlxlab.explain  # type: ignore[attr-defined]


def test_importing_it_loads_nothing_heavy() -> None:
    script = """
import sys
import mlxlab
heavy = {"pandas", "numpy", "dask", "distributed", "optuna", "matplotlib", "fastapi",
         "transformers", "pydantic", "mlx", "IPython"} & set(sys.modules)
sys.exit(f"loaded {sorted(heavy)}" if heavy else 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_verb_loads_what_it_needs_and_no_more() -> None:
    script = """
import sys
import mlxlab
mlxlab.compare, mlxlab.misses, mlxlab.sweep, mlxlab.tune, mlxlab.fidelity
heavy = {"dask", "distributed", "optuna", "matplotlib", "fastapi", "mlx", "IPython"}
found = heavy & set(sys.modules)
sys.exit(f"loaded {sorted(found)}" if found else 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
