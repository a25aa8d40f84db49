"""Compares an earlier prompt with a later one, and finds the tokens each change costs.

Both prompts are aligned block by block. Text after a change that was there before is
charged to the change. Text that was not there before is new.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise, product

import numpy as np

from mlxlab.analysis.misses.blocks import (
    Decode,
    Mask,
    PromptBlocks,
    occurring,
    pair_blocks,
)
from mlxlab.analysis.misses.causes import Cause
from mlxlab.analysis.misses.classify import Change, ChangeClassifier
from mlxlab.analysis.misses.predecessors import Predecessor
from mlxlab.prompt import GLUE_ROLES, Prompt, Role, Segment, Tokens, common_prefix

__all__ = ["ChangedSpan", "PromptDiff", "diff_prompts"]

#: Key of a block that came from the predecessor's answer, and the least share of such
#: tokens in it. Clients add defaults to the arguments of calls.
_FROM_ANSWER = "\0answer"
_MOSTLY = 0.5

#: Most tokens that a template puts around a block, depending on its neighbours.
_EDGE = 8

#: Tokens shown on either side of the place where an answer came back changed.
_SHOWN = 16


@dataclass(frozen=True, slots=True)
class ChangedSpan:
    """Tokens ``[start, stop)`` that ``change`` invalidated; new ones if it is None."""

    start: int
    stop: int
    change: Change | None


@dataclass(frozen=True, slots=True)
class PromptDiff:
    """The differences between a prompt and its predecessor.

    Attributes:
        shared: length of the common prefix.
        changes: in the order of the prompt.
        spans: cover the prompt from ``shared`` to its end.
    """

    shared: int
    changes: tuple[Change, ...]
    spans: tuple[ChangedSpan, ...]


def diff_prompts(
    prompt: Prompt, predecessor: Predecessor, *, same_session: bool, decode: Decode
) -> PromptDiff:
    """Compare ``prompt`` with the sequence that ``predecessor`` left in memory.

    Args:
        prompt: the later prompt.
        predecessor: the earlier request.
        same_session: whether both belong to one session and agent. Differing messages
            are then an edited history, not another conversation.
        decode: returns the texts of changes.
    """
    builder = _DiffBuilder(prompt, predecessor, same_session, decode)
    builder.run()
    return PromptDiff(builder.shared, tuple(builder.changes), tuple(builder.spans()))


class _DiffBuilder:
    """Walks through two prompts and records the nearest change before each token."""

    def __init__(
        self,
        prompt: Prompt,
        predecessor: Predecessor,
        same_session: bool,
        decode: Decode,
    ) -> None:
        self.asked = len(predecessor.request.prompt)
        self.before = PromptBlocks(predecessor.computed, decode)
        self.after = PromptBlocks(prompt, decode)
        self.classifier = ChangeClassifier(
            self.before, self.after, self.asked, same_session
        )
        self.shared = common_prefix(predecessor.computed.tokens, prompt.tokens)
        self.olds = self.before.blocks(self.shared)
        self.news = self.after.blocks(self.shared)
        self.answer = [s for s in self.olds if s.role is Role.ANSWER]
        self.changes: list[Change] = []
        #: By position: whether the predecessor has this text, and the index of the
        #: nearest change before it (-1: none).
        self.known = np.zeros(len(prompt), np.bool_)
        self.behind = np.full(len(prompt), -1, np.int64)
        #: Blocks that are in both prompts, in another order.
        self.moved_olds: set[Segment] = set()
        self.moved_news: set[Segment] = set()
        #: Unmatched tokens of the predecessor, by role: a changed block may come from
        #: several blocks.
        self.rest: dict[Role, Tokens] = {}

    def run(self) -> None:
        if self.shared >= self.asked:
            self._check_answer()
        before = [self.before.text(s) for s in self.olds]
        after = [self._key(s, before) for s in self.news]
        before = [
            _FROM_ANSWER if s.role is Role.ANSWER else key
            for s, key in zip(self.olds, before, strict=True)
        ]
        opcodes = SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
        unequal = [code[1:] for code in opcodes if code[0] != "equal"]
        gone = [
            (n, s) for n, (i, j, _, _) in enumerate(unequal) for s in self.olds[i:j]
        ]
        come = [
            (n, s) for n, (_, _, k, m) in enumerate(unequal) for s in self.news[k:m]
        ]
        self._find_moved(gone, come)
        self._set_rest([s for _, s in gone])
        for tag, i, j, k, m in opcodes:
            olds, news = self.olds[i:j], self.news[k:m]
            if tag != "equal":
                self._differ(olds, news, end=self._is_end(j))
                continue
            for old, new in zip(olds, news, strict=True):
                same = True if old.role is not Role.ANSWER else self._from_answer(new)
                self._mark(new.start, new.stop, known=same)
        self._fill_glue()

    def spans(self) -> Iterator[ChangedSpan]:
        """Yield runs of positions with one change, after the common prefix."""
        sources = np.where(self.known, self.behind, -1)[self.shared :]
        edges = [0, *(np.flatnonzero(np.diff(sources)) + 1).tolist(), len(sources)]
        for a, b in pairwise(edges):
            if b > a:
                change = self.changes[sources[a]] if sources[a] >= 0 else None
                yield ChangedSpan(self.shared + a, self.shared + b, change)

    def _key(self, new: Segment, before: Sequence[str]) -> str:
        """Return a block's text, or one shared key for all blocks of the answer.

        Texts are compared, because tokens at a block's edges depend on its neighbours.
        """
        key = self.after.text(new)
        from_answer = (
            new.role is Role.ASSISTANT
            and key not in before
            and self._from_answer(new).mean() > _MOSTLY
        )
        return _FROM_ANSWER if from_answer else key

    def _from_answer(self, new: Segment) -> Mask:
        """Return which tokens occur in the predecessor's answer."""
        source = [self.before.ids(s) for s in self.answer]
        return occurring(
            self.after.ids(new), np.concatenate([self.after.ids(new)[:0], *source])
        )

    def _find_moved(
        self, gone: Sequence[tuple[int, Segment]], come: Sequence[tuple[int, Segment]]
    ) -> None:
        """Find blocks that disappeared in one place and reappeared in any place."""
        for (stretch, old), (other, new) in product(gone, come):
            free = old not in self.moved_olds and new not in self.moved_news
            if (
                free
                and old.role is new.role
                and self._is_same(old, new, stretch, other)
            ):
                self.moved_olds.add(old)
                self.moved_news.add(new)

    def _is_same(self, old: Segment, new: Segment, stretch: int, other: int) -> bool:
        """Return whether two blocks are equal; moved ones may differ at their edges."""
        if abs(len(old) - len(new)) > _EDGE:
            return False
        if self.before.text(old) == self.after.text(new):
            return True
        core = self.before.ids(old)[_EDGE:-_EDGE].tobytes()
        return (
            stretch != other and core != b"" and core in self.after.ids(new).tobytes()
        )

    def _set_rest(self, gone: Sequence[Segment]) -> None:
        for role in {s.role for s in gone}:
            ids = [self.before.ids(s) for s in gone if s.role is role]
            self.rest[role] = np.concatenate(ids)

    def _is_end(self, index: int) -> bool:
        """Return whether only the answer is left of the predecessor."""
        return all(s.role is Role.ANSWER for s in self.olds[index:])

    def _check_answer(self) -> None:
        """Record an answer that came back as other tokens as a change."""
        if not self.answer or not self.answer[0].start < self.shared:
            return
        new = next((s for s in self.news if s.role is Role.ASSISTANT), None)
        if new is None or self.shared >= self.answer[0].stop:
            return
        cause = self.classifier.of_answer(self.answer[0], new)
        # The answer is longer than this block, so only the place is shown.
        old, now = (
            blocks.text_around(self.shared, _SHOWN, new.start)
            for blocks in (self.before, self.after)
        )
        self.changes.append(Change(cause, new.label, new.role, self.shared, old, now))

    def _differ(
        self, olds: Sequence[Segment], news: Sequence[Segment], end: bool
    ) -> None:
        """Process a stretch of blocks that differ."""
        moved = [s for s in olds if s in self.moved_olds]
        pairs, gone = pair_blocks([s for s in olds if s not in self.moved_olds], news)
        history = Cause.MOVED if moved else self.classifier.of_history(olds, news)
        self._lose(moved, history, news[0].start if news else self._next_start())
        for old, new in pairs:
            self._take(old, new, history, grows=end)
        gone = [s for s in gone if s.role is not Role.ANSWER]
        self._lose(gone, history, news[-1].stop if news else self._next_start())

    def _lose(self, gone: Sequence[Segment], history: Cause, place: int) -> None:
        """Record that blocks are no longer at ``place``."""
        for old in gone:
            self._change(old, None, history, place)

    def _next_start(self) -> int:
        """Return the position of the text that followed the vanished blocks."""
        starts = [s.start for s in self.news if s.start >= self.shared]
        marked = np.flatnonzero(self.known)
        last = int(marked[-1]) if len(marked) else self.shared - 1
        return next((start for start in starts if start > last), self.shared)

    def _take(
        self, old: Segment | None, new: Segment, history: Cause, grows: bool
    ) -> None:
        ids = self.after.ids(new)
        if new in self.moved_news:
            self._take_moved(new, history, grows)
            return
        before = self.before.ids(old) if old else ids[:0]
        alike = common_prefix(before, ids)
        first = new.start + alike
        self._mark(new.start, first, known=True)
        # A block that only grew, at the end of the prompt, displaces no other.
        added = old is None or old.role is Role.ANSWER or alike == len(before)
        if not ((grows and added) or self._has_equal_text(old, new)):
            self._change(old, new, history, max(first, self.shared))
        # The answer may come back in other blocks, so all following text counts.
        known = occurring(
            ids, np.concatenate([before, self.rest.get(new.role, before)])
        )
        known |= self._from_answer(new) if grows else False
        self._mark(first, new.stop, known=known[alike:])

    def _has_equal_text(self, old: Segment | None, new: Segment) -> bool:
        """Return whether only tokens at a block's edges differ."""
        return old is not None and (self.before.text(old) == self.after.text(new))

    def _take_moved(self, new: Segment, history: Cause, grows: bool) -> None:
        if not grows:
            self._change(None, new, history, new.start)
        self._mark(new.start, new.stop, known=True)

    def _change(
        self,
        old: Segment | None,
        new: Segment | None,
        history: Cause,
        position: int,
    ) -> None:
        block = new or old
        assert block is not None  # there is no change without a block
        moved = old in self.moved_olds or new in self.moved_news
        state = "moved" if moved else "gone"
        self.changes.append(
            Change(
                self.classifier.of_block(old, new, history, moved=moved),
                block.label if new else f"{block.label} ({state})",
                block.role,
                position,
                self.before.text(old),
                self.after.text(new),
                rule=self.classifier.rule_against(old, new),
            )
        )

    def _mark(self, start: int, stop: int, known: bool | Mask) -> None:
        self.known[start:stop] = known
        self.behind[start:stop] = len(self.changes) - 1

    def _fill_glue(self) -> None:
        """Give the template's text around blocks the change of the text before it."""
        for segment in self.after.prompt.segments:
            if segment.role in GLUE_ROLES and segment.start >= self.shared:
                before = segment.start - 1
                known = before >= self.shared and bool(self.known[before])
                behind = self.behind[before] if before >= 0 else -1
                self.known[segment.start : segment.stop] = known
                self.behind[segment.start : segment.stop] = behind
