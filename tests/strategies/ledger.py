"""A store of prefix identities: applies commits as a store of keys and values would.

What a model computes at a position depends on every token up to it, so the ledger
keeps one id per prefix instead of one per token. Ids are equal exactly when the
prefixes are: a restored position with the right id is exact, not just alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mlxlab.prompt import Prompt, Role, Segment, Tokens
from mlxlab.strategies import Commit, Handle, Plan, Strategy

__all__ = ["Ledger", "Request", "prompt_of"]

Limit = Callable[["Ledger"], bool]


def prompt_of(ids: list[int], static: int = 0) -> Prompt:
    """A prompt whose first ``static`` tokens are system text."""
    bare = Prompt.of(ids)
    parts = (
        Segment("system[0]", Role.SYSTEM, 0, static),
        Segment("messages[0]", Role.USER, static, len(ids)),
    )
    return Prompt(bare.tokens, tuple(part for part in parts if len(part)))


@dataclass(frozen=True)
class Request:
    """Ids of a prompt and of its answer; the first ``static`` are system text."""

    ids: list[int]
    answer: list[int] = field(default_factory=list)
    static: int = 0

    @property
    def prompt(self) -> Prompt:
        return prompt_of(self.ids, self.static)

    @property
    def sequence(self) -> Prompt:
        return prompt_of(self.ids + self.answer, self.static)


class Ledger:
    """Handle to the prefix ids of the positions that it holds.

    Args:
        limit: what has to hold after every single drop and put.
        block: tokens that the strategy restores at a time.
    """

    def __init__(self, limit: Limit = lambda ledger: True, *, block: int = 1) -> None:
        self.held: dict[Handle, list[int]] = {}
        self._limit = limit
        self._block = block
        self._seen: set[Handle] = set()
        self._ids: dict[tuple[int, int], int] = {}

    @property
    def tokens(self) -> int:
        return sum(map(len, self.held.values()))

    @property
    def prefixes(self) -> set[int]:
        """Ids of the distinct prefixes held, whole blocks only."""
        step = self._block
        return {i for ids in self.held.values() for i in ids[step - 1 :: step]}

    def exchange(self, strategy: Strategy, request: Request) -> tuple[Plan, Commit]:
        """Plan and commit ``request``, checking everything that the contract says."""
        plan = strategy.plan(request.prompt)
        self._check(plan, request.prompt.tokens)
        commit = strategy.commit(request.sequence, plan)
        before = self.prefixes
        self._apply(commit, request.sequence.tokens)
        assert commit.evicted == len(before - self.prefixes) * self._block
        assert strategy.stored_tokens == self.tokens
        assert strategy.stored_bytes == self.tokens * strategy.token_bytes
        strategy.check_integrity()
        return plan, commit

    def longest(self, ids: list[int]) -> int:
        """Length of the longest prefix of whole blocks that are all held."""
        held, length = self.prefixes, 0
        for identity in self._identities(ids)[self._block - 1 :: self._block]:
            if identity not in held:
                break
            length += self._block
        return length

    def _check(self, plan: Plan, tokens: Tokens) -> None:
        assert plan.length == len(tokens)
        assert 0 <= plan.reused <= plan.best_match < plan.length
        expected = self._identities(tokens.tolist())
        position = 0
        for span in plan.spans:
            held = self.held[span.handle]
            assert span.length > 0
            assert position <= span.target
            assert 0 <= span.source <= len(held) - span.length
            position = span.target + span.length
            restored = held[span.source : span.source + span.length]
            assert restored == expected[span.target : position]
        assert position < len(tokens)

    def _apply(self, commit: Commit, tokens: Tokens) -> None:
        identities = self._identities(tokens.tolist())
        for handle in commit.drop:
            del self.held[handle]
            assert self._limit(self)
        for put in commit.put:
            assert put.handle not in self._seen
            assert 0 <= put.start < put.stop <= len(identities)
            self._seen.add(put.handle)
            self.held[put.handle] = identities[put.start : put.stop]
            assert self._limit(self)

    def _identities(self, ids: list[int]) -> list[int]:
        identities, parent = [], -1
        for token in ids:
            parent = self._ids.setdefault((parent, token), len(self._ids))
            identities.append(parent)
        return identities
