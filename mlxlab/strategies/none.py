"""No reuse: the baseline that every other strategy is compared with."""

from __future__ import annotations

from mlxlab.models.kv_bits import FULL, GROUP
from mlxlab.models.layout import Windows
from mlxlab.prompt import Prompt
from mlxlab.strategies.base import Example, Strategy
from mlxlab.strategies.plan import Commit, Plan
from mlxlab.strategies.registry import register

__all__ = ["NoReuse"]


@register
class NoReuse(Strategy):
    """Restores nothing and stores nothing; its commits never evict."""

    name = "none"
    summary = "computes every prompt whole"
    literature = "full prefill, no prefix caching"
    rank = 0
    example = Example(handles=0)

    windows = Windows.CHECKPOINTS.value
    checkpoints = ""
    share = 0
    disk = 0
    kv = str(FULL)
    kv_group = str(GROUP)

    def _match(self, prompt: Prompt) -> Plan:
        return Plan(len(prompt))

    def _store(self, prompt: Prompt, plan: Plan) -> Commit:
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

    def _check_stored(self) -> None:
        """Nothing is stored, so there is nothing to check."""
