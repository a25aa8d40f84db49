"""Ends plans at checkpoints, for models that cannot be cut at any token.

A strategy decides about tokens as if every model could be cut anywhere. Where the model
keeps state or windows too, this decides between the strategy and its caller: a plan is
cut at the last checkpoint of its prefix, and a sequence is stored up to its last one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from mlxlab.errors import StrategyError
from mlxlab.prompt import Prompt
from mlxlab.sizes import format_size
from mlxlab.strategies.eviction import DEFAULT as LRU
from mlxlab.strategies.eviction import make_eviction
from mlxlab.strategies.parameters import Limit, ParameterValue
from mlxlab.strategies.placements import parse_placement
from mlxlab.strategies.plan import Commit, Plan
from mlxlab.strategies.sequences.checkpoints import Checkpoints

if TYPE_CHECKING:
    from mlxlab.strategies.base import Strategy

__all__ = ["ID_BYTES", "Resumption"]

#: Bytes of a token's id, which limit the tokens that are held where nothing else does.
ID_BYTES = 4


class Resumption:
    """The checkpoints of one strategy.

    Args:
        strategy: has all its parameters, and stores nothing yet.
        unit: tokens that one id of a prompt stands for.

    Raises:
        StrategyError: the capacity holds no checkpoint.
    """

    def __init__(self, strategy: Strategy, unit: int) -> None:
        budget = strategy.capacity * strategy.share // 100
        size = strategy.checkpoint_bytes
        if budget < size:
            raise StrategyError(
                f"{strategy.name}: capacity={format_size(strategy.capacity)} with "
                f"share={strategy.share} holds no checkpoint of {format_size(size)}; "
                "give more of either"
            )
        self.strategy = strategy
        self.placement = parse_placement(strategy.checkpoints, unit)
        policy = strategy.eviction.name
        eviction = None if policy == LRU else make_eviction(policy)
        self.checkpoints = Checkpoints(size, budget, self.placement.most, eviction)
        room = (strategy.capacity - size) // (strategy.token_bytes or ID_BYTES)
        #: Most tokens that the capacity holds beside one checkpoint.
        self.longest = room

    @staticmethod
    def check(strategy: Strategy, given: Mapping[str, ParameterValue]) -> None:
        """Refuse parameters that mean nothing for the model of a strategy.

        Args:
            strategy: has all its parameters.
            given: those that the user gave.

        Raises:
            StrategyError: the message says what to leave out.
        """
        if not strategy.checkpoint_bytes:
            for key in ("checkpoints", "share"):
                if key in given and key in strategy.declared:
                    raise StrategyError(
                        f"{strategy.name}: {key}={given[key]}: this model can be cut "
                        f"at any token and needs no checkpoints; leave {key} out"
                    )
            return
        if not strategy.exact:
            raise StrategyError(
                f"{strategy.name}: nothing can be moved in this model, which keeps "
                "state or windows; choose an exact strategy"
            )
        block = strategy.limits.get(Limit.BLOCK)
        if block is not None and block in given:
            raise StrategyError(
                f"{strategy.name}: {block}={given[block]}: this model is resumed at "
                f"checkpoints, not at blocks; leave {block} out"
            )

    def plan(self, prompt: Prompt, plan: Plan) -> Plan:
        """Return a plan that ends at a checkpoint, with the places of new ones."""
        match = plan.prefix_length
        found = self.checkpoints.find(prompt.tokens[:match])
        position = found.position if found else 0
        places = self._places(prompt, match, position)
        return replace(
            plan,
            spans=plan.head(position).spans,
            resume=found.handle if found else None,
            captures=self.checkpoints.choose(places, position),
        )

    def commit(self, prompt: Prompt, plan: Plan) -> Commit:
        """Store a sequence up to its last checkpoint, and keep checkpoints on it."""
        strategy, checkpoints = self.strategy, self.checkpoints
        if checkpoints.eviction is not None:
            checkpoints.eviction.begin(strategy.eviction.use)
        before = checkpoints.handles
        new = checkpoints.add(prompt.tokens, self._taken(prompt, plan), plan.resume)
        last = checkpoints.find(prompt.tokens)
        while last is not None and strategy.capacity_tokens < last.position:
            checkpoints.evict()
            last = checkpoints.find(prompt.tokens)
        commit = Commit()
        if last is not None:
            head = prompt.head(last.position)
            commit = strategy._store(head, plan.head(last.position))
            whole = strategy._count_stored(head.tokens) == len(head)
            if commit.drop or commit.cut or not whole:
                checkpoints.prune(strategy._count_stored)
        while strategy.stored_bytes > strategy.capacity:
            checkpoints.evict()
        held = checkpoints.handles
        return replace(
            commit,
            forget=tuple(sorted(before - held)),
            keep=tuple(keep for keep in new if keep.handle in held),
        )

    def count_kept(self, plan: Plan) -> int:
        """Count the leading tokens of a planned prompt that its computation leaves."""
        places = [plan.prefix_length, *plan.captures]
        if self.placement.answer and self._fits(plan.length, places[-1]):
            places.append(plan.length)
        stored = self.strategy.restorable_after(plan.length)
        return max((place for place in places if place <= stored), default=0)

    def _places(self, prompt: Prompt, match: int, position: int) -> list[int]:
        """Return where checkpoints are taken behind a position, ascending.

        Where the sequence does not fit into the capacity, its last token that does is
        such a place.
        """
        places = self.placement.places(prompt, match)
        end = len(prompt) if self.placement.answer else max(places, default=0)
        fitting = [place for place in places if self._fits(place, position)]
        if end > self.longest not in fitting and self._fits(self.longest, position):
            fitting.append(self.longest)
        return fitting

    def _taken(self, prompt: Prompt, plan: Plan) -> list[int]:
        """Return where checkpoints of a computed sequence were taken, ascending."""
        end = min(len(prompt), self.longest)
        taken = [place for place in plan.captures if place <= end]
        last = taken[-1] if taken else 0
        if self.placement.answer and self._fits(len(prompt), last):
            taken.append(len(prompt))
        return taken

    def _fits(self, place: int, position: int) -> bool:
        """Whether a place lies behind a position and could be resumed at."""
        minimum = self.strategy.limits.get(Limit.MINIMUM)
        least = getattr(self.strategy, minimum) if minimum else 0
        return max(position + 1, least) <= place <= self.longest
