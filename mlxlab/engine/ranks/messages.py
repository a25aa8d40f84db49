"""What ranks tell each other, as lines of JSON."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from pydantic import Field, TypeAdapter

from mlxlab.models.layout import CacheLayout
from mlxlab.prompt import Prompt, Role, Segment
from mlxlab.strategies.use import Use

__all__ = [
    "Begin",
    "Compute",
    "End",
    "Failed",
    "Hello",
    "Join",
    "Keep",
    "Load",
    "Message",
    "Open",
    "Step",
    "Stop",
    "Store",
    "WirePrompt",
    "digest_of",
    "read_message",
    "write_message",
]


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message of a rank above 0.

    Attributes:
        key: shows that it belongs to the group.
        versions: of the packages that decide what is computed.
    """

    key: str
    rank: int
    versions: dict[str, str]
    kind: Literal["hello"] = "hello"


@dataclass(frozen=True, slots=True)
class Failed:
    """Why a rank above 0 ends, and the exit code."""

    reason: str
    code: int
    kind: Literal["failed"] = "failed"


@dataclass(frozen=True, slots=True)
class Stop:
    """The end of all ranks.

    Attributes:
        code: their exit code.
    """

    code: int = 0
    kind: Literal["stop"] = "stop"


@dataclass(frozen=True, slots=True)
class Keep:
    """The models and engines that rank 0 still holds, by number."""

    models: list[int]
    engines: list[int]
    kind: Literal["keep"] = "keep"


@dataclass(frozen=True, slots=True)
class Load:
    """Load a model.

    Attributes:
        name: as :func:`~mlxlab.models.folder.find_model` takes it.
        digest: of its files.
    """

    model: int
    name: str
    digest: str
    kind: Literal["load"] = "load"


@dataclass(frozen=True, slots=True)
class Open:
    """Open an engine.

    Attributes:
        layout: what the model's caches keep on each rank.
        batched: whether its answers decode together.
    """

    engine: int
    model: int
    strategy: str
    chunk: int
    layout: CacheLayout
    batched: bool
    kind: Literal["open"] = "open"


@dataclass(frozen=True, slots=True)
class WirePrompt:
    """A prompt in plain values."""

    ids: list[int]
    segments: list[tuple[str, Role, int, int]]
    exact: bool
    pinned: bool

    @classmethod
    def of(cls, prompt: Prompt) -> WirePrompt:
        segments = [(s.label, s.role, s.start, s.stop) for s in prompt.segments]
        ids = prompt.tokens.tolist()
        return cls(ids, segments, prompt.exact_segments, prompt.pinned)

    def prompt(self) -> Prompt:
        segments = tuple(Segment(*segment) for segment in self.segments)
        ids = np.array(self.ids, dtype=np.int32)
        return Prompt(ids, segments, self.exact, self.pinned)


@dataclass(frozen=True, slots=True)
class Begin:
    """Plan a prompt. Its computation gets the next number on all ranks.

    Attributes:
        plan: digest of rank 0's.
    """

    engine: int
    prompt: WirePrompt
    plan: str
    kind: Literal["begin"] = "begin"


@dataclass(frozen=True, slots=True)
class Compute:
    """Compute at most ``chunk`` tokens of a prompt."""

    computation: int
    chunk: int
    kind: Literal["compute"] = "compute"


@dataclass(frozen=True, slots=True)
class Join:
    """Let an answer begin, in the batch of this index or in a new one."""

    computation: int
    batch: int | None
    kind: Literal["join"] = "join"


@dataclass(frozen=True, slots=True)
class Step:
    """Decode a token of each answer in a batch, given by its index."""

    batch: int
    kind: Literal["step"] = "step"


@dataclass(frozen=True, slots=True)
class Store:
    """Cache the first tokens of a prompt.

    Attributes:
        use: what the eviction policy is told.
        commit: digest of rank 0's.
    """

    computation: int
    length: int
    use: Use
    commit: str
    kind: Literal["store"] = "store"


@dataclass(frozen=True, slots=True)
class End:
    """Let a computation go.

    Attributes:
        answer: its ids, to be cached; None to cache nothing.
        use: what the eviction policy is told.
        commit: digest of rank 0's.
    """

    computation: int
    answer: list[int] | None
    use: Use
    commit: str
    kind: Literal["end"] = "end"


Message: TypeAlias = (
    Hello
    | Failed
    | Stop
    | Keep
    | Load
    | Open
    | Begin
    | Compute
    | Join
    | Step
    | Store
    | End
)

_ADAPTER: TypeAdapter[Message] = TypeAdapter(
    Annotated[Message, Field(discriminator="kind")]
)


def write_message(message: Message) -> bytes:
    """Return a message as JSON, in one line without its end."""
    return _ADAPTER.dump_json(message)


def read_message(line: bytes) -> Message:
    """Return the message of a line.

    Raises:
        ValueError: it is none.
    """
    return _ADAPTER.validate_json(line)


def digest_of(decision: Any) -> str:
    """Return a digest of a plan or commit: equal on ranks that decided alike."""
    return blake2b(repr(decision).encode(), digest_size=8).hexdigest()
