"""Strategies by name, and the text that names one with its parameters."""

from __future__ import annotations

import re
from typing import TypeVar

from mlxlab.errors import StrategyError, did_you_mean
from mlxlab.models.kv_bits import FULL, GROUP, KVBits
from mlxlab.models.layout import CacheLayout, Windows
from mlxlab.sizes import UNITS
from mlxlab.strategies.base import Strategy
from mlxlab.strategies.parameters import Kind, Limit, Parameter, ParameterValue

__all__ = [
    "STRATEGIES",
    "check_spec",
    "find_strategy",
    "make_strategy",
    "parse_parameters",
    "parse_strategy",
    "register",
]

STRATEGIES: dict[str, type[Strategy]] = {}
"""Registered strategies by name, in the order of their rank."""

S = TypeVar("S", bound=Strategy)

#: One byte a token: sizes in tokens.
BYTE = CacheLayout.plain(1)


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
    layout: CacheLayout = BYTE,
    unit: int = 1,
    **parameters: ParameterValue,
) -> Strategy:
    """Make a strategy with an empty cache.

    Args:
        strategy: a key of :data:`STRATEGIES`, or a class.
        layout: what the model keeps.
        unit: tokens that each id of a prompt stands for, more than 1 in hashed traces.
            Parameters are in tokens all the same; the strategy gets them in units.
        parameters: the strategy's own; the others have their defaults.

    Raises:
        StrategyError: an unknown strategy or parameter, a value out of range or without
            meaning for this layout, or a token count that is not in whole units.
    """
    cls = find_strategy(strategy) if isinstance(strategy, str) else strategy
    windows = _windows(cls, layout, parameters)
    bits = _bits(cls, layout, windows, parameters)
    sizes = {
        "token_bytes": layout.token_bytes(windows, bits) * unit,
        "computed_bytes": layout.token_bytes(windows) * unit,
        "checkpoint_bytes": layout.checkpoint_bytes(windows),
    }
    if unit > 1:
        sizes["unit"] = unit
        parameters |= _in_units(cls, unit, parameters, sizes["checkpoint_bytes"] > 0)
    return cls(**{**sizes, **parameters})


def parse_strategy(
    spec: str,
    *,
    layout: CacheLayout = BYTE,
    unit: int = 1,
    capacity: int | None = None,
) -> Strategy:
    """Make the strategy that ``name[:key=value,...]`` describes.

    Args:
        spec: name and parameters, see :func:`parse_parameters`.
        layout: see :func:`make_strategy`.
        unit: see :func:`make_strategy`.
        capacity: bytes, if ``spec`` gives none.

    Raises:
        StrategyError: as :func:`make_strategy`, or ``spec`` is malformed.
    """
    name, given = parse_parameters(spec)
    parameters = find_strategy(name).check_parameters(given)
    if capacity is not None:
        parameters.setdefault("capacity", capacity)
    return make_strategy(name, layout=layout, unit=unit, **parameters)


def check_spec(spec: str) -> None:
    """Check what ``spec`` says, as far as it does not depend on the model.

    Raises:
        StrategyError: see :func:`parse_strategy`.
    """
    name, given = parse_parameters(spec)
    parameters = find_strategy(name).check_parameters(given)
    for key, value in vars(Strategy).items():
        if isinstance(value, Parameter):
            parameters.pop(key, None)  # of windows and checkpoints
    make_strategy(name, layout=BYTE, unit=1, **parameters)


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
        match = re.fullmatch(r"([0-9]{1,18}) ?(KiB|MiB|GiB|)|[a-z][a-z0-9.+-]*", value)
        if not key or match is None:
            raise StrategyError(
                f"{spec!r}: cannot read {item!r}; give key=number, with KiB, MiB or "
                "GiB after the number if you like, or key=word"
            )
        if key in parameters:
            raise StrategyError(f"{spec!r}: {key} is given twice; give it once")
        parameters[key] = int(match[1]) * UNITS[match[2]] if match[1] else value
    return name.strip(), parameters


def _windows(
    strategy: type[Strategy], layout: CacheLayout, given: dict[str, ParameterValue]
) -> Windows:
    """Return how the store keeps the windows of this layout."""
    value = given.get("windows")
    if value is not None and not layout.windows:
        raise StrategyError(
            f"{strategy.name}: windows={value}: this model has no window layers; leave "
            "windows out"
        )
    checked = strategy.check_parameters({"windows": value} if value else {})
    return Windows(str(checked.get("windows", Windows.CHECKPOINTS)))


def _bits(
    strategy: type[Strategy],
    layout: CacheLayout,
    windows: Windows,
    given: dict[str, ParameterValue],
) -> KVBits:
    """Return the bits of keys and values at rest, which this layout must allow."""
    own = {key: value for key, value in given.items() if key in ("kv", "kv_group")}
    checked = {k: str(v) for k, v in strategy.check_parameters(own).items()}
    bits = KVBits.parse(checked.get("kv", str(FULL)), checked.get("kv_group", GROUP))
    if bits.is_full:
        return bits
    parts = layout.tokens(windows)
    if not parts:
        raise StrategyError(
            f"{strategy.name}: kv={bits}: this model keeps a state, and no keys and "
            "values of each token; leave kv out"
        )
    for part in parts:
        if not bits.fits(part.keys, part.values):
            raise StrategyError(
                f"{strategy.name}: kv={bits}: a token of this model has {part.keys} "
                f"numbers of keys and {part.values} of values in a layer, which are "
                f"no groups of {bits.group}; give another kv_group, or leave kv out"
            )
    return bits


def _in_units(
    strategy: type[Strategy], unit: int, given: dict[str, ParameterValue], resumed: bool
) -> dict[str, ParameterValue]:
    """Return the parameters for prompts whose ids are units of tokens.

    Args:
        strategy: a class of strategies.
        unit: tokens that one id stands for.
        given: parameters in tokens.
        resumed: whether the model is resumed at checkpoints, where blocks mean nothing.
    """
    if not strategy.exact:
        raise StrategyError(
            f"{strategy.name}: nothing can be moved in a hashed trace, which has no "
            "token ids; choose an exact strategy"
        )
    block = strategy.limits.get(Limit.BLOCK) if resumed else None
    return {
        key: declared.in_units(strategy.name, key, given.get(key), unit)
        for key, declared in strategy.declared.items()
        if declared.kind is Kind.TOKENS and (key != block or key in given)
    }
