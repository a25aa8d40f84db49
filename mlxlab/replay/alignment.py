"""What changed between an earlier prompt and a later one, and whom that costs.

Both are laid side by side block by block. What stands behind a change and was there
before is due to it; what was not there before is new. Knows tokens and segments;
nothing of strategies.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import pairwise, product
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlxlab.prompt import Prompt, Role, Segment, Tokens, common_prefix
from mlxlab.replay.causes import Cause
from mlxlab.replay.changes import shows_date
from mlxlab.replay.references import Reference, grams

__all__ = ["Alignment", "Change", "Decode", "Due", "align"]

Decode: TypeAlias = Callable[[Tokens], str]
"""Text of ids, without special tokens."""

Mask: TypeAlias = NDArray[np.bool_]

#: Stands for a block that came from the reference's answer, and the share of its
#: tokens from which it did: clients add defaults to the arguments of calls.
_FROM_ANSWER = "\0answer"
_MOSTLY = 0.5

#: Tokens that a template may put around a block, depending on what is beside it.
_EDGE = 8

#: Tokens on either side of the place where an answer came back in others.
_SHOWN = 16

_GLUE = frozenset({Role.TEMPLATE, Role.GENERATION})
_REASONING = ("thinking", "redacted_thinking")
_TAG = re.compile(r"<(?:think|thinking|reasoning)>|\[THINK\]")


@dataclass(frozen=True, slots=True)
class Change:
    """A block that is not what it was.

    Attributes:
        label: of the block, in the later prompt if it is there.
        position: its first token that differs, in the later prompt.
        old: its text before, empty if there was none.
        new: its text now, empty if it has gone.
        deferred: a tool that a tool result has loaded.
    """

    cause: Cause
    label: str
    role: Role
    position: int
    old: str = ""
    new: str = ""
    deferred: bool = False


@dataclass(frozen=True, slots=True)
class Due:
    """Tokens ``[start, stop)`` behind ``change``, or new ones."""

    start: int
    stop: int
    change: Change | None


@dataclass(frozen=True, slots=True)
class Alignment:
    """A prompt beside its reference.

    Attributes:
        shared: length of their common prefix.
        changes: in the order of the prompt.
        dues: parts of the prompt from ``shared`` to its end.
    """

    shared: int
    changes: tuple[Change, ...]
    dues: tuple[Due, ...]


def align(
    prompt: Prompt, reference: Reference, *, same_session: bool, decode: Decode
) -> Alignment:
    """Lay ``prompt`` beside the sequence that ``reference`` left.

    Args:
        prompt: the later one.
        reference: the earlier request.
        same_session: whether it was one of the same session and agent, so that other
            messages are an edited history and not another conversation.
        decode: for the texts of changes.
    """
    walk = _Walk(prompt, reference, same_session, decode)
    walk.run()
    return Alignment(walk.shared, tuple(walk.changes), tuple(walk.dues()))


@dataclass(eq=False)
class _Walk:
    """Goes through two prompts and remembers the change that is nearest in front."""

    prompt: Prompt
    reference: Reference
    same_session: bool
    decode: Decode
    changes: list[Change] = field(default_factory=list)
    #: Blocks that stand in both, but not in the same order.
    moved_olds: set[Segment] = field(default_factory=set)
    moved_news: set[Segment] = field(default_factory=set)

    def __post_init__(self) -> None:
        before, length = self.reference.computed, len(self.prompt)
        self.shared = common_prefix(before.tokens, self.prompt.tokens)
        self.olds = _blocks(before, self.shared)
        self.news = _blocks(self.prompt, self.shared)
        self.answer = [s for s in self.olds if s.role is Role.ANSWER]
        #: By position: whether the reference has this text, and which change is in
        #: front of it (-1: none).
        self.known = np.zeros(length, np.bool_)
        self.behind = np.full(length, -1, np.int64)
        #: What is left of the reference, by role: a changed block may have come
        #: from several.
        self.rest: dict[Role, Tokens] = {}
        self.texts: dict[tuple[Segment, int], str] = {}

    def run(self) -> None:
        if self.shared >= len(self.reference.step.prompt):
            self._check_answer()
        before = [self._old_text(s).strip() for s in self.olds]
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
                same = True if old.role is not Role.ANSWER else self._said(new)
                self._mark(new.start, new.stop, known=same)
        self._fill_glue()

    def dues(self) -> Iterator[Due]:
        """Runs of one fate from the common prefix on."""
        fate = np.where(self.known, self.behind, -1)[self.shared :]
        edges = [0, *(np.flatnonzero(np.diff(fate)) + 1).tolist(), len(fate)]
        for a, b in pairwise(edges):
            if b > a:
                change = self.changes[fate[a]] if fate[a] >= 0 else None
                yield Due(self.shared + a, self.shared + b, change)

    def _key(self, new: Segment, before: Sequence[str]) -> str:
        """Content; the same for all of what the reference was answered.

        By text, as a token at an edge depends on what is beside the block.
        """
        key = self._text(new).strip()
        from_answer = (
            new.role is Role.ASSISTANT
            and key not in before
            and self._said(new).mean() > _MOSTLY
        )
        return _FROM_ANSWER if from_answer else key

    def _said(self, new: Segment) -> Mask:
        """Which tokens stand in the reference's answer."""
        source = [self._old_ids(s) for s in self.answer]
        return _occurring(self._ids(new), np.concatenate([self._ids(new)[:0], *source]))

    def _find_moved(
        self, gone: Sequence[tuple[int, Segment]], come: Sequence[tuple[int, Segment]]
    ) -> None:
        """Blocks that have gone in one stretch and are back, there or in another."""
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
        """Whether a block is another one, but for its edges if it is somewhere else."""
        if abs(len(old) - len(new)) > _EDGE:
            return False
        if self._old_text(old).strip() == self._text(new).strip():
            return True
        core = self._old_ids(old)[_EDGE:-_EDGE].tobytes()
        return stretch != other and core != b"" and core in self._ids(new).tobytes()

    def _set_rest(self, gone: Sequence[Segment]) -> None:
        for role in {s.role for s in gone}:
            ids = [self._old_ids(s) for s in gone if s.role is role]
            self.rest[role] = np.concatenate(ids)

    def _is_end(self, index: int) -> bool:
        """Whether nothing but the answer is left of the reference."""
        return all(s.role is Role.ANSWER for s in self.olds[index:])

    def _check_answer(self) -> None:
        """An answer that has come back in other tokens is a change of its own."""
        if not self.answer or not self.answer[0].start < self.shared:
            return
        new = next((s for s in self.news if s.role is Role.ASSISTANT), None)
        if new is None or self.shared >= self.answer[0].stop:
            return
        old = self.decode(self._old_ids(self.answer[0]))
        thinks = _kind(new).split(".")[-1] in _REASONING or _TAG.search(old[:40])
        cause = Cause.THINKING if thinks else Cause.ANSWER
        # The answer is more than this block: what is shown is the place.
        shown = slice(max(new.start, self.shared - _SHOWN), self.shared + _SHOWN)
        before = self.decode(self.reference.computed.tokens[shown])
        after = self.decode(self.prompt.tokens[shown])
        self.changes.append(
            Change(cause, new.label, new.role, self.shared, before, after)
        )

    def _differ(
        self, olds: Sequence[Segment], news: Sequence[Segment], end: bool
    ) -> None:
        """Take in a stretch where the two are not the same."""
        moved = [s for s in olds if s in self.moved_olds]
        pairs, gone = _paired([s for s in olds if s not in self.moved_olds], news)
        history = Cause.MOVED if moved else self._cause_of_history(olds, news)
        self._lose(moved, history, news[0].start if news else self._next_start())
        for old, new in pairs:
            self._take(old, new, history, grows=end)
        gone = [s for s in gone if s.role is not Role.ANSWER]
        self._lose(gone, history, news[-1].stop if news else self._next_start())

    def _lose(self, gone: Sequence[Segment], history: Cause, place: int) -> None:
        """Take in that blocks are no longer at ``place``."""
        for old in gone:
            self._change(self._cause(old, None, history), old, None, place)

    def _next_start(self) -> int:
        """Where what stood behind vanished blocks stands now."""
        starts = [s.start for s in self.news if s.start >= self.shared]
        marked = np.flatnonzero(self.known)
        last = int(marked[-1]) if len(marked) else self.shared - 1
        return next((start for start in starts if start > last), self.shared)

    def _take(
        self, old: Segment | None, new: Segment, history: Cause, grows: bool
    ) -> None:
        ids = self._ids(new)
        if new in self.moved_news:
            self._take_moved(new, history, grows)
            return
        before = self._old_ids(old) if old else ids[:0]
        alike = common_prefix(before, ids)
        first = new.start + alike
        self._mark(new.start, first, known=True)
        # A block that was only added to, at the end, has pushed nothing away.
        added = old is None or old.role is Role.ANSWER or alike == len(before)
        if not ((grows and added) or self._says_the_same(old, new)):
            cause = self._cause(old, new, history)
            self._change(cause, old, new, max(first, self.shared))
        # The answer stands in what follows, whatever blocks it came back as.
        known = _occurring(
            ids, np.concatenate([before, self.rest.get(new.role, before)])
        )
        known |= self._said(new) if grows else False
        self._mark(first, new.stop, known=known[alike:])

    def _says_the_same(self, old: Segment | None, new: Segment) -> bool:
        """Whether only a token at its edge differs."""
        return old is not None and (
            self._old_text(old).strip() == self._text(new).strip()
        )

    def _take_moved(self, new: Segment, history: Cause, grows: bool) -> None:
        if not grows:
            self._change(self._cause(None, new, history, moved=True), None, new)
        self._mark(new.start, new.stop, known=True)

    def _cause_of_history(
        self, olds: Sequence[Segment], news: Sequence[Segment]
    ) -> Cause:
        """What became of messages: cut if there is less of them, edited otherwise."""
        if not self.same_session:
            return Cause.WORDS
        olds = [s for s in olds if s.role is not Role.ANSWER]
        if all(_kind(s).split(".")[-1] in _REASONING for s in (*olds, *news)):
            return Cause.THINKING
        before, after = sum(map(len, olds)), sum(map(len, news))
        shorter = len(self.prompt) < len(self.reference.step.prompt)
        fewer = len(olds) > len(news) and before > after
        cut = before > 2 * after or fewer or (shorter and len(olds) != len(news))
        return Cause.CUT if cut else Cause.EDITED

    def _cause(
        self,
        old: Segment | None,
        new: Segment | None,
        history: Cause,
        moved: bool = False,
    ) -> Cause:
        block = new or old
        assert block is not None  # there is no change without a block
        if new is None:
            moved = block in self.moved_olds
        match block.role:
            case Role.ATTRIBUTION:
                return Cause.HEADER
            case Role.TOOLS:
                return Cause.ORDER if moved else Cause.TOOLS
            case Role.INLINE_SYSTEM if moved or old is None:
                return Cause.INLINE
            case _ if moved:
                return Cause.MOVED
            case Role.INLINE_SYSTEM if new is None:
                return history
            case Role.INLINE_SYSTEM if self._is_environment(new):
                return Cause.ENVIRONMENT
            case Role.SYSTEM | Role.INLINE_SYSTEM:
                dated = shows_date(self._old_text(old), self._text(new))
                return Cause.ENVIRONMENT if dated else Cause.SYSTEM
            case Role.UNKNOWN if block.label == "turns[0]":
                dated = shows_date(self._old_text(old), self._text(new))
                return Cause.ENVIRONMENT if dated else Cause.SYSTEM
        return history

    def _is_environment(self, new: Segment | None) -> bool:
        """The first inline system message tells it."""
        inline = (s for s in self.prompt.segments if s.role is Role.INLINE_SYSTEM)
        return new is not None and next(inline, None) == new

    def _change(
        self,
        cause: Cause,
        old: Segment | None,
        new: Segment | None,
        position: int | None = None,
    ) -> None:
        block = new or old
        assert block is not None  # there is no change without a block
        what = "moved" if old in self.moved_olds else "gone"
        self.changes.append(
            Change(
                cause,
                block.label if new else f"{block.label} ({what})",
                block.role,
                block.start if position is None else position,
                self._old_text(old),
                self._text(new),
                deferred=block.role is Role.TOOLS and self._is_loaded(block),
            )
        )

    def _is_loaded(self, tool: Segment) -> bool:
        """Whether a tool result consists of the tool's name."""
        name = tool.label.partition(":")[2]
        short = (
            s
            for s in self.prompt.segments
            if s.role is Role.TOOL_RESULT and len(s) <= 4 * len(name)
        )
        return any(self._text(s).strip() == name for s in short)

    def _mark(self, start: int, stop: int, known: bool | Mask) -> None:
        self.known[start:stop] = known
        self.behind[start:stop] = len(self.changes) - 1

    def _fill_glue(self) -> None:
        """What the template puts around blocks shares the fate of what is before it."""
        for segment in self.prompt.segments:
            if segment.role in _GLUE and segment.start >= self.shared:
                before = segment.start - 1
                known = before >= self.shared and bool(self.known[before])
                behind = self.behind[before] if before >= 0 else -1
                self.known[segment.start : segment.stop] = known
                self.behind[segment.start : segment.stop] = behind

    def _ids(self, segment: Segment) -> Tokens:
        return self.prompt.tokens[segment.start : segment.stop]

    def _old_ids(self, segment: Segment) -> Tokens:
        return self.reference.computed.tokens[segment.start : segment.stop]

    def _text(self, segment: Segment | None) -> str:
        return self._decoded(segment, self.prompt.tokens) if segment else ""

    def _old_text(self, segment: Segment | None) -> str:
        before = self.reference.computed.tokens
        return self._decoded(segment, before) if segment else ""

    def _decoded(self, segment: Segment, tokens: Tokens) -> str:
        key = (segment, id(tokens))
        if key not in self.texts:
            self.texts[key] = self.decode(tokens[segment.start : segment.stop])
        return self.texts[key]


