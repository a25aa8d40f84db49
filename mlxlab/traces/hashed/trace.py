"""Traces without text: what a request's blocks were, by numbers that stand for them.

Equal numbers mean equal beginnings of a prompt, as in the block hashes of vLLM. Such
traces can be shared and simulated, and drive no model. One of a file's readers is here,
for our own format; others are in :mod:`mlxlab.traces.importers`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

from mlxlab.prompt import Role, Tokens

__all__ = ["HashedRequest", "HashedTrace", "Reader"]


@dataclass(frozen=True, slots=True, eq=False)
class HashedRequest:
    """One request.

    Attributes:
        t: seconds since its trace began.
        tokens: of the prompt.
        chained: int32, shape ``[units]``; a number for each whole unit of the prompt
            and, where it is known, of the answer behind it. It stands for the unit and
            all before it, within this trace.
        answer: tokens of the answer that the numbers go on with; 0 if they do not.
        roles: what the prompt consists of and how many tokens each part has, in order;
            may end before the prompt does.
        content: for each part numbers of its units by themselves, the last of which may
            be short; empty if the trace does not tell.
        session: which of the trace's, if it has several.
        agent: the sub-agent's id, empty for the main loop.
    """

    t: float
    tokens: int
    chained: Tokens
    answer: int = 0
    roles: tuple[tuple[Role, int], ...] = ()
    content: tuple[Tokens, ...] = ()
    session: str = ""
    agent: str = ""


Reader: TypeAlias = Callable[[Path], Iterator[HashedRequest]]
"""Requests of a file in order of time.

Raises:
    TraceError: a line that cannot be read; the message names file and line.
"""


@dataclass(frozen=True)
class HashedTrace:
    """A file of hashed requests, read anew whenever it is iterated.

    Attributes:
        unit: tokens that a number stands for.
        read: see :data:`Reader`.
    """

    path: Path
    unit: int
    read: Reader = field(repr=False)

    @property
    def name(self) -> str:
        """The file's name without its endings."""
        return self.path.name.partition(".")[0]

    def __iter__(self) -> Iterator[HashedRequest]:
        return self.read(self.path)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
