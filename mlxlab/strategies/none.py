"""No reuse at all: the baseline that every other strategy is compared with."""

from __future__ import annotations

from mlxlab.prompt import Prompt
from mlxlab.strategies.base import Commit, Plan, Strategy

__all__ = ["NoReuse"]


class NoReuse(Strategy):
    """Restores nothing and stores nothing; its commits never evict."""

    name = "none"
    summary = "computes every prompt whole"

    def _match(self, prompt: Prompt) -> Plan:
        return Plan(len(prompt))

    def commit(self, prompt: Prompt, plan: Plan) -> Commit:
        """Store nothing."""
        return Commit()

    def restorable_after(self, length: int) -> int:
        return 0

    @property
    def max_sequences(self) -> int:
        return 0

    @property
    def stored_tokens(self) -> int:
        return 0

    def check_integrity(self) -> None:
        """Nothing is held, so nothing can disagree."""
