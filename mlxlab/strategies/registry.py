"""Strategies by name, and the text that names one with its parameters."""

from __future__ import annotations

import re
from typing import TypeVar

from mlxlab.errors import StrategyError, did_you_mean
from mlxlab.sizes import UNITS
from mlxlab.strategies.base import Strategy
from mlxlab.strategies.parameters import ParameterValue

__all__ = [
    "STRATEGIES",
    "find_strategy",
    "make_strategy",
    "parse_parameters",
    "parse_strategy",
    "register",
]

STRATEGIES: dict[str, type[Strategy]] = {}
"""Registered strategies by name, in the order of their rank."""

S = TypeVar("S", bound=Strategy)


def register(strategy: type[S]) -> type[S]:
    """Class decorator: list a strategy in :data:`STRATEGIES` under its name.

    A class that is defined again, as in a notebook cell, takes its own place.

    Raises:
        StrategyError: another strategy has this name.
    """
    other = STRATEGIES.get(strategy.name)
    if other is not None and (other.__module__, other.__qualname__) != (
        strategy.__module__,
        strategy.__qualname__,
    ):
        raise StrategyError(
            f"{strategy.__name__}: {strategy.name!r} names {other.__name__} already; "
            "choose another name"
        )
    STRATEGIES[strategy.name] = strategy
    ranked = sorted(STRATEGIES.items(), key=lambda item: item[1].rank)
    STRATEGIES.clear()
    STRATEGIES.update(ranked)
    return strategy


def find_strategy(name: str) -> type[Strategy]:
    """Return the strategy registered under ``name``.

    Raises:
        StrategyError: there is none; the message lists all names.
    """
    if name not in STRATEGIES:
        near = did_you_mean(name, STRATEGIES)
        raise StrategyError(
            f"no strategy {name!r}; choose from {', '.join(STRATEGIES)}{near}"
        )
    return STRATEGIES[name]


def make_strategy(
    strategy: str | type[Strategy],
    /,
    *,
    token_bytes: int = 1,
    unit: int = 1,
    **parameters: ParameterValue,
) -> Strategy:
    """Make a strategy with an empty cache.

    Args:
        strategy: a key of :data:`STRATEGIES`, or a class.
        token_bytes: bytes of keys and values of one token, all layers.
        unit: tokens that each id of a prompt stands for, more than 1 in hashed traces.
            Parameters are in tokens all the same; the strategy gets them in units.
        parameters: the strategy's own; the others have their defaults.

    Raises:
        StrategyError: an unknown strategy or parameter, a value out of range, or a
            token count that is not in whole units.
    """
    cls = find_strategy(strategy) if isinstance(strategy, str) else strategy
    if unit > 1:
        parameters |= _in_units(cls, unit, parameters)
    return cls(**{"token_bytes": token_bytes * unit, **parameters})


def parse_strategy(
    spec: str, *, token_bytes: int = 1, unit: int = 1, capacity: int | None = None
) -> Strategy:
    """Make the strategy that ``name[:key=value,...]`` describes.

    Args:
        spec: name and parameters, see :func:`parse_parameters`.
        token_bytes: see :func:`make_strategy`.
        unit: see :func:`make_strategy`.
        capacity: bytes, if ``spec`` gives none.

    Raises:
        StrategyError: as :func:`make_strategy`, or ``spec`` is malformed.
    """
    name, given = parse_parameters(spec)
    parameters = find_strategy(name).check_parameters(given)
    if capacity is not None:
        parameters.setdefault("capacity", capacity)
    return make_strategy(name, token_bytes=token_bytes, unit=unit, **parameters)


def parse_parameters(spec: str) -> tuple[str, dict[str, ParameterValue]]:
    """Split ``name[:key=value,...]`` into a name and parameters.

    Values are words, or whole numbers that may end in ``KiB``, ``MiB`` or ``GiB``, as
    in ``paged:block=32,capacity=1GiB`` and ``suffix:rotate=no``.

    Raises:
        StrategyError: malformed.
    """
    name, colon, rest = spec.strip().partition(":")
    parameters: dict[str, ParameterValue] = {}
    for item in rest.split(",") if colon else []:
        key, _, value = (part.strip() for part in item.partition("="))
        match = re.fullmatch(r"([0-9]{1,18}) ?(KiB|MiB|GiB|)|[a-z]+", value)
        if not key or match is None:
            raise StrategyError(
                f"{spec!r}: cannot read {item!r}; give key=number, with KiB, MiB or "
                "GiB after the number if you like, or key=word"
            )
        if key in parameters:
            raise StrategyError(f"{spec!r}: {key} is given twice; give it once")
        parameters[key] = int(match[1]) * UNITS[match[2]] if match[1] else value
    return name.strip(), parameters


def _in_units(
    strategy: type[Strategy], unit: int, given: dict[str, ParameterValue]
) -> dict[str, ParameterValue]:
    """Return all declared parameters for prompts whose ids are units of tokens."""
    if not strategy.exact:
        raise StrategyError(
            f"{strategy.name}: nothing can be moved in a hashed trace, which has no "
            "token ids; choose an exact strategy"
        )
    return {
        key: declared.in_units(strategy.name, key, given.get(key), unit)
        for key, declared in strategy.declared.items()
    }
