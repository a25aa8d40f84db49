"""Sums up why requests computed what had been computed before, and what avoids it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlxlab.analysis.misses.causes import Cause

__all__ = ["Losses"]

#: Causes that are shown.
_SHOWN = 3
#: A strategy is proposed if it would have reused this share of the lost tokens.
_WORTH = 0.5
_CAUSES = frozenset(map(str, Cause))


@dataclass(slots=True)
class _Loss:
    """The tokens and seconds that one cause has cost."""

    requests: int = 0
    lost_tokens: int = 0
    lost_s: float = 0.0
    saved: Counter[str] = field(default_factory=Counter)


class Losses:
    """What each cause has cost so far."""

    def __init__(self) -> None:
        self._losses: dict[str, _Loss] = {}

    def add(self, facts: Mapping[str, Any], reused_tokens: int) -> None:
        """Add the explanation of a request.

        Args:
            facts: of its event.
            reused_tokens: those of the request.
        """
        kind, tokens = facts.get("kind"), facts.get("lost_tokens") or 0
        if not kind or not tokens:
            return
        loss = self._losses.setdefault(str(kind), _Loss())
        loss.requests += 1
        loss.lost_tokens += tokens
        loss.lost_s += facts.get("lost_s") or 0.0
        for spec, others in (facts.get("shadow") or {}).items():
            loss.saved[spec] += max(others - reused_tokens, 0)

    def to_list(self, rules: Collection[str]) -> list[dict[str, Any]]:
        """Return the costliest causes as JSON values, the costliest first.

        Args:
            rules: names of the rules in force.
        """
        ordered = sorted(
            self._losses.items(), key=lambda item: (-item[1].lost_s, -item[1].lost_tokens)
        )
        return [
            {
                "cause": kind,
                "requests": loss.requests,
                "lost_tokens": loss.lost_tokens,
                "lost_s": round(loss.lost_s, 3),
                **_remedy(kind, loss, rules),
            }
            for kind, loss in ordered[:_SHOWN]
        ]


def _remedy(kind: str, loss: _Loss, rules: Collection[str]) -> dict[str, Any]:
    """Return the setting that would have avoided most of a loss, if one is known."""
    rule = Cause(kind).rule if kind in _CAUSES else None
    if rule and rule not in rules:
        return {"remedy": rule, "setting": {"rules": ",".join((*rules, rule))}}
    for spec, saved in loss.saved.most_common(1):
        if saved >= _WORTH * loss.lost_tokens:
            return {"remedy": spec, "setting": {"strategy": spec}}
    return {}
