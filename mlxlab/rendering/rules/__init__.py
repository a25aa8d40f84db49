"""Canonicalisation: named rules that render equal conversations alike.

Read literally, a request renders differently whenever the client moves a cache marker
or changes a session's header. Each rule removes one such cause. Without the rule, the
conversation is what a server without such a rule would render.

One file a rule: every module of this package is imported, so a new file is all that a
rule needs.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from mlxlab.rendering.rules.base import Effect, Rule
from mlxlab.rendering.rules.registry import (
    RULES,
    canonicalize,
    find_rule,
    label_rules,
    parse_rules,
    register,
)
from mlxlab.rendering.rules.written import RESERVED

__all__ = [
    "DEFAULT_RULES",
    "RESERVED",
    "RULES",
    "Effect",
    "Rule",
    "canonicalize",
    "find_rule",
    "label_rules",
    "parse_rules",
    "register",
]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

DEFAULT_RULES = parse_rules("all")
"""Names of the rules that are on by default."""
