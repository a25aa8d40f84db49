"""A few sequences, compared by chained hashes of whole blocks."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count

from mlxlab.errors import IntegrityError
from mlxlab.prompt import Prompt, Tokens
from mlxlab.strategies.base import CAPACITY, EVICT, Example, Strategy
from mlxlab.strategies.parameters import Limit, ParameterValue, parameter
from mlxlab.strategies.plan import Commit, Handle, Plan, Put, Span
from mlxlab.strategies.registry import register
from mlxlab.strategies.sequences.hashing import chained_digests

__all__ = ["BlockHash"]


@dataclass(frozen=True, slots=True, eq=False)
class _Slot:
    """A stored sequence: one digest per whole block, each for all before it."""

    handle: Handle
    digests: tuple[bytes, ...]
    stop: int
    start: int = 0

    def shared(self, digests: tuple[bytes, ...]) -> int:
        """Leading blocks in common; chained digests never agree again after a gap."""
        limit = min(len(digests), len(self.digests))
        return bisect_left(
            range(limit), True, key=lambda i: digests[i] != self.digests[i]
        )


@register
class BlockHash(Strategy):
    """``slots`` sequences in whole blocks; reuses the one with the most in common.

    A sequence that extends a stored one takes its slot. One that diverges takes a new
    slot, and the eviction policy chooses the sequence that goes: an earlier one, or
    this one when its answer has ended. A sequence is not stored if a stored one covers
    it, or if it is shorter than ``minimum``. Among equal matches the most recently used
    slot wins.

    A commit evicts the whole blocks of the dropped sequence past its longest common
    prefix with any sequence stored afterwards.
    """

    name = "block-hash"
    summary = "a few sequences, matched by chained hashes of whole blocks"
    literature = "llama.cpp's slots, matched by vLLM's chained block hashes"
    rank = 30
    example = Example(
        {"block": 4, "slots": 2, "minimum": 8, "capacity": 90}, handles=2, slots=2
    )

    block: int = parameter(
        256,
        "Tokens in a block; a shorter tail is not stored.",
        Limit.BLOCK,
        tries=(16, 32, 64, 128, 256),
    )
    slots: int = parameter(4, "Sequences to hold.", Limit.SLOTS, tries=(1, 2, 4, 8, 16))
    minimum: int = parameter(
        512,
        "Least tokens to restore; a shorter match is a MISS.",
        Limit.MINIMUM,
        tries=(1, 256, 512, 1024),
    )
    capacity: int = parameter(
        CAPACITY,
        "Most bytes to hold; a longer sequence keeps its head.",
        Limit.CAPACITY,
    )
    evict: str = EVICT

    def __init__(self, **parameters: ParameterValue) -> None:
        super().__init__(**parameters)
        self._handles = count(1)
        self._slots: list[_Slot] = []  # least recently used first

    def _match(self, prompt: Prompt) -> Plan:
        digests = tuple(chained_digests(prompt.tokens[:-1], self.block))
        best, blocks = None, 0
        for slot in self._slots:
            shared = slot.shared(digests)
            if shared and shared >= blocks:  # among equals the most recent
                best, blocks = slot, shared
        reuse = blocks * self.block
        if best is None or reuse < self.minimum:
            return Plan(len(prompt), best_match=reuse)
        return Plan(len(prompt), (Span(best.handle, 0, 0, reuse),), reuse)

    def _store(self, prompt: Prompt, plan: Plan) -> Commit:
        """Store the whole blocks of ``prompt`` unless a slot covers them."""
        self.eviction.touch(self._refresh({span.handle for span in plan.spans}))
        head = prompt.tokens[: self.capacity_tokens]
        digests = tuple(chained_digests(head, self.block))
        stop = len(digests) * self.block
        shared = {slot: slot.shared(digests) for slot in self._slots}
        covering = {s.handle for s, blocks in shared.items() if blocks == len(digests)}
        if stop < self.minimum or covering:
            self.eviction.touch(self._refresh(covering))
            return Commit()
        gone = [s for s, blocks in shared.items() if blocks == len(s.digests)]
        new = _Slot(next(self._handles), digests, stop)
        for slot in gone:
            self._remove(slot)
        self._slots.append(new)
        self.eviction.touch([new])
        while len(self._slots) > self.slots or self.stored_bytes > self.capacity:
            slot = self.eviction.choose_beside([new])
            self._remove(slot)
            gone.append(slot)
        is_kept = new not in gone
        gone = [slot for slot in gone if slot is not new]
        return Commit(
            drop=tuple(slot.handle for slot in gone),
            put=(Put(new.handle, 0, stop),) if is_kept else (),
            evicted=self._lost(gone),
        )

    def _remove(self, slot: _Slot) -> None:
        self._slots.remove(slot)
        self.eviction.discard(slot)

    def restorable_after(self, length: int) -> int:
        whole = min(length, self.capacity_tokens) // self.block * self.block
        return whole if whole >= self.minimum else 0

    def _count_stored(self, tokens: Tokens) -> int:
        digests = tuple(chained_digests(tokens, self.block))
        shared = (slot.shared(digests) for slot in self._slots)
        return max(shared, default=0) * self.block

    def _touch(self, tokens: Tokens) -> None:
        digests = tuple(chained_digests(tokens, self.block))
        nearest = max(self._slots, key=lambda slot: slot.shared(digests), default=None)
        if nearest is not None and nearest.shared(digests):
            self.eviction.keep(self._refresh({nearest.handle}))

    def _refresh(self, used: set[Handle]) -> list[_Slot]:
        """Make the slots ``used`` the most recent ones, and return them."""
        self._slots.sort(key=lambda slot: slot.handle in used)
        return [slot for slot in self._slots if slot.handle in used]

    def _lost(self, gone: Iterable[_Slot]) -> int:
        """Tokens of ``gone`` that no slot holds; shared ones count once."""
        covering, lost = list(self._slots), 0
        for slot in gone:
            shared = (other.shared(slot.digests) for other in covering)
            covered = max(shared, default=0)
            lost += len(slot.digests) - covered
            covering.append(slot)
        return lost * self.block

    @property
    def occupancy(self) -> tuple[int, int]:
        return len(self._slots), self.slots

    @property
    def max_sequences(self) -> int:
        return self.slots

    @property
    def stored_tokens(self) -> int:
        return sum(len(slot.digests) for slot in self._slots) * self.block

    def _check_stored(self) -> None:
        """No slot covers another, handles differ, slots and capacity."""
        if len(self._slots) > self.slots:
            raise IntegrityError(
                f"{self.name}: {len(self._slots)} sequences in {self.slots} slots"
            )
        handles = [slot.handle for slot in self._slots]
        if len(set(handles)) != len(handles):
            raise IntegrityError(f"{self.name}: a handle names two slots: {handles}")
        for slot in self._slots:
            for other in self._slots:
                if other is not slot and slot.digests[-1] in other.digests:
                    raise IntegrityError(
                        f"{self.name}: slot {other.handle} covers slot {slot.handle}"
                    )
        if set(self.eviction.entries) != set(self._slots):
            raise IntegrityError(f"{self.name}: the policy has other sequences")
