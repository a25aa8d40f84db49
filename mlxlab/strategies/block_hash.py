"""A few sequences, compared by chained block hashes.

Knows digests of whole blocks; keeps no token ids.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from typing import ClassVar

from mlxlab.errors import IntegrityError
from mlxlab.prompt import Prompt
from mlxlab.strategies.base import (
    CAPACITY,
    Commit,
    Handle,
    Plan,
    Put,
    Span,
    Strategy,
    require,
)
from mlxlab.strategies.sequences.hashing import chained_digests

__all__ = ["BlockHash"]


@dataclass(frozen=True, slots=True, eq=False)
class _Slot:
    """A stored sequence: one digest per whole block, each for all before it."""

    handle: Handle
    digests: tuple[bytes, ...]

    def shared(self, digests: tuple[bytes, ...]) -> int:
        """Leading blocks in common. Chained digests never agree again after a gap."""
        limit = min(len(digests), len(self.digests))
        return bisect_left(
            range(limit), True, key=lambda i: digests[i] != self.digests[i]
        )


class BlockHash(Strategy):
    """``slots`` sequences in whole blocks; the one with the most in common is reused.

    A sequence that extends a stored one takes its slot; one that diverges takes a new
    slot, and the least recently used goes. One that a stored sequence already covers,
    or that is shorter than ``minimum`` and so could never be restored, is not stored.
    Among equal matches the most recently used slot wins.

    A commit evicts the whole blocks of the dropped sequence past its longest common
    prefix with any sequence stored afterwards.

    Args:
        block: tokens in a block; a tail shorter than this is not stored.
        slots: sequences held.
        minimum: reuse of fewer tokens is not worth a restore: a MISS, whose
            ``best_match`` tells how many there were.
        capacity: see :class:`Strategy`. Sequences go, the least recent first, until the
            latest fits; one longer than that keeps its head.
        token_bytes: see :class:`Strategy`.
    """

    name = "block-hash"
    summary = "a few sequences, matched by chained hashes of whole blocks"
    in_tokens = ("block", "minimum")
    choices: ClassVar = {
        "block": (16, 32, 64, 128, 256),
        "slots": (1, 2, 4, 8, 16),
        "minimum": (1, 256, 512, 1024),
    }

    def __init__(
        self,
        *,
        block: int = 256,
        slots: int = 4,
        minimum: int = 512,
        capacity: int = CAPACITY,
        token_bytes: int = 1,
    ) -> None:
        super().__init__(capacity=capacity, token_bytes=token_bytes)
        require(self.name, block=block, slots=slots, minimum=minimum)
        self.block = block
        self.slots = slots
        self.minimum = minimum
        self._handles = count(1)
        self._slots: list[_Slot] = []  # least recently used first

    @property
    def parameters(self) -> dict[str, int]:
        return {
            "block": self.block,
            "slots": self.slots,
            "minimum": self.minimum,
            "capacity": self.capacity,
        }

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

    def commit(self, prompt: Prompt, plan: Plan) -> Commit:
        """Store the whole blocks of ``prompt`` unless a slot already covers them."""
        self._refresh({span.handle for span in plan.spans})
        head = prompt.tokens[: self.capacity_tokens]
        digests = tuple(chained_digests(head, self.block))
        stop = len(digests) * self.block
        shared = {slot: slot.shared(digests) for slot in self._slots}
        covering = {s.handle for s, blocks in shared.items() if blocks == len(digests)}
        if stop < self.minimum or covering:
            self._refresh(covering)
            return Commit()
        gone = [s for s, blocks in shared.items() if blocks == len(s.digests)]
        new = _Slot(next(self._handles), digests)
        self._slots = [slot for slot in self._slots if slot not in gone] + [new]
        while len(self._slots) > self.slots or self.stored_bytes > self.capacity:
            gone.append(self._slots.pop(0))
        return Commit(
            drop=tuple(slot.handle for slot in gone),
            put=(Put(new.handle, 0, stop),),
            evicted=self._lost(gone),
        )

    def restorable_after(self, length: int) -> int:
        whole = min(length, self.capacity_tokens) // self.block * self.block
        return whole if whole >= self.minimum else 0

    def _refresh(self, used: set[Handle]) -> None:
        """Make the slots ``used`` the most recent ones."""
        self._slots.sort(key=lambda slot: slot.handle in used)

    def _lost(self, gone: Iterable[_Slot]) -> int:
        """Tokens of ``gone`` that no slot holds; shared ones count once."""
        covering, lost = list(self._slots), 0
        for slot in gone:
            covered = max(other.shared(slot.digests) for other in covering)
            lost += len(slot.digests) - covered
            covering.append(slot)
        return lost * self.block

    @property
    def occupancy(self) -> tuple[int, int]:
        return len(self._slots), self.slots

    @property
    def stored_tokens(self) -> int:
        return sum(len(slot.digests) for slot in self._slots) * self.block

    def check_integrity(self) -> None:
        """No slot covers another, handles differ, slots and capacity."""
        self._check_capacity()
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
