"""Completions of traces, strategies, rules and other names, for shells and notebooks.

Names are loaded when a user asks for completions, so that commands start fast.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from glob import escape
from typing import TYPE_CHECKING

from mlxlab.errors import ConfigError
from mlxlab.files import expanded

if TYPE_CHECKING:
    from mlxlab.strategies import Parameter

__all__ = [
    "complete_edits",
    "complete_files",
    "complete_formats",
    "complete_layouts",
    "complete_models",
    "complete_policies",
    "complete_rules",
    "complete_strategies",
    "complete_texts",
    "complete_traces",
]

#: A spec whose last parameter is incomplete: the strategy, and that parameter's name.
_PARAMETERS = r"(?:.*,)?([a-z0-9-]+):(?:\w+=[^,@]*,)*(\w*)"

#: A spec whose last value is incomplete: also that value.
_VALUES = rf"{_PARAMETERS}=([^,@]*)"


def complete_traces(incomplete: str) -> list[str]:
    """Complete a bundled trace or a file."""
    from mlxlab.traces.bundled import bundled_traces

    return [*_matching(bundled_traces(), incomplete), *complete_files(incomplete)]


def complete_models(incomplete: str) -> list[str]:
    """Complete a model's name, a folder or a GGUF file."""
    from mlxlab.models.folder import BUNDLED, SMOLLM2

    paths = complete_files(incomplete)
    files = [path for path in paths if path.endswith(("/", ".gguf"))]
    return [*_matching([BUNDLED, SMOLLM2], incomplete), *files]


def complete_layouts(incomplete: str) -> list[str]:
    """Complete a model whose layout is known."""
    from mlxlab.models.geometry import known_layouts

    return _matching(known_layouts(), incomplete)


def complete_files(incomplete: str) -> list[str]:
    """Complete a path; folders end in a slash."""
    folder, slash, name = incomplete.rpartition("/")
    try:
        parent = expanded(f"{folder}{slash}" or ".")
    except ConfigError:
        return []
    found = sorted(parent.glob(f"{escape(name)}*"))
    return [f"{folder}{slash}{path.name}{'/' * path.is_dir()}" for path in found]


def complete_strategies(incomplete: str) -> list[str]:
    """Complete the last of several specs: its name, parameter, value or rules."""
    from mlxlab.strategies import STRATEGIES
    from mlxlab.strategies.placements import PLACEMENTS

    before, at, rules = incomplete.rpartition("@")
    if at and "," not in rules:
        return [f"{before}@{rest}" for rest in _complete_list(rules, _rules(), "+")]
    found = _complete_list(incomplete, STRATEGIES)
    match = re.fullmatch(_PARAMETERS, incomplete)
    if match and match[1] in STRATEGIES:
        keys = [f"{key}=" for key in STRATEGIES[match[1]].declared]
        before = incomplete[: match.start(2)]
        found += [f"{before}{key}" for key in _matching(keys, match[2])]
    match = re.fullmatch(_VALUES, incomplete)
    if match and match[1] in STRATEGIES:
        declared = STRATEGIES[match[1]].declared.get(match[2])
        before, value = incomplete[: match.start(3)], match[3]
        words = _complete_list(value, PLACEMENTS, "+") if _is_placed(declared) else ()
        known = _matching(declared.words, value) if declared else ()
        found += [f"{before}{word}" for word in (*words, *known)]
    return found


def complete_policies(incomplete: str) -> list[str]:
    """Complete the last of several eviction policies."""
    from mlxlab.strategies.eviction import EVICTIONS

    return _complete_list(incomplete, EVICTIONS)


def complete_rules(incomplete: str) -> list[str]:
    """Complete the last of several rules or exceptions."""
    from mlxlab.rendering.rules import DEFAULT_RULES

    exceptions = [f"-{name}" for name in DEFAULT_RULES]
    return _complete_list(incomplete, [*_rules(), *exceptions])


def complete_formats(incomplete: str) -> list[str]:
    """Complete a format of traces to import."""
    from mlxlab.traces.importers import AUTO, IMPORTERS

    return _matching([AUTO, *IMPORTERS], incomplete)


def complete_edits(incomplete: str) -> list[str]:
    """Complete the last of several edits."""
    from mlxlab.analysis.fidelity.edits import EDIT_GROUPS, EDITS

    return _complete_list(incomplete, [*EDIT_GROUPS, "none", *EDITS])


def complete_texts(incomplete: str) -> list[str]:
    """Complete a form of the text of changed blocks."""
    from mlxlab.analysis.misses.text_diff import TextShown

    return _matching(map(str, TextShown), incomplete)


def _is_placed(declared: Parameter | None) -> bool:
    """Whether the values of a parameter are places of checkpoints."""
    from mlxlab.strategies.placements import read_placement

    return declared is not None and declared.read is read_placement


def _rules() -> list[str]:
    from mlxlab.rendering.rules import RULES

    return ["all", "none", *RULES]


def _complete_list(
    incomplete: str, names: Iterable[str], joint: str = ","
) -> list[str]:
    first, comma, last = incomplete.rpartition(joint)
    return [f"{first}{comma}{name}" for name in _matching(names, last)]


def _matching(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
