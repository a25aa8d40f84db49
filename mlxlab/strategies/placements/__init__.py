"""Placements of checkpoints: one file for each kind, registered by name."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from mlxlab.strategies.placements.base import (
    DEFAULT,
    PLACEMENTS,
    Combined,
    Placement,
    parse_placement,
    read_placement,
)

__all__ = [
    "DEFAULT",
    "PLACEMENTS",
    "Combined",
    "Placement",
    "parse_placement",
    "read_placement",
]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
