"""A case of the command line: what lies in a folder, and the commands run in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TypeAlias

__all__ = ["Commands", "Setting"]


@dataclass(frozen=True, slots=True)
class Commands:
    """Command lines that run one after the other, until one is refused.

    Attributes:
        lines: the arguments of each.
        environment: variables to set, or to unset where the value is None.
    """

    lines: tuple[tuple[str, ...], ...]
    environment: Mapping[str, str | None] = field(default_factory=dict)


Setting: TypeAlias = Callable[[Random, Path], Commands]
"""Fills an empty folder and returns the commands to run in it."""
