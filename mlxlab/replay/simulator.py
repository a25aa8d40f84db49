"""Replay without a model: the strategy alone, in no time. Imports no mlx."""

from __future__ import annotations

from mlxlab.replay.cost_model import CostModel
from mlxlab.replay.requests import Step
from mlxlab.replay.targets import Outcome, Progress
from mlxlab.strategies import Strategy

__all__ = ["SimulatedTarget"]


class SimulatedTarget:
    """Runs a strategy as the engine would, storing nothing.

    Args:
        strategy: fresh.
        progress: see :data:`mlxlab.replay.targets.Progress`.
        costs: what seconds are estimated by; without, none pass.
    """

    def __init__(
        self,
        strategy: Strategy,
        progress: Progress | None = None,
        costs: CostModel | None = None,
    ) -> None:
        self.strategy = strategy
        self.progress = progress
        self.costs = costs

    def replay(self, step: Step) -> Outcome:
        plan = self.strategy.plan(step.prompt)
        commit = self.strategy.commit(step.computed, plan)
        if self.progress:
            self.progress(step.tokens)
        # The last token is always computed, but what ids say ends with whole units.
        reused = min(plan.reused * step.unit, step.tokens - 1)
        evicted = commit.evicted * step.unit
        stored = self.strategy.stored_bytes
        if self.costs is None:
            return Outcome(reused, stored, evicted)
        restore_s, prefill_s = self.costs.estimate(plan, step.unit, step.tokens)
        ttft_s = restore_s + prefill_s
        return Outcome(reused, stored, evicted, restore_s, prefill_s, ttft_s)
