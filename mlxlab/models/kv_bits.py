"""Keys and values at rest in fewer bits than they are computed in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from mlxlab.errors import StrategyError

__all__ = ["COMPUTED", "FULL", "GROUP", "KVBits", "read_group", "read_kv"]

#: Bits that stand for numbers as they were computed, whatever their type.
FULL = 16
#: Numbers that share a scale and an offset, by default.
GROUP = 64

_BITS = (FULL, 8, 4)
_GROUPS = (32, 64, 128)
_APART = re.compile(r"k(\d+)v(\d+)")


@dataclass(frozen=True, slots=True)
class KVBits:
    """Bits of keys and values at rest, by mlx's affine quantisation.

    Attributes:
        keys: bits of a number of a key, or of a latent.
        values: bits of a number of a value.
        group: numbers that share a scale and an offset, along the heads of a token.
    """

    keys: int = FULL
    values: int = FULL
    group: int = GROUP

    @classmethod
    def parse(cls, text: str, group: str | int = GROUP) -> Self:
        """Read ``16``, ``8``, ``4``, or apart as in ``k8v4``.

        Raises:
            StrategyError: anything else, or a group of another size.
        """
        apart = _APART.fullmatch(text)
        keys, values = apart.groups() if apart else (text, text)
        if not {keys, values} <= set(map(str, _BITS)):
            raise StrategyError(
                "give 16, 8 or 4 bits, or keys and values apart as in k8v4"
            )
        if str(group) not in map(str, _GROUPS):
            raise StrategyError(f"give one of {', '.join(map(str, _GROUPS))}")
        return cls(int(keys), int(values), int(group))

    def __str__(self) -> str:
        if self.keys == self.values:
            return str(self.keys)
        return f"k{self.keys}v{self.values}"

    @property
    def is_full(self) -> bool:
        """Whether everything stays as it was computed."""
        return self.keys == self.values == FULL

    def fits(self, keys: int, values: int) -> bool:
        """Whether the numbers of a token can be put into groups.

        Args:
            keys: numbers of a token's keys, all heads of a layer.
            values: of its values.
        """
        packed = [
            n for n, bits in ((keys, self.keys), (values, self.values)) if bits < FULL
        ]
        return all(n % self.group == 0 for n in packed)

    def nbytes(self, keys: float, values: float, number: int) -> float:
        """Return the bytes of a token at rest, in one layer.

        Args:
            keys: numbers of its keys.
            values: numbers of its values.
            number: bytes of a number as it was computed, and of a scale or offset.
        """
        return sum(
            n * number if bits == FULL else n * (bits / 8 + 2 * number / self.group)
            for n, bits in ((keys, self.keys), (values, self.values))
        )


COMPUTED = KVBits()
"""All numbers as they were computed."""


def read_kv(text: str) -> str:
    """Return bits as specs write them.

    Raises:
        StrategyError: see :meth:`KVBits.parse`.
    """
    return str(KVBits.parse(text))


def read_group(text: str) -> str:
    """Return the size of a group.

    Raises:
        StrategyError: see :meth:`KVBits.parse`.
    """
    return str(KVBits.parse(str(FULL), text).group)
