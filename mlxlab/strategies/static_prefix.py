"""System text and tools, stored apart from the history behind them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import count

import numpy as np

from mlxlab.errors import IntegrityError
from mlxlab.prompt import Prompt, Tokens, common_prefix
from mlxlab.strategies.base import CAPACITY, EVICT, Example, Strategy
from mlxlab.strategies.parameters import Limit, ParameterValue, parameter
from mlxlab.strategies.plan import Commit, Handle, Plan, Put, Span
from mlxlab.strategies.registry import register
from mlxlab.strategies.sequences.hashing import lost_tokens

__all__ = ["StaticPrefix"]


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    """A static part of ``static`` tokens and the latest history behind it.

    ``parts`` are the stored ranges in order, the static one first; an empty part
    is left out.
    """

    tokens: Tokens
    static: int
    parts: tuple[Put, ...]
    start: int = 0

    @property
    def stop(self) -> int:
        return len(self.tokens)

    def spans(self, reuse: int) -> tuple[Span, ...]:
        """The first ``reuse`` positions."""
        return tuple(
            Span(part.handle, 0, part.start, min(part.stop, reuse) - part.start)
            for part in self.parts
            if part.start < reuse
        )


@register
class StaticPrefix(Strategy):
    """``slots`` static parts, each with the latest history behind it.

    The entry with the longest common prefix is reused, even if that prefix is only
    a part of its static part. A sequence with the same static part, token for token,
    replaces the history and leaves the static part where it is. So a new session of
    an agent finds its system text and tools although the old session is gone.
    Prompts whose static part is unknown (``static_length`` 0) all have the empty
    static part and so share one entry.

    Where there is no room, the eviction policy chooses the entry that goes: an earlier
    one, or the new one when its answer has ended.

    A commit evicts the positions of the replaced or dropped sequence past its
    longest common prefix with any sequence stored afterwards.
    """

    name = "static-prefix"
    summary = "system text and tools kept apart, the latest history behind them"
    literature = "prompt caching with a breakpoint behind system text (Claude API)"
    rank = 20
    example = Example({"slots": 2, "capacity": 90}, handles=4, slots=2)

    slots: int = parameter(4, "Entries to hold.", Limit.SLOTS, tries=(1, 2, 4, 8, 16))
    capacity: int = parameter(
        CAPACITY,
        "Most bytes to hold; a longer entry keeps its head.",
        Limit.CAPACITY,
    )
    evict: str = EVICT

    def __init__(self, **parameters: ParameterValue) -> None:
        super().__init__(**parameters)
        self._handles = count(1)
        self._entries: list[_Entry] = []  # least recently used first

    def _match(self, prompt: Prompt) -> Plan:
        best, reuse = None, 0
        for entry in self._entries:
            shared = min(common_prefix(prompt.tokens, entry.tokens), len(prompt) - 1)
            if shared and shared >= reuse:  # among equals the most recent
                best, reuse = entry, shared
        if best is None:
            return Plan(len(prompt))
        return Plan(len(prompt), best.spans(reuse), reuse)

    def _store(self, prompt: Prompt, plan: Plan) -> Commit:
        """Put ``prompt`` behind its static part, or into an entry of its own."""
        tokens = prompt.tokens[: self.capacity_tokens]
        if len(tokens) == 0:
            return Commit()
        self._refresh(plan)
        static = min(prompt.static_length, len(tokens))
        old = self._holding(tokens[:static])
        new = self._entry(tokens, static, old)
        gone = [old] if old else []
        for entry in gone:
            self._remove(entry)
        self._entries.append(new)
        self.eviction.touch([new])
        while len(self._entries) > self.slots or self.stored_bytes > self.capacity:
            entry = self.eviction.choose_beside([new])
            self._remove(entry)
            gone.append(entry)
        kept = () if new in gone else new.parts
        gone = [entry for entry in gone if entry is not new]
        before = [part for entry in gone for part in entry.parts]
        return Commit(
            drop=tuple(part.handle for part in before if part not in kept),
            put=tuple(part for part in kept if part not in before),
            evicted=lost_tokens([entry.tokens for entry in gone], self._sequences()),
        )

    def _remove(self, entry: _Entry) -> None:
        self._entries.remove(entry)
        self.eviction.discard(entry)

    def restorable_after(self, length: int) -> int:
        return min(length, self.capacity_tokens)

    def _touch(self, tokens: Tokens) -> None:
        shared = [common_prefix(entry.tokens, tokens) for entry in self._entries]
        if any(shared):
            nearest = self._entries.pop(int(np.argmax(shared)))
            self._entries.append(nearest)
            self.eviction.keep([nearest])

    def _refresh(self, plan: Plan) -> None:
        """Make the entry that ``plan`` restores from the most recent one."""
        used = {span.handle for span in plan.spans}
        for entry in self._entries:
            if any(part.handle in used for part in entry.parts):
                self._entries.remove(entry)
                self._entries.append(entry)
                self.eviction.touch([entry])
                return

    def _holding(self, static: Tokens) -> _Entry | None:
        """The entry whose static part is ``static``."""
        for entry in self._entries:
            if np.array_equal(entry.tokens[: entry.static], static):
                return entry
        return None

    def _entry(self, tokens: Tokens, static: int, same: _Entry | None) -> _Entry:
        """Return an entry for ``tokens`` with the static part of ``same``, if any."""
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
    def max_sequences(self) -> int:
        # Sequences with the same static part replace each other's history.
        return 1

    @property
    def stored_tokens(self) -> int:
        return sum(len(entry.tokens) for entry in self._entries)

    def _check_stored(self) -> None:
        """Parts tile their sequences, static parts differ, slots and capacity."""
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
        if set(self.eviction.entries) != set(self._entries):
            raise IntegrityError(f"{self.name}: the policy has other entries")
