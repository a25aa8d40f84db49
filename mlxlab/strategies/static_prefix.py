"""System text and tools kept apart from the history behind them.

Knows where the static part of a prompt ends; nothing of what the segments say.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import count
from typing import ClassVar

import numpy as np

from mlxlab.errors import IntegrityError
from mlxlab.prompt import Prompt, Tokens, common_prefix
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
from mlxlab.strategies.sequences.hashing import lost_tokens

__all__ = ["StaticPrefix"]


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    """A static part of ``static`` tokens and the latest history behind it.

    ``parts`` are its stored ranges in order, the static one first; an empty part
    has none.
    """

    tokens: Tokens
    static: int
    parts: tuple[Put, ...]

    def spans(self, reuse: int) -> tuple[Span, ...]:
        """The first ``reuse`` positions."""
        return tuple(
            Span(part.handle, 0, part.start, min(part.stop, reuse) - part.start)
            for part in self.parts
            if part.start < reuse
        )


class StaticPrefix(Strategy):
    """``slots`` static parts, each with the latest history behind it; LRU.

    Whatever entry shares the longest prefix with the prompt is reused, be it a part
    of its static part only. A sequence with the same static part, token for token,
    replaces the history and leaves the static part where it is, so a new session of
    the same agent finds its system text and tools although the old session is gone.
    Prompts whose static part is unknown (``static_length`` 0) have the empty static
    part in common and so share one entry.

    A commit evicts the positions of the replaced or dropped sequence past its
    longest common prefix with any sequence stored afterwards.

    Args:
        slots: entries held.
        capacity: see :class:`Strategy`. Entries go, the least recent first, until the
            latest sequence fits; one longer than that keeps its head.
        token_bytes: see :class:`Strategy`.
    """

    name = "static-prefix"
    summary = "system text and tools kept apart, the latest history behind them"
    choices: ClassVar = {"slots": (1, 2, 4, 8, 16)}

    def __init__(
        self, *, slots: int = 4, capacity: int = CAPACITY, token_bytes: int = 1
    ) -> None:
        super().__init__(capacity=capacity, token_bytes=token_bytes)
        require(self.name, slots=slots)
        self.slots = slots
        self._handles = count(1)
        self._entries: list[_Entry] = []  # least recently used first

    @property
    def parameters(self) -> dict[str, int]:
        return {"slots": self.slots, "capacity": self.capacity}

    def _match(self, prompt: Prompt) -> Plan:
        best, reuse = None, 0
        for entry in self._entries:
            shared = min(common_prefix(prompt.tokens, entry.tokens), len(prompt) - 1)
            if shared and shared >= reuse:  # among equals the most recent
                best, reuse = entry, shared
        if best is None:
            return Plan(len(prompt))
        return Plan(len(prompt), best.spans(reuse), reuse)

    def commit(self, prompt: Prompt, plan: Plan) -> Commit:
        """Put ``prompt`` behind its static part, or into an entry of its own."""
        tokens = prompt.tokens[: self.capacity_tokens]
        if len(tokens) == 0:
            return Commit()
        self._refresh(plan)
        static = min(prompt.static_length, len(tokens))
        old = self._holding(tokens[:static])
        new = self._entry(tokens, static, old)
        gone = [old] if old else []
        self._entries = [entry for entry in self._entries if entry is not old]
        self._entries.append(new)
        while len(self._entries) > self.slots or self.stored_bytes > self.capacity:
            gone.append(self._entries.pop(0))
        before = [part for entry in gone for part in entry.parts]
        return Commit(
            drop=tuple(part.handle for part in before if part not in new.parts),
            put=tuple(part for part in new.parts if part not in before),
            evicted=lost_tokens([entry.tokens for entry in gone], self._sequences()),
        )

    def restorable_after(self, length: int) -> int:
        return min(length, self.capacity_tokens)

    def _refresh(self, plan: Plan) -> None:
        """Make the entry that ``plan`` restores from the most recent one."""
        used = {span.handle for span in plan.spans}
        for entry in self._entries:
            if any(part.handle in used for part in entry.parts):
                self._entries.remove(entry)
                self._entries.append(entry)
                return

    def _holding(self, static: Tokens) -> _Entry | None:
        """The entry whose static part is ``static``."""
        for entry in self._entries:
            if np.array_equal(entry.tokens[: entry.static], static):
                return entry
        return None

    def _entry(self, tokens: Tokens, static: int, same: _Entry | None) -> _Entry:
        """An entry for ``tokens`` that takes over the static part of ``same``."""
        parts = same.parts[:1] if same and static else ()
        for start, stop in ((0, static), (static, len(tokens))):
            if start < stop and (not parts or start >= parts[-1].stop):
                parts += (Put(next(self._handles), start, stop),)
        return _Entry(tokens, static, parts)

    def _sequences(self) -> list[Tokens]:
        return [entry.tokens for entry in self._entries]

    @property
    def occupancy(self) -> tuple[int, int]:
        return len(self._entries), self.slots

    @property
    def stored_tokens(self) -> int:
        return sum(len(entry.tokens) for entry in self._entries)

    def check_integrity(self) -> None:
        """Parts tile their sequences, static parts differ, slots and capacity."""
        self._check_capacity()
        statics = {e.tokens[: e.static].tobytes() for e in self._entries}
        if len(statics) != len(self._entries) or len(statics) > self.slots:
            raise IntegrityError(
                f"{self.name}: {len(self._entries)} entries of {len(statics)} "
                f"static parts in {self.slots} slots"
            )
        handles: Counter[Handle] = Counter()
        for entry in self._entries:
            handles.update(part.handle for part in entry.parts)
            bounds = [bound for p in entry.parts for bound in (p.start, p.stop)]
            ends = sorted({0, entry.static, len(entry.tokens)})
            if sorted(set(bounds)) != ends or bounds != sorted(bounds):
                raise IntegrityError(
                    f"{self.name}: parts {bounds} do not tile a sequence of "
                    f"{len(entry.tokens)} tokens, {entry.static} of them static"
                )
        if handles and max(handles.values()) > 1:
            raise IntegrityError(f"{self.name}: a handle names two parts: {handles}")
