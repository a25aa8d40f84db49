"""What is compared: a strategy with its parameters, under a set of rules."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from mlxlab.errors import StrategyError
from mlxlab.rendering.rules import RULES, parse_rules
from mlxlab.strategies import STRATEGIES, Selection, Strategy, parse_strategy

__all__ = [
    "DEFAULT_SPECS",
    "EXACT_SPECS",
    "FIDELITY_SPECS",
    "Strategies",
    "StrategySpec",
    "parse_specs",
]

Strategies: TypeAlias = str | Sequence[str]
"""Strategies to replay: a list, or one text joined with commas."""

#: Every exact strategy.
EXACT_SPECS = ",".join(name for name, strategy in STRATEGIES.items() if strategy.exact)

#: The same, behind what local servers do today: one slot, no rules.
DEFAULT_SPECS = f"prefix@none,{EXACT_SPECS}"

#: Exact reuse, approximate reuse as it is meant to be, and its controls: done naively,
#: without rotation, and with some or all tokens computed again.
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
    """A strategy and the rules that its prompts are rendered under.

    Attributes:
        strategy: ``name[:key=value,...]``.
        rules: names, in the order of RULES.
        capacity: bytes that it may hold where its parameters name none; None for its
            own default.
    """

    strategy: str
    rules: tuple[str, ...]
    capacity: int | None = None

    @property
    def rules_label(self) -> str:
        """``all``, ``none``, names, or exceptions: whichever list is shorter."""
        missing = [name for name in RULES if name not in self.rules]
        if not missing or not self.rules:
            return "none" if missing else "all"
        if len(missing) < len(self.rules):
            return ",".join(f"-{name}" for name in missing)
        return ",".join(self.rules)

    @property
    def name(self) -> str:
        """The strategy, with its rules where not all are in force."""
        label = self.rules_label
        return self.strategy if label == "all" else f"{self.strategy}@{label}"

    def make(self, token_bytes: int, *, unit: int = 1) -> Strategy:
        """A fresh strategy.

        Args:
            token_bytes: see :func:`mlxlab.strategies.parse_strategy`.
            unit: likewise.

        Raises:
            StrategyError: see :func:`mlxlab.strategies.parse_strategy`.
        """
        return parse_strategy(
            self.strategy, token_bytes=token_bytes, unit=unit, capacity=self.capacity
        )


def parse_specs(
    strategies: Strategies, rules: str = "all", capacity: int | None = None
) -> tuple[StrategySpec, ...]:
    """Read ``name[:key=value,...][@rules],...``.

    Args:
        strategies: a list, or one text joined with commas. A rule set behind ``@`` is
            ``all``, ``none``, or names (or exceptions) joined with ``+``.
        rules: for strategies without ``@``; see
            :func:`mlxlab.rendering.rules.parse_rules`.
        capacity: bytes, for strategies that name none.

    Raises:
        StrategyError: one is named twice.
        RuleError: an unknown rule.
    """
    text = strategies if isinstance(strategies, str) else ",".join(strategies)
    specs: list[StrategySpec] = []
    # A comma before key=value belongs to the parameters of one strategy.
    for item in re.split(r",(?!\s*\w+\s*=)", text):
        strategy, at, own = item.strip().partition("@")
        chosen = parse_rules(own.replace("+", ",") if at else rules)
        spec = StrategySpec(strategy, chosen, capacity)
        if spec in specs:
            raise StrategyError(f"strategies: {item.strip()} is named twice")
        specs.append(spec)
    return tuple(specs)
