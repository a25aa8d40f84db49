"""Cache strategies, by name. To add one, see docs/architecture.md."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping

from mlxlab.errors import StrategyError
from mlxlab.sizes import UNITS
from mlxlab.strategies.base import (
    Commit,
    Cut,
    Handle,
    Parameter,
    Plan,
    Put,
    Selection,
    Span,
    Strategy,
)
from mlxlab.strategies.block_hash import BlockHash
from mlxlab.strategies.mlx_lm import MlxLmLru
from mlxlab.strategies.none import NoReuse
from mlxlab.strategies.paged import Paged
from mlxlab.strategies.prefix import Prefix
from mlxlab.strategies.segmented import Segmented, SegmentedNaive
from mlxlab.strategies.static_prefix import StaticPrefix
from mlxlab.strategies.suffix import Suffix, SuffixNaive

__all__ = [
    "STRATEGIES",
    "Commit",
    "Cut",
    "Handle",
    "Parameter",
    "Plan",
    "Put",
    "Selection",
    "Span",
    "Strategy",
    "make_strategy",
    "parse_spec",
    "parse_strategy",
]

STRATEGIES: dict[str, type[Strategy]] = {
    strategy.name: strategy
    for strategy in (
        NoReuse,
        Prefix,
        StaticPrefix,
        BlockHash,
        Paged,
        MlxLmLru,
        Suffix,
        SuffixNaive,
        Segmented,
        SegmentedNaive,
    )
}


def make_strategy(
    name: str, *, token_bytes: int = 1, unit: int = 1, **parameters: Parameter
) -> Strategy:
    """A fresh strategy, empty.

    Args:
        name: a key of :data:`STRATEGIES`.
        token_bytes: keys and values of one token, all layers, in bytes.
        unit: tokens that each id of a prompt stands for, more than 1 in hashed traces.
            Parameters are in tokens nevertheless; the strategy has them in units.
        parameters: the strategy's own; what is left out has its default.

    Raises:
        StrategyError: no such strategy, no such parameter, a value out of range, or one
            that is not in whole units.
    """
    return _make(name, token_bytes, unit, parameters)


def parse_strategy(
    spec: str, *, token_bytes: int = 1, unit: int = 1, capacity: int | None = None
) -> Strategy:
    """The strategy that ``name[:key=value,...]`` describes.

    Values are words, or whole numbers that may end in ``KiB``, ``MiB`` or ``GiB``, as
    in ``paged:block=32,capacity=1GiB`` and ``suffix:rotate=no``.

    Args:
        spec: name and parameters.
        token_bytes: see :func:`make_strategy`.
        unit: likewise.
        capacity: bytes, where ``spec`` names none.

    Raises:
        StrategyError: as :func:`make_strategy`, or ``spec`` is malformed.
    """
    name, parameters = parse_spec(spec)
    if capacity is not None:
        parameters.setdefault("capacity", capacity)
    return _make(name, token_bytes, unit, parameters)


def parse_spec(spec: str) -> tuple[str, dict[str, Parameter]]:
    """Name and parameters in ``name[:key=value,...]``, see :func:`parse_strategy`.

    Raises:
        StrategyError: malformed.
    """
    name, colon, rest = spec.strip().partition(":")
    parameters: dict[str, Parameter] = {}
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


def _make(
    name: str, token_bytes: int, unit: int, parameters: dict[str, Parameter]
) -> Strategy:
    if name not in STRATEGIES:
        raise StrategyError(
            f"no strategy {name!r}; choose from {', '.join(STRATEGIES)}"
        )
    strategy = STRATEGIES[name]
    signature = inspect.signature(strategy).parameters
    defaults = {key: p.default for key, p in signature.items() if key != "token_bytes"}
    for key in parameters:
        if key not in defaults:
            choices = ", ".join(defaults) or "no parameters"
            raise StrategyError(f"{name}: no parameter {key!r}; accepted: {choices}")
    if unit > 1:
        parameters |= _in_units(strategy, unit, defaults, parameters)
    chosen: Callable[..., Strategy] = strategy
    return chosen(**{"token_bytes": token_bytes * unit, **parameters})


def _in_units(
    strategy: type[Strategy],
    unit: int,
    defaults: Mapping[str, Parameter],
    given: Mapping[str, Parameter],
) -> dict[str, Parameter]:
    """The parameters that count tokens, in units; defaults are rounded up to one."""
    if not strategy.exact:
        raise StrategyError(
            f"{strategy.name}: nothing can be moved in a hashed trace; choose an exact "
            "strategy"
        )
    counted: dict[str, Parameter] = {}
    for key in strategy.in_tokens:
        value = given.get(key, defaults[key])
        if key in given and (not isinstance(value, int) or value % unit):
            raise StrategyError(
                f"{strategy.name}: {key}={value} is not in units of {unit} tokens, "
                "which is all that the hashed trace tells; give a multiple"
            )
        counted[key] = -(-int(value) // unit)
    return counted
