"""The contract of a placement: at which tokens of a prompt checkpoints are taken.

A model with recurrent state or windows can be resumed at checkpoints only. A placement
says where they are worth taking; :class:`~mlxlab.strategies.sequences.checkpoints`
decides which of them stay.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from mlxlab.errors import StrategyError, did_you_mean
from mlxlab.prompt import Prompt

__all__ = [
    "DEFAULT",
    "PLACEMENTS",
    "Combined",
    "Placement",
    "parse_placement",
    "read_placement",
    "register",
]

#: Where checkpoints are kept by default.
DEFAULT = "system+tools+environment+messages4096+branches+prompt+answer"

_WORD = re.compile(r"([a-z]+(?:[-.][a-z]+)*)([0-9]{1,9})?")


class Placement(ABC):
    """One kind of place, as ``system`` or ``every2048``.

    Attributes:
        name: how specs name it.
        summary: one line for lists.
        source: where it is described, if it is another project's.
        spacing: tokens that the number behind its name stands for by default; None
            for a kind without a number.
        answer: whether the end of the answer is a place too.
        most: checkpoints to keep of one sequence, the latest; None for any number.

    Args:
        number: the number behind the name, in ids of the prompts.
        unit: tokens that one id stands for.
    """

    name: ClassVar[str]
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    spacing: ClassVar[int | None] = None
    answer: bool = False
    most: int | None = None

    def __init__(self, number: int = 0, unit: int = 1) -> None:
        self.number = number
        self.unit = unit

    @abstractmethod
    def places(self, prompt: Prompt, match: int) -> Iterable[int]:
        """Return positions of ``prompt`` to take a checkpoint at, in any order.

        Args:
            prompt: the prompt to plan.
            match: leading tokens that are stored, resumable or not.
        """


P = TypeVar("P", bound=type[Placement])

PLACEMENTS: dict[str, type[Placement]] = {}
"""Registered kinds of places by name, in the order of their registration."""


def register(placement: P) -> P:
    """Class decorator: list a placement in :data:`PLACEMENTS` under its name."""
    PLACEMENTS[placement.name] = placement
    return placement


@dataclass(frozen=True, slots=True)
class Combined:
    """Several placements: the union of their places.

    Attributes:
        parts: the placements.
    """

    parts: tuple[Placement, ...]

    @property
    def answer(self) -> bool:
        """Whether the end of the answer is a place."""
        return any(part.answer for part in self.parts)

    @property
    def most(self) -> int | None:
        """Checkpoints to keep of one sequence; None for any number."""
        return min((p.most for p in self.parts if p.most is not None), default=None)

    def places(self, prompt: Prompt, match: int) -> list[int]:
        """Return the positions between the prompt's first and last token, ascending."""
        found = {place for part in self.parts for place in part.places(prompt, match)}
        return sorted(place for place in found if 0 < place < len(prompt))


def parse_placement(text: str, unit: int = 1) -> Combined:
    """Read kinds of places joined with ``+``, as in ``system+every2048+answer``.

    Args:
        text: names of :data:`PLACEMENTS`, some with a number of tokens.
        unit: tokens that one id of a prompt stands for.

    Raises:
        StrategyError: an unknown name, or a number where none belongs.
    """
    return Combined(tuple(_parse(word, unit) for word in text.split("+")))


def read_placement(text: str) -> str:
    """Return ``text`` if :func:`parse_placement` reads it.

    Raises:
        StrategyError: see :func:`parse_placement`.
    """
    parse_placement(text)
    return text


def _parse(word: str, unit: int) -> Placement:
    match = _WORD.fullmatch(word)
    name, number = (match[1], match[2]) if match else (word, None)
    if name not in PLACEMENTS:
        near = did_you_mean(name, PLACEMENTS)
        raise StrategyError(
            f"no place {word!r}; join {', '.join(PLACEMENTS)} with +{near}"
        )
    kind = PLACEMENTS[name]
    if kind.spacing is None:
        if number is not None:
            raise StrategyError(f"{word!r}: {name} takes no number; give {name}")
        return kind(unit=unit)
    tokens = kind.spacing if number is None else int(number)
    if tokens < 1 and kind.spacing:
        raise StrategyError(
            f"{word!r}: give a number of tokens, as in {name}{kind.spacing}"
        )
    return kind(-(-tokens // unit), unit)
