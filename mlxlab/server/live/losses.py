"""Sums up what causes have cost that a rule or setting would have saved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlxlab.analysis.misses.causes import RULE
from mlxlab.errors import MlxlabError
from mlxlab.replay.specs import StrategySpec

__all__ = ["Losses"]

#: Causes that are shown.
_SHOWN = 3
#: A strategy of the shadow is proposed if it would have saved this share of the tokens.
_WORTH = 0.5


@dataclass(slots=True)
class _Loss:
    """What one cause has cost, where one remedy would have helped."""

    tokens: int = 0
    seconds: float = 0.0
    saved: Counter[str] = field(default_factory=Counter)


class Losses:
    """What each cause has cost so far, from the explanations of requests."""

    def __init__(self) -> None:
        self._losses: dict[tuple[str, str], _Loss] = {}

    def add(self, facts: Mapping[str, Any], reused_tokens: int) -> None:
        """Add a request.

        Args:
            facts: see :meth:`mlxlab.server.explanation.Explanation.facts`.
            reused_tokens: those of the request.
        """
        for cause, remedy, tokens, seconds in facts.get("losses", ()):
            loss = self._losses.setdefault((cause, remedy), _Loss())
            loss.tokens += tokens
            loss.seconds += seconds
            if cause == facts.get("kind"):
                for spec, others in facts.get("shadow", {}).items():
                    loss.saved[spec] += min(max(others - reused_tokens, 0), tokens)

    def to_dict(self, rules: Collection[str], strategy: str) -> dict[str, Any]:
        """Return all seconds and the costliest causes as JSON values.

        Args:
            rules: names of the rules in force.
            strategy: the spec in force.
        """
        ordered = sorted(
            self._losses.items(), key=lambda item: (-item[1].seconds, -item[1].tokens)
        )
        causes = [
            {
                "cause": cause,
                "lost_tokens": loss.tokens,
                "lost_s": round(loss.seconds, 3),
                **_choose(remedy, loss, rules, strategy),
            }
            for (cause, remedy), loss in ordered[:_SHOWN]
        ]
        seconds = sum(loss.seconds for loss in self._losses.values())
        return {"lost_s": round(seconds, 3), "causes": causes}


def _choose(
    remedy: str, loss: _Loss, rules: Collection[str], strategy: str
) -> dict[str, Any]:
    """Return the remedy, and the change of settings that it is, if it is still one."""
    if remedy.startswith(RULE):
        name = remedy.removeprefix(RULE)
        if name in rules:
            return {"remedy": name}
        return {"remedy": name, "setting": {"rules": ",".join((*rules, name))}}
    for spec, saved in loss.saved.most_common(1):
        if not _is_exact(remedy) and saved >= _WORTH * loss.tokens:
            remedy = spec
    if _is_exact(remedy) and remedy != strategy:
        return {"remedy": remedy, "setting": {"strategy": remedy}}
    return {"remedy": remedy}


def _is_exact(remedy: str) -> bool:
    """Whether a remedy is the spec of a strategy that changes no answer."""
    try:
        return StrategySpec.parse(remedy).exact
    except MlxlabError:  # a remedy of another kind
        return False
