"""Cache strategies, by name. To add one, see docs/architecture.md."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable

from mlxlab.errors import StrategyError
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
from mlxlab.strategies.mlx_lm_lru import MlxLmLru
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

UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def make_strategy(
    name: str, *, token_bytes: int = 1, **parameters: Parameter
) -> Strategy:
    """A fresh strategy, empty.

    Args:
        name: a key of :data:`STRATEGIES`.
        token_bytes: keys and values of one token, all layers, in bytes.
        parameters: the strategy's own; what is left out has its default.

    Raises:
        StrategyError: no such strategy, no such parameter, or a value out of range.
    """
    return _make(name, token_bytes, parameters)


def parse_strategy(spec: str, *, token_bytes: int = 1) -> Strategy:
    """The strategy that ``name[:key=value,...]`` describes.

    Values are words, or whole numbers that may end in ``KiB``, ``MiB`` or ``GiB``, as
    in ``paged:block=32,capacity=1GiB`` and ``suffix:rotate=no``.

    Raises:
        StrategyError: as :func:`make_strategy`, or ``spec`` is malformed.
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
    return _make(name.strip(), token_bytes, parameters)


def _make(name: str, token_bytes: int, parameters: dict[str, Parameter]) -> Strategy:
    if name not in STRATEGIES:
        raise StrategyError(
            f"no strategy {name!r}; choose from {', '.join(STRATEGIES)}"
        )
    chosen: Callable[..., Strategy] = STRATEGIES[name]
    accepted = [
        key for key in inspect.signature(chosen).parameters if key != "token_bytes"
    ]
    for key in parameters:
        if key not in accepted:
            choices = ", ".join(accepted) or "no parameters"
            raise StrategyError(f"{name}: no parameter {key!r}; accepted: {choices}")
    return chosen(**{"token_bytes": token_bytes, **parameters})
