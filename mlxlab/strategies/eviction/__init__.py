"""Eviction policies: one file each, registered by name.

Every module of this package is imported, so a new file is all that a policy needs.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from mlxlab.strategies.eviction.base import (
    DEFAULT,
    EVICTIONS,
    Entry,
    Eviction,
    MayGo,
    make_eviction,
    read_eviction,
)

__all__ = [
    "DEFAULT",
    "EVICTIONS",
    "Entry",
    "Eviction",
    "MayGo",
    "make_eviction",
    "read_eviction",
]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
