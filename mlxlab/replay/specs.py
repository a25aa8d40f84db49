"""Strategy specs: a strategy with parameters, under a set of rules."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Self, TypeAlias

from mlxlab.errors import StrategyError
from mlxlab.models.kv_bits import FULL
from mlxlab.models.layout import CacheLayout
from mlxlab.rendering.rules import DEFAULT_RULES, label_rules, parse_rules
from mlxlab.strategies import (
    STRATEGIES,
    ParameterValue,
    Selection,
    Strategy,
    find_strategy,
    make_strategy,
    parse_parameters,
)
from mlxlab.strategies.eviction import DEFAULT

__all__ = [
    "DEFAULT_SPECS",
    "EXACT_SPECS",
    "FIDELITY_SPECS",
    "SpecLike",
    "Strategies",
    "StrategySpec",
    "parse_specs",
]

#: Every exact strategy.
EXACT_SPECS = ",".join(name for name, strategy in STRATEGIES.items() if strategy.exact)

#: Every exact strategy, after the cache of most local servers: one slot, no rules.
DEFAULT_SPECS = f"prefix@none,{EXACT_SPECS}"

#: Exact reuse, approximate reuse as it is meant to be, and its controls: full reuse,
#: no rotation, and some or all tokens computed again.
FIDELITY_SPECS = ",".join(
    [
        "paged",
        "suffix",
        "segmented",
        "suffix-naive",
        "segmented-naive",
        "suffix:rotate=no",
        *(f"suffix:recompute=15,selection={selection}" for selection in Selection),
        "suffix:recompute=100",
    ]
)


@dataclass(frozen=True, slots=True)
class StrategySpec:
    """A strategy with parameters, and the rules that its prompts are rendered under.

    Attributes:
        policy: the class; it need not be registered.
        parameters: the given ones; their order shows in names only.
        rules: names, in the order of RULES.
        capacity: bytes that it may hold if ``parameters`` give no capacity; None for
            its own default.

    Raises:
        StrategyError: an unknown parameter, or a value out of range.
    """

    policy: type[Strategy]
    parameters: Mapping[str, ParameterValue] = field(default_factory=dict, hash=False)
    rules: tuple[str, ...] = DEFAULT_RULES
    capacity: int | None = None

    def __post_init__(self) -> None:
        checked = self.policy.check_parameters(self.parameters)
        given = {key: checked[key] for key in self.parameters}
        object.__setattr__(self, "parameters", given)

    @classmethod
    def parse(
        cls, text: str, rules: Iterable[str] | str = "all", capacity: int | None = None
    ) -> Self:
        """Read ``name[:key=value,...][@rules]``.

        Args:
            text: one strategy. A rule set behind ``@`` is ``all``, ``none``, or names
                (or exceptions such as ``-drop-attribution``) joined with ``+``.
            rules: default rules, for a text without ``@``: names, or text that
                :func:`mlxlab.rendering.rules.parse_rules` reads.
            capacity: bytes, for a strategy without a capacity of its own.

        Raises:
            StrategyError: malformed, or an unknown strategy or parameter.
            RuleError: an unknown rule.
        """
        strategy, at, own = text.strip().partition("@")
        name, parameters = parse_parameters(strategy)
        policy = find_strategy(name)
        if at:
            rules = own.replace("+", ",")
        chosen = parse_rules(rules) if isinstance(rules, str) else tuple(rules)
        return cls(policy, parameters, chosen, capacity)

    @property
    def strategy(self) -> str:
        """``name[:key=value,...]``."""
        declared = self.policy.declared
        given = [f"{k}={declared[k].text(v)}" for k, v in self.parameters.items()]
        return f"{self.policy.name}:{','.join(given)}" if given else self.policy.name

    @property
    def rules_label(self) -> str:
        """See :func:`mlxlab.rendering.rules.label_rules`."""
        return label_rules(self.rules)

    @property
    def name(self) -> str:
        """The text that :meth:`parse` reads; no rules if all are in force."""
        label = self.rules_label.replace(",", "+")
        return self.strategy if label == "all" else f"{self.strategy}@{label}"

    @property
    def evict(self) -> str:
        """The policy that chooses what the strategy evicts; the default for none."""
        declared = self.policy.declared.get("evict")
        chosen = declared.default if declared is not None else DEFAULT
        return str(self.parameters.get("evict", chosen))

    @property
    def exact(self) -> bool:
        """Whether answers are those of a full prefill."""
        return self.policy.exact and self.parameters.get("kv", str(FULL)) == str(FULL)

    def make(self, layout: CacheLayout, *, unit: int = 1) -> Strategy:
        """Make the strategy with an empty cache.

        Args:
            layout: see :func:`mlxlab.strategies.make_strategy`.
            unit: see :func:`mlxlab.strategies.make_strategy`.

        Raises:
            StrategyError: see :func:`mlxlab.strategies.make_strategy`.
        """
        parameters = dict(self.parameters)
        if self.capacity is not None:
            parameters.setdefault("capacity", self.capacity)
        return make_strategy(self.policy, layout=layout, unit=unit, **parameters)


SpecLike: TypeAlias = str | StrategySpec | type[Strategy]
"""A spec, a strategy class, or text: one or more specs joined with commas."""

Strategies: TypeAlias = SpecLike | Iterable[SpecLike]
"""The strategies of a verb: one, or a list of them."""


def parse_specs(
    strategies: Strategies,
    rules: str = "all",
    capacity: int | None = None,
) -> tuple[StrategySpec, ...]:
    """Read strategy specs.

    Args:
        strategies: text such as ``prefix@none,paged:block=32``, a spec, a strategy
            class, or a list of these. See :meth:`StrategySpec.parse`.
        rules: default rules, for text without ``@`` and for classes; see
            :func:`mlxlab.rendering.rules.parse_rules`.
        capacity: bytes, for strategies without a capacity of their own.

    Raises:
        StrategyError: a malformed or unknown strategy, or two specs of one name.
        RuleError: an unknown rule.
    """
    one = isinstance(strategies, str | StrategySpec | type)
    items: Iterable[SpecLike] = [strategies] if one else strategies  # type: ignore[list-item, assignment]
    specs: list[StrategySpec] = []
    for item in items:
        for spec in _specs(item, rules, capacity):
            if spec in specs or spec.name in {own.name for own in specs}:
                raise StrategyError(f"strategies: {spec.name} is named twice")
            specs.append(spec)
    return tuple(specs)


def _specs(item: SpecLike, rules: str, capacity: int | None) -> Iterator[StrategySpec]:
    if isinstance(item, str):
        # A comma before key=value belongs to the parameters of one strategy.
        for text in re.split(r",(?!\s*\w+\s*=)", item):
            yield StrategySpec.parse(text, rules, capacity)
    elif isinstance(item, StrategySpec):
        yield replace(item, capacity=capacity) if item.capacity is None else item
    elif isinstance(item, type) and issubclass(item, Strategy):
        yield StrategySpec(item, {}, parse_rules(rules), capacity)
    else:
        raise StrategyError(
            f"strategies: {item!r} is not a strategy; give a name, a spec such as "
            "'paged:block=32', or a class"
        )
