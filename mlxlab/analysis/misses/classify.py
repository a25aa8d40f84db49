"""Decides which cause a changed block belongs to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mlxlab.analysis.misses.blocks import PromptBlocks, is_thinking
from mlxlab.analysis.misses.causes import Cause
from mlxlab.analysis.misses.text_diff import shows_date
from mlxlab.prompt import Role, Segment
from mlxlab.rendering.rules import RULES

__all__ = ["Change", "ChangeClassifier"]

_TAG = re.compile(r"<(?:think|thinking|reasoning)>|\[THINK\]")
#: Roles of texts that rules move passages of.
_RULED = frozenset({Role.SYSTEM, Role.INLINE_SYSTEM})
_BEGINNING = 40  # leading characters of an answer that are searched for thinking


@dataclass(frozen=True, slots=True)
class Change:
    """A block that differs between two prompts.

    Attributes:
        label: label of the later block, or of the earlier one if it is gone.
        position: first differing token of the later prompt.
        old: the earlier text; empty if there was none.
        new: the later text; empty if the block is gone.
        rule: the rule that would have undone the change; empty if none is known.
    """

    cause: Cause
    label: str
    role: Role
    position: int
    old: str = ""
    new: str = ""
    rule: str = ""


class ChangeClassifier:
    """Classifies the changed blocks of two prompts.

    Args:
        before: the earlier prompt, followed by its answer.
        after: the later prompt.
        asked: tokens of ``before`` without the answer.
        same_session: see :func:`mlxlab.analysis.misses.prompt_diff.diff_prompts`.
    """

    def __init__(
        self, before: PromptBlocks, after: PromptBlocks, asked: int, same_session: bool
    ) -> None:
        self.before = before
        self.after = after
        self.shorter = len(after.prompt) < asked
        self.same_session = same_session

    def of_history(self, olds: Sequence[Segment], news: Sequence[Segment]) -> Cause:
        """Return the cause of changed messages: cut if they got fewer, else edited."""
        if not self.same_session:
            return Cause.WORDS
        olds = [s for s in olds if s.role is not Role.ANSWER]
        if all(map(is_thinking, (*olds, *news))):
            return Cause.THINKING
        before, after = sum(map(len, olds)), sum(map(len, news))
        fewer = len(olds) > len(news) and before > after
        cut = before > 2 * after or fewer or (self.shorter and len(olds) != len(news))
        return Cause.CUT if cut else Cause.EDITED

    def of_answer(self, answer: Segment, new: Segment) -> Cause:
        """Return the cause for an answer that came back as other tokens."""
        begins = self.before.text(answer)[:_BEGINNING]
        thought = is_thinking(new) or _TAG.search(begins)
        return Cause.THINKING if thought else Cause.ANSWER

    def of_block(
        self, old: Segment | None, new: Segment | None, history: Cause, *, moved: bool
    ) -> Cause:
        """Return the cause for a changed block.

        Args:
            old: the earlier block; None if the block is new.
            new: the later block; None if the block is gone.
            history: the cause of the surrounding messages.
            moved: whether the block only changed its place.
        """
        block = new or old
        assert block is not None  # there is no change without a block
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
                return self._of_system_text(old, new)
            case Role.UNKNOWN if block.label == "turns[0]":
                return self._of_system_text(old, new)
        return history

    def rule_against(self, old: Segment | None, new: Segment | None) -> str:
        """Return the rule that would have undone a change; empty if none is known."""
        if (block := new or old) and self._is_loaded(block):
            return "deferred-tools"
        if old is None or new is None or new.role not in _RULED:
            return ""
        texts = self.before.text(old), self.after.text(new)
        return next((rule.name for rule in RULES.values() if rule.settles(*texts)), "")

    def _is_loaded(self, block: Segment) -> bool:
        """Return whether a block is a tool that a tool result names."""
        name = block.label.partition(":")[2]
        results = (s for s in self.after.blocks(0) if s.role is Role.TOOL_RESULT)
        short = (s for s in results if len(s) <= 4 * len(name))
        return block.role is Role.TOOLS and name in map(self.after.text, short)

    def _of_system_text(self, old: Segment | None, new: Segment | None) -> Cause:
        dated = shows_date(self.before.text(old), self.after.text(new))
        return Cause.ENVIRONMENT if dated else Cause.SYSTEM

    def _is_environment(self, new: Segment | None) -> bool:
        """Return whether a block is the first inline system message."""
        inline = (s for s in self.after.blocks(0) if s.role is Role.INLINE_SYSTEM)
        return new is not None and next(inline, None) == new
