"""Parameters of strategies, declared once: default, range, help and tuning values."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

from mlxlab.errors import StrategyError
from mlxlab.sizes import format_size

__all__ = ["Kind", "Limit", "Parameter", "ParameterValue", "parameter"]

ParameterValue: TypeAlias = int | str
"""A number or a word."""


class Limit(StrEnum):
    """What a parameter limits, where other code has to know that."""

    CAPACITY = "capacity"  # bytes of keys and values in memory
    BLOCK = "block"  # granularity of reuse in tokens
    MINIMUM = "minimum"  # tokens below which nothing is reused
    SLOTS = "slots"  # sequences in memory


class Kind(StrEnum):
    """The unit of a parameter's values."""

    BYTES = "bytes"
    TOKENS = "tokens"
    COUNT = "count"
    PERCENT = "percent"
    WORD = "word"


_KINDS = {
    Limit.CAPACITY: Kind.BYTES,
    Limit.BLOCK: Kind.TOKENS,
    Limit.MINIMUM: Kind.TOKENS,
    Limit.SLOTS: Kind.COUNT,
}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One keyword of a strategy's constructor; see :func:`parameter`."""

    default: ParameterValue
    help: str
    limit: Limit | None
    kind: Kind
    least: int
    tries: tuple[ParameterValue, ...]
    words: tuple[str, ...]
    read: Callable[[str], str] | None = None

    def check(self, owner: str, key: str, value: ParameterValue) -> ParameterValue:
        """Return ``value``.

        Raises:
            StrategyError: the value is out of range; the message says what is accepted.
        """
        if self.read is not None:
            return self._read(owner, key, value)
        if self.kind is Kind.WORD:
            accepted, valid = f"one of {', '.join(self.words)}", value in self.words
            value = str(value) if valid else value
        else:
            accepted = f"a whole number >= {self.least}"
            valid = type(value) is int and value >= self.least
            if valid and self.kind is Kind.PERCENT:
                accepted, valid = "a percentage up to 100", int(value) <= 100
        if not valid:
            raise StrategyError(
                f"{owner}: {key}={value!r} is not accepted; give {accepted}"
            )
        return value

    def _read(self, owner: str, key: str, value: ParameterValue) -> ParameterValue:
        assert self.read is not None
        try:
            return self.read(str(value))
        except StrategyError as error:
            raise StrategyError(f"{owner}: {key}={value!r}: {error}") from None

    def text(self, value: ParameterValue) -> str:
        """Return ``value`` as specs write it."""
        return format_size(int(value)) if self.kind is Kind.BYTES else str(value)

    def in_units(
        self, owner: str, key: str, value: ParameterValue | None, unit: int
    ) -> ParameterValue:
        """Convert a value in tokens to units; the default if None, rounded up.

        Raises:
            StrategyError: a given token count is not a multiple of ``unit``.
        """
        if self.kind is not Kind.TOKENS:
            return self.default if value is None else value
        if value is not None and (type(value) is not int or value % unit):
            raise StrategyError(
                f"{owner}: {key}={value} is not in units of {unit} tokens, the "
                "resolution of the hashed trace; give a multiple"
            )
        return -(-int(self.default if value is None else value) // unit)

    def tries_in(self, unit: int) -> tuple[ParameterValue, ...]:
        """Return the values worth trying that are multiples of ``unit``, at least one.

        Args:
            unit: tokens per id of a hashed trace, 1 for others.
        """
        if self.kind is not Kind.TOKENS:
            return self.tries
        whole = (value for value in self.tries if int(value) % unit == 0)
        return tuple(whole) or (unit,)


def parameter(
    default: ParameterValue,
    help: str,
    limit: Limit | None = None,
    *,
    kind: Kind = Kind.COUNT,
    least: int = 1,
    tries: Iterable[ParameterValue] = (),
    words: Iterable[str] = (),
    read: Callable[[str], str] | None = None,
) -> Any:
    """Declare a parameter in the body of a strategy.

    ``block: int = parameter(64, "Tokens in a block.", Limit.BLOCK)`` makes ``block`` a
    keyword of the constructor, an attribute, and a key of specs and manifests.

    Args:
        default: the value if none is given.
        help: one sentence.
        limit: what the parameter limits; decides ``kind``.
        kind: unit of the values.
        least: smallest number accepted.
        tries: values that ``tune`` tries; none to leave the parameter at its default.
        words: the words accepted, for parameters that are words.
        read: for words of a form of their own: returns the word as specs write it, or
            raises a StrategyError that says what is accepted.
    """
    if limit is not None:
        kind = _KINDS[limit]
    words = tuple(map(str, words))
    kind = Kind.WORD if words or read else kind
    return Parameter(default, help, limit, kind, least, tuple(tries), words, read)
