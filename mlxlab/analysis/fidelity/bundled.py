"""The fidelity results that come with mlxlab, by name."""

from __future__ import annotations

from pathlib import Path

__all__ = ["bundled_results"]

_PACKAGE = Path(__file__).parents[2]


def bundled_results() -> dict[str, Path]:
    """Return file by name, from data/fidelity of a checkout, else from the package.

    ``make fidelity`` makes them; ``ml.Fidelity.read_json`` reads one.
    """
    for folder in (_PACKAGE.parent / "data/fidelity", _PACKAGE / "data/fidelity"):
        if folder.is_dir():
            found = sorted(folder.glob("*.json.gz"))
            return {path.name.removesuffix(".json.gz"): path for path in found}
    return {}
