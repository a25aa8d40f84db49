"""Cache strategies: one file each, registered by name.

Every module of this package is imported, so a new file is all that a strategy needs;
see docs/architecture.md.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from mlxlab.strategies.base import Example, Strategy
from mlxlab.strategies.disk import Disk
from mlxlab.strategies.parameters import (
    Kind,
    Limit,
    Parameter,
    ParameterValue,
    parameter,
)
from mlxlab.strategies.plan import (
    Commit,
    Cut,
    DiskCommit,
    Handle,
    Keep,
    Plan,
    Put,
    Record,
    Selection,
    Span,
    Tier,
)
from mlxlab.strategies.registry import (
    STRATEGIES,
    check_spec,
    find_strategy,
    make_strategy,
    parse_parameters,
    parse_strategy,
    register,
)

__all__ = [
    "STRATEGIES",
    "Commit",
    "Cut",
    "Disk",
    "DiskCommit",
    "Example",
    "Handle",
    "Keep",
    "Kind",
    "Limit",
    "Parameter",
    "ParameterValue",
    "Plan",
    "Put",
    "Record",
    "Selection",
    "Span",
    "Strategy",
    "Tier",
    "check_spec",
    "find_strategy",
    "make_strategy",
    "parameter",
    "parse_parameters",
    "parse_strategy",
    "register",
]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
