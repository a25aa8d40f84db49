"""Prompts: token ids, and the block of the request that each came from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "GLUE_ROLES",
    "STATIC_ROLES",
    "Prompt",
    "Role",
    "Segment",
    "Tokens",
    "common_prefix",
]

Tokens: TypeAlias = NDArray[np.int32]


class Role(StrEnum):
    """The role of a segment in the conversation."""

    ATTRIBUTION = "attribution"
    SYSTEM = "system"
    TOOLS = "tools"
    INLINE_SYSTEM = "inline-system"
    USER = "user"
    TOOL_RESULT = "tool-result"
    ASSISTANT = "assistant"
    TEMPLATE = "template"
    GENERATION = "generation"
    ANSWER = "answer"
    UNKNOWN = "unknown"


#: Roles at the beginning of every prompt of one agent.
STATIC_ROLES = frozenset({Role.ATTRIBUTION, Role.SYSTEM, Role.TOOLS})

#: Roles of the text that the template adds around the blocks.
GLUE_ROLES = frozenset({Role.TEMPLATE, Role.GENERATION})


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens ``[start, stop)`` of a prompt, and the wire block that they came from.

    Attributes:
        label: names the block, as in ``system[1]``, ``tools[4]:Bash`` or
            ``messages[12].tool_result[0]``. ``template`` stands for text that the
            chat template added around the blocks.
        role: the block's role in the conversation.
        start: first token.
        stop: end, exclusive.
    """

    label: str
    role: Role
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """Token ids, and segments that cover them without gap or overlap.

    Attributes:
        tokens: int32 ids, shape ``[n]``, read-only.
        segments: in order; the first starts at 0, the last stops at ``n``.
        exact_segments: False if the template did not let every block be located;
            the segments are then whole turns.
        pinned: whether what is stored of it is evicted last.
    """

    tokens: Tokens
    segments: tuple[Segment, ...] = ()
    exact_segments: bool = True
    pinned: bool = False

    def __post_init__(self) -> None:
        self.tokens.flags.writeable = False

    @classmethod
    def of(cls, ids: Iterable[int]) -> Prompt:
        """Make a prompt of bare ids, in one segment of unknown origin."""
        tokens = np.fromiter(ids, dtype=np.int32)
        segment = Segment("prompt", Role.UNKNOWN, 0, len(tokens))
        return cls(tokens, (segment,), exact_segments=False)

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        return f"Prompt({len(self)} tokens, {len(self.segments)} segments)"

    @property
    def static_length(self) -> int:
        """Number of tokens up to the end of system text and tools; 0 without any.

        Template tokens between static segments count; those after them do not.
        """
        length = 0
        for segment in self.segments:
            if segment.role in STATIC_ROLES:
                length = segment.stop
            elif segment.role is not Role.TEMPLATE:
                break
        return length

    def extended(self, answer: Tokens) -> Prompt:
        """Return this prompt followed by ``answer``, in a segment of its own."""
        if len(answer) == 0:
            return self
        tokens = np.concatenate([self.tokens, answer]).astype(np.int32, copy=False)
        segment = Segment("answer", Role.ANSWER, len(self), len(tokens))
        return replace(self, tokens=tokens, segments=(*self.segments, segment))

    def head(self, length: int) -> Prompt:
        """Return the first ``length`` tokens, with the segments that cover them."""
        segments = [s for s in self.segments if s.start < length]
        if segments and segments[-1].stop > length:
            segments[-1] = replace(segments[-1], stop=length)
        tokens = self.tokens[:length]
        return replace(self, tokens=tokens, segments=tuple(segments))


def common_prefix(a: Tokens, b: Tokens) -> int:
    """Return the length of the longest common prefix of two id arrays, in tokens."""
    n = min(len(a), len(b))
    differs = a[:n] != b[:n]
    first = int(differs.argmax()) if n else 0
    return first if n and differs[first] else n
