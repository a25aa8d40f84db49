"""Replays requests without a model: the strategy alone. Imports no mlx."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias

from mlxlab.replay.commits import Commits
from mlxlab.replay.cost_model import CostModel
from mlxlab.replay.requests import RenderedRequest
from mlxlab.strategies import Commit, Strategy
from mlxlab.strategies.use import Use

__all__ = ["Outcome", "Progress", "Replayer", "Simulator"]

Progress: TypeAlias = Callable[[int], object]
"""Called with the number of prompt tokens just processed, from any thread."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The cost of one replayed request.

    Attributes:
        reused_tokens: prompt tokens restored from the cache.
        stored_bytes: keys and values held after the request.
        evicted: tokens that could be restored after the request before, but not after
            this one.
        restore_s: seconds to find and restore them; None in a simulation without costs.
        prefill_s: seconds to compute the others; None in a simulation without costs.
        ttft_s: seconds to the first token's logits; None in a simulation without costs.
        disk_tokens: those of the reused tokens that came from disk.
        arrived_s: seconds from the start of a replay with several users until the
            request was sent; None elsewhere.
        total_s: seconds from then to the end of the answer, likewise.
    """

    reused_tokens: int
    stored_bytes: int
    evicted: int
    restore_s: float | None = None
    prefill_s: float | None = None
    ttft_s: float | None = None
    disk_tokens: int = 0
    arrived_s: float | None = None
    total_s: float | None = None


class Replayer(Protocol):
    """Replays a trace's requests in order."""

    def replay(self, request: RenderedRequest) -> Outcome:
        """Answer ``request.prompt`` with ``request.answer`` and report the cost.

        Requests that ran at once are stored in their recorded order.
        """
        ...


class Simulator:
    """Runs a strategy as the engine would, storing nothing.

    Args:
        strategy: a fresh one.
        progress: see :data:`mlxlab.replay.simulator.Progress`.
        costs: estimates the seconds; without it, outcomes have none.
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
        if costs is not None and strategy.tier is not None:
            strategy.tier.pays = costs.loading_pays(strategy.tier)
        self._commits: Commits[Commit] = Commits()

    def replay(self, request: RenderedRequest) -> Outcome:
        done = self._commits.before(request)
        plan = self.strategy.plan(request.prompt)

        def store(length: int, use: Use) -> Commit:
            computed = request.computed.head(length)
            return self.strategy.commit(computed, plan.head(length), use)

        done += self._commits.after(request, store)
        if self.progress:
            self.progress(request.tokens)
        # The last token is always computed, but hashed prompts end with whole units.
        reused = min(plan.reused * request.unit, request.tokens - 1)
        evicted = sum(commit.evicted for commit in done) * request.unit
        stored = self.strategy.stored_bytes
        loaded = min(plan.disk_tokens * request.unit, reused)
        found = Outcome(reused, stored, evicted, disk_tokens=loaded)
        if self.costs is None:
            return found
        restore_s, prefill_s = self.costs.estimate(plan, request.unit, request.tokens)
        if self.strategy.tier is not None:
            restore_s += self.costs.load_s(self.strategy.tier.loaded_bytes(plan))
        return replace(
            found,
            restore_s=restore_s,
            prefill_s=prefill_s,
            ttft_s=restore_s + prefill_s,
        )