def _blocks(prompt: Prompt, start: int) -> list[Segment]:
    """Blocks that reach beyond ``start``, without what the template adds."""
    return [s for s in prompt.segments if s.stop > start and s.role not in _GLUE]


def _kind(segment: Segment) -> str:
    """The label without numbers: ``messages.tool_result``, ``tools:Bash``."""
    return re.sub(r"\[\d+\]", "", segment.label)


def _paired(
    olds: Sequence[Segment], news: Sequence[Segment]
) -> tuple[list[tuple[Segment | None, Segment]], list[Segment]]:
    """Each later block with the earlier one of its kind; what is left of those."""
    left = list(olds)
    pairs: list[tuple[Segment | None, Segment]] = []
    for new in news:
        same = (s for s in left if s.role is new.role and _kind(s) == _kind(new))
        old = next(same, None)
        if old is not None:
            left.remove(old)
        pairs.append((old, new))
    return pairs, left


def _occurring(ids: Tokens, source: Tokens) -> Mask:
    """Which ids are part of a run of some length that ``source`` has too."""
    own = grams(ids)
    known = np.zeros(len(ids), np.bool_)
    width = len(ids) - len(own) + 1
    for place in np.flatnonzero(np.isin(own, grams(source))):
        known[place : place + width] = True
    return known
