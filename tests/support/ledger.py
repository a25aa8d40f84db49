"""A store of prefix identities: applies commits as a store of keys and values would.

The keys and values at a position depend on every token up to it. So the ledger keeps
one id per prefix instead of one per token. Ids are equal exactly when the prefixes
are equal, so a restored position with the right id is exact. After the first
approximate position nothing is exact, whatever its id. A moved position only has to
hold an equal token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import blake2b

from mlxlab.prompt import Prompt, Role, Segment, Tokens
from mlxlab.strategies import Commit, DiskCommit, Handle, Plan, Span, Strategy, Tier
from mlxlab.strategies.use import UNKNOWN, Use

__all__ = ["Bound", "Held", "Ledger", "Request", "prompt_of"]

Bound = Callable[["Ledger"], bool]
"""Returns whether a store is within its limits."""


def prompt_of(ids: list[int], static: int = 0) -> Prompt:
    """Return a prompt whose first ``static`` tokens are system text."""
    bare = Prompt.of(ids)
    parts = (
        Segment("system[0]", Role.SYSTEM, 0, static),
        Segment("messages[0]", Role.USER, static, len(ids)),
    )
    return Prompt(bare.tokens, tuple(part for part in parts if len(part)))


@dataclass(frozen=True)
class Request:
    """Ids of a prompt and of its answer; the first ``static`` are system text.

    ``segments``, if given, replace the two segments of system text and user text.
    """

    ids: list[int]
    answer: list[int] = field(default_factory=list)
    static: int = 0
    segments: tuple[Segment, ...] = ()
    pinned: bool = False

    @property
    def prompt(self) -> Prompt:
        return replace(self._prompt(self.ids), pinned=self.pinned)

    @property
    def sequence(self) -> Prompt:
        if self.segments:
            return self.prompt.extended(Prompt.of(self.answer).tokens)
        return replace(self._prompt(self.ids + self.answer), pinned=self.pinned)

    def _prompt(self, ids: list[int]) -> Prompt:
        if self.segments:
            return Prompt(Prompt.of(ids).tokens, self.segments)
        return prompt_of(ids, self.static)


@dataclass(frozen=True)
class Held:
    """Prefix ids under one handle, the first of them at ``start``.

    ``tokens`` are those of the whole sequence that they were computed in;
    ``generation`` is that of the plan, 0 if all of them are exact.
    """

    ids: list[int]
    start: int
    tokens: Tokens
    generation: int

    def part(self, start: int, stop: int) -> Held:
        """Return the positions left after a cut."""
        return replace(self, ids=self.ids[start:stop], start=self.start + start)


class Ledger:
    """Maps handles to the prefix ids of the positions that they hold.

    Args:
        bound: checked after every single drop and put.
        block: granularity of the strategy in tokens.
    """

    def __init__(self, bound: Bound = lambda ledger: True, *, block: int = 1) -> None:
        self.held: dict[Handle, Held] = {}
        self.checkpoints: dict[Handle, int] = {}  # id of the prefix in front
        self.disk: dict[Handle, Held] = {}
        self.disk_checkpoints: dict[Handle, int] = {}
        self._bound = bound
        self._block = block
        self._seen: set[Handle] = set()
        self._ids: dict[tuple[int, int], int] = {}
        self._tokens: list[int] = []

    @property
    def tokens(self) -> int:
        return sum(len(held.ids) for held in self.held.values())

    @property
    def prefixes(self) -> set[int]:
        """Ids of the distinct prefixes held, whole blocks only."""
        step = self._block
        return {i for held in self.held.values() for i in held.ids[step - 1 :: step]}

    def exchange(
        self, strategy: Strategy, request: Request, use: Use = UNKNOWN
    ) -> tuple[Plan, Commit]:
        """Plan and commit ``request``; check everything that the contract promises."""
        plan = self.plan(strategy, request)
        return plan, self.commit(strategy, request, plan, use)

    def plan(self, strategy: Strategy, request: Request) -> Plan:
        """Plan ``request``; check that what the plan restores is held."""
        plan = strategy.plan(request.prompt)
        self._check(plan, request.prompt.tokens)
        if strategy.checkpoint_bytes:
            self._check_resumption(plan, request.prompt.tokens)
        else:
            assert (plan.resume, plan.captures) == (None, ())
        return plan

    def compute(self, strategy: Strategy, request: Request) -> Commit:
        """Commit ``request`` as if it had been computed without any reuse."""
        return self.commit(strategy, request, Plan(len(request.ids)))

    def commit(
        self, strategy: Strategy, request: Request, plan: Plan, use: Use = UNKNOWN
    ) -> Commit:
        """Commit a planned ``request``; other commits may have come in between."""
        commit = strategy.commit(request.sequence, plan, use)
        before = self.prefixes
        self._apply(commit, plan, request.sequence.tokens)
        assert commit.evicted == len(before - self.prefixes) * self._block
        assert strategy.stored_tokens == self.tokens
        assert strategy.stored_checkpoints == len(self.checkpoints)
        assert strategy.stored_bytes == (
            self.tokens * strategy.token_bytes
            + len(self.checkpoints) * strategy.checkpoint_bytes
        )
        strategy.check_integrity()
        return commit

    def longest(self, ids: list[int]) -> int:
        """Return the length of the longest prefix of whole blocks that are all held."""
        held, length = self.prefixes, 0
        for identity in self._identities(ids)[self._block - 1 :: self._block]:
            if identity not in held:
                break
            length += self._block
        return length

    def _check(self, plan: Plan, tokens: Tokens) -> None:
        """Check that ``plan`` restores held positions in order, exact where it says."""
        assert plan.length == len(tokens)
        assert 0 <= plan.reused <= plan.best_match < plan.length
        assert 0 <= plan.recompute <= plan.moved
        expected = self._identities(tokens.tolist())
        position = 0
        for span in plan.spans:
            assert span.length > 0
            assert position <= span.target
            position = span.target + span.length
            self._check_span(span, expected)
        assert position < len(tokens)
        assert plan.exact_length == self._first_approximate(plan, expected)

    def _check_resumption(self, plan: Plan, tokens: Tokens) -> None:
        """Check that ``plan`` ends at a checkpoint of just these tokens."""
        assert (plan.resume is None) == (plan.reused == 0)
        assert plan.reused == plan.prefix_length
        if plan.resume is not None:
            identity = self._identities(tokens.tolist())[plan.reused - 1]
            on_disk = plan.resume_tier is Tier.DISK
            held = self.disk_checkpoints if on_disk else self.checkpoints
            assert held[plan.resume] == identity
        places = [plan.reused, *plan.captures, len(tokens)]
        assert places == sorted(set(places))

    def _check_span(self, span: Span, expected: list[int]) -> None:
        held = self._holding(span)
        assert 0 <= span.source <= len(held.ids) - span.length
        assert span.generation == held.generation
        wanted = expected[span.target : span.target + span.length]
        restored = held.ids[span.source : span.source + span.length]
        if not span.moved:
            assert restored == wanted
            return
        assert [self._tokens[i] for i in restored] == [self._tokens[i] for i in wanted]
        assert span.origin == held.start + span.source
        before = held.tokens[: span.origin]
        assert span.predecessor == blake2b(before.tobytes(), digest_size=16).digest()

    def _holding(self, span: Span) -> Held:
        return (self.disk if span.tier is Tier.DISK else self.held)[span.handle]

    def _first_approximate(self, plan: Plan, expected: list[int]) -> int:
        for span in plan.spans:
            held = self._holding(span)
            restored = held.ids[span.source : span.source + span.length]
            wanted = expected[span.target : span.target + span.length]
            if held.generation > 0 or restored != wanted:
                return span.target
        return plan.length

    def _apply(self, commit: Commit, plan: Plan, tokens: Tokens) -> None:
        identities = self._identities(tokens.tolist())
        exact = plan.exact_length if plan.generation else len(tokens)
        for handle in commit.drop:
            del self.held[handle]
            assert self._bound(self)
        for handle in commit.forget:
            del self.checkpoints[handle]
        for cut in commit.cut:
            held = self.held[cut.handle]
            assert 0 <= cut.start < cut.stop <= len(held.ids)
            assert cut.stop - cut.start < len(held.ids)
            self.held[cut.handle] = held.part(cut.start, cut.stop)
            assert self._bound(self)
        for put in commit.put:
            assert put.handle not in self._seen
            assert 0 <= put.start < put.stop <= len(identities)
            self._seen.add(put.handle)
            self.held[put.handle] = Held(
                identities[put.start : put.stop],
                put.start,
                tokens,
                0 if put.stop <= exact else plan.generation,
            )
            assert self._bound(self)
        for keep in commit.keep:
            loaded = (plan.reused,) if plan.resume_tier is Tier.DISK else ()
            assert keep.position in (*loaded, *plan.captures, len(tokens))
            self.checkpoints[keep.handle] = identities[keep.position - 1]
            assert self._bound(self)
        self._write(commit.disk, plan, tokens, identities)

    def _write(
        self, commit: DiskCommit, plan: Plan, tokens: Tokens, identities: list[int]
    ) -> None:
        for handle in commit.erase:
            gone = self.disk.pop(handle, None) or self.disk_checkpoints.pop(handle)
            assert gone is not None
        for record in commit.write:
            assert record.handle not in self.disk.keys() | self.disk_checkpoints.keys()
            assert record.ids == tokens[record.start : record.stop].tobytes()
            if record.is_checkpoint:
                assert record.stop in (plan.reused, *plan.captures, len(tokens))
                self.disk_checkpoints[record.handle] = identities[record.stop - 1]
            else:
                ids = identities[record.start : record.stop]
                self.disk[record.handle] = Held(ids, record.start, tokens, 0)
            assert self._bound(self)
        assert {*commit.used} <= self.disk.keys() | self.disk_checkpoints.keys()

    def _identities(self, ids: list[int]) -> list[int]:
        identities, parent = [], -1
        for token in ids:
            known = len(self._ids)
            parent = self._ids.setdefault((parent, token), known)
            if parent == known:
                self._tokens.append(token)
            identities.append(parent)
        return identities
