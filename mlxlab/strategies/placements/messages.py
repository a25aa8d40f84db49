"""Places at the ends of messages, and of the prompt and its answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from mlxlab.prompt import GLUE_ROLES, STATIC_ROLES, Prompt, Role, Segment
from mlxlab.strategies.placements.base import Placement, register

__all__ = ["Answer", "Messages", "PromptEnd", "Tail", "Turns", "Users", "turn_starts"]

_GLUE = STATIC_ROLES | GLUE_ROLES


@register
class Messages(Placement):
    """Behind each message: histories are edited and cut at whole messages.

    Where a trace does not say where messages end, a grid stands for them.
    """

    name = "messages"
    summary = "the end of each message, N tokens apart at least"
    spacing = 0

    def places(self, prompt: Prompt, match: int) -> Iterable[int]:
        return _spaced(sorted({*_ends(prompt), *self._grid(prompt)}), self.number)

    def _grid(self, prompt: Prompt) -> Iterator[int]:
        """Yield positions in segments of unknown origin."""
        for segment in prompt.segments:
            if segment.role is Role.UNKNOWN and self.number:
                yield from range(segment.start, segment.stop, self.number)


@register
class Users(Placement):
    """Behind each message of the user: thinking is dropped back to the latest."""

    name = "users"
    summary = "the end of each user message, N tokens apart at least"
    spacing = 0

    def places(self, prompt: Prompt, match: int) -> Iterable[int]:
        return _spaced(_ends(prompt, Role.USER), self.number)


@register
class Turns(Placement):
    """In front of each message of the user, which another one may replace."""

    name = "turns"
    summary = "the start of each user message, N tokens apart at least"
    spacing = 0

    def places(self, prompt: Prompt, match: int) -> Iterable[int]:
        return _spaced(turn_starts(prompt), self.number, -self.number)


@register
class Tail(Placement):
    """A few tokens in front of the end, whatever stands there."""

    name = "tail"
    summary = "N tokens in front of the prompt's end"
    spacing = 4

    def places(self, prompt: Prompt, match: int) -> Iterable[int]:
        return (len(prompt) - self.number,)


@register
class PromptEnd(Placement):
    """Behind the last message, as the next turn renders it again.

    The generation prompt behind it is left out: the next turn may drop the thinking
    that it opens.
    """

    name = "prompt"
    summary = "the end of the prompt, in front of its generation prompt"

    def places(self, prompt: Prompt, match: int) -> Iterable[int]:
        opened = (s.start for s in prompt.segments if s.role is Role.GENERATION)
        return (next(opened, len(prompt) - 1),)


@register
class Answer(Placement):
    """Behind the answer, where the next turn goes on; a cancelled one too."""

    name = "answer"
    summary = "the end of the answer"
    answer = True

    def places(self, prompt: Prompt, match: int) -> Iterable[int]:
        return ()


def turn_starts(prompt: Prompt) -> Iterator[int]:
    """Yield where messages of the user start, ascending."""
    return (message[0].start for message in _messages(prompt, Role.USER))


def _ends(prompt: Prompt, role: Role | None = None) -> Iterator[int]:
    return (message[-1].stop for message in _messages(prompt, role))


def _messages(prompt: Prompt, role: Role | None) -> Iterator[list[Segment]]:
    """Yield the blocks of messages; those with a block of ``role`` only, if given."""
    blocks = (segment for segment in prompt.segments if segment.role not in _GLUE)
    for _, group in groupby(blocks, key=_message):
        message = list(group)
        if role is None or any(segment.role is role for segment in message):
            yield message


def _message(segment: Segment) -> str:
    """Return ``messages[3]`` of ``messages[3].tool_result[0]``."""
    return segment.label.partition(".")[0]


def _spaced(ends: Iterable[int], spacing: int, last: int = 0) -> Iterator[int]:
    """Yield ascending positions at least ``spacing`` apart, and behind ``last``."""
    for end in ends:
        if end - last >= max(spacing, 1):
            yield end
            last = end
