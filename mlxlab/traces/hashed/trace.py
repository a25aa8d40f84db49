"""Traces without text: numbers stand for the blocks of each prompt.

Equal numbers mean equal beginnings of a prompt, as in the block hashes of vLLM. Such
traces can be shared and simulated. They cannot be rendered or replayed live.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

from mlxlab.content import open_regular
from mlxlab.errors import TraceError
from mlxlab.printable import encodable
from mlxlab.prompt import Role, Tokens

__all__ = ["HashedRequest", "HashedTrace", "Reader"]


@dataclass(frozen=True, slots=True, eq=False)
class HashedRequest:
    """One request.

    Attributes:
        t: arrival, seconds since the trace began.
        tokens: token count of the prompt.
        chained: int32, shape ``[units]``; one number for each whole unit of the prompt
            and, where it is known, of the answer behind it. A number stands for the
            unit and everything before it, within this trace.
        answer: token count of the answer that ``chained`` covers; 0 for none.
        roles: role and token count of each part of the prompt, in order; parts at the
            end may be missing.
        content: for each part the numbers of its units by themselves, the last of
            which may be short; empty if the trace does not have them.
        session: session id, empty if the trace has one session only; None if it does
            not say which requests belong together.
        agent: the sub-agent's id, empty for the main loop.
        ended: when the answer ended, on the same clock; None if it is not known.
        stop: the stop reason of the answer; empty if it is not known.
        tools: names of the tools that the answer calls, or what stands for them.
        side: whether it is a side request, such as one for a title.
    """

    t: float
    tokens: int
    chained: Tokens
    answer: int = 0
    roles: tuple[tuple[Role, int], ...] = ()
    content: tuple[Tokens, ...] = ()
    session: str | None = ""
    agent: str = ""
    ended: float | None = None
    stop: str = ""
    tools: tuple[str, ...] = ()
    side: bool = False


Reader: TypeAlias = Callable[[Path], Iterator[HashedRequest]]
"""Yields the requests of a file in order of arrival.

Raises:
    TraceError: a damaged line; the message names file and line.
"""


@dataclass(frozen=True)
class HashedTrace:
    """A file of hashed requests, read anew at each iteration.

    Attributes:
        path: the file.
        unit: how many tokens one number stands for.
        read: see :data:`Reader`.
    """

    path: Path
    unit: int
    read: Reader = field(repr=False)

    @property
    def name(self) -> str:
        """The file's name without its endings."""
        return encodable(self.path.name.partition(".")[0])

    def __iter__(self) -> Iterator[HashedRequest]:
        """Yield the requests.

        Raises:
            TraceError: there is none, or see :data:`Reader`.
        """
        requests = self.read(self.path)
        first = next(requests, None)
        if first is None:
            raise TraceError(f"{self.path}: no request; give a trace with some")
        yield first
        yield from requests

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file."""
        with open_regular(self.path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
