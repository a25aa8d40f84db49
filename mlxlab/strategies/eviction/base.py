"""The contract of eviction policies: which of the stored entries goes first.

A strategy says what can be dropped or shortened at all: the leaves of its tree, its
slots. A policy chooses among these. It sees no tokens and stores none.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeAlias, TypeVar

from mlxlab.errors import StrategyError, did_you_mean
from mlxlab.strategies.use import UNKNOWN, Use

__all__ = [
    "DEFAULT",
    "EVICTIONS",
    "Entry",
    "Eviction",
    "MayGo",
    "make_eviction",
    "read_eviction",
    "register",
]

#: The policy of strategies where none is named.
DEFAULT = "lru"


class Entry(Protocol):
    """Stored positions ``[start, stop)`` of a sequence, in ids; compared by identity.

    Entries of one sequence follow each other. Whoever uses an entry uses those in front
    of it.
    """

    @property
    def start(self) -> int: ...
    @property
    def stop(self) -> int: ...
    def __hash__(self) -> int: ...


MayGo: TypeAlias = Callable[[Any], bool]
"""Whether an entry can go now: no other one depends on it."""


def _all(entry: Any) -> bool:
    return True


class Eviction(ABC):
    """Chooses what to evict.

    A commit calls :meth:`begin` once, then :meth:`touch` with the entries of the
    sequence, then :meth:`choose` as often as there is too much. The entries of this
    commit may be chosen too: so a policy decides on admission.

    All choices follow from these calls alone: no clock, no chance.

    Attributes:
        name: how specs name it: lower-case words joined by hyphens.
        summary: one line for lists.
        literature: where it is described.
        rank: place in lists, tables and colours, the lowest first.
        is_timed: whether it goes by who asks, when, and how answers end; where that is
            not known it evicts as the default.
    """

    name: ClassVar[str]
    summary: ClassVar[str] = ""
    literature: ClassVar[str] = ""
    rank: ClassVar[int] = 1000
    is_timed: ClassVar[bool] = False

    def __init__(self) -> None:
        self.use = UNKNOWN
        self._has_recalled = False

    def begin(self, use: Use) -> None:
        """Note the request whose sequence is stored next."""
        self.use = use
        if use.learned is not None and not self._has_recalled:
            self._has_recalled = True
            if self.name in use.learned:
                self.recall(use.learned[self.name])

    @abstractmethod
    def touch(self, entries: Iterable[Entry]) -> None:
        """Note what the request used or stored: a whole path, the deepest first."""

    def keep(self, entries: Iterable[Entry]) -> None:
        """Note entries that are to go last, after each commit, deepest first."""
        self.touch(entries)

    @abstractmethod
    def split(self, entry: Entry, head: Entry) -> None:
        """Note that the front of an entry is an entry of its own now.

        The commit touches the head next, and the entry only if it uses it too.
        """

    @abstractmethod
    def discard(self, entry: Entry) -> None:
        """Forget an entry that has gone."""

    @abstractmethod
    def choose(self, may_go: MayGo) -> Any:
        """Return the entry to drop, or to shorten from its end.

        At least one entry may go.
        """

    def choose_beside(self, own: Collection[Entry], may_go: MayGo = _all) -> Any:
        """Return what :meth:`choose` does, and nothing of a request that runs.

        Its answer goes on with its own entries. They fit into any capacity, so what
        others have stored suffices.

        Args:
            own: entries of the sequence that is stored.
            may_go: as for :meth:`choose`.
        """
        if self.use.running:
            return self.choose(lambda entry: entry not in own and may_go(entry))
        return self.choose(may_go)

    @property
    @abstractmethod
    def entries(self) -> Iterable[Any]:
        """All entries, for checks."""

    def learned(self) -> dict[str, list[float]]:
        """Return what was learned from requests, as lists of numbers by any names."""
        return {}

    def recall(self, learned: Mapping[str, Sequence[float]]) -> None:  # noqa: B027
        """Take what was learned earlier, in place of the package's priors."""

    def check(self, parents: Mapping[Any, Any]) -> None:  # noqa: B027  most need none
        """Check what the policy relies on.

        Args:
            parents: the entry that each depends on, where there is one.

        Raises:
            IntegrityError: it does not hold.
        """


E = TypeVar("E", bound=type[Eviction])

EVICTIONS: dict[str, type[Eviction]] = {}
"""Registered policies by name, in order of their ranks."""


def register(policy: E) -> E:
    """Class decorator: list a policy in :data:`EVICTIONS` under its name."""
    EVICTIONS[policy.name] = policy
    for name in sorted(EVICTIONS, key=lambda own: EVICTIONS[own].rank):
        EVICTIONS[name] = EVICTIONS.pop(name)
    return policy


def make_eviction(name: str) -> Eviction:
    """Make a policy by name.

    Raises:
        StrategyError: there is none of this name.
    """
    return EVICTIONS[read_eviction(name)]()


def read_eviction(name: str) -> str:
    """Return ``name`` if a policy has it.

    Raises:
        StrategyError: none has it; the message lists the names.
    """
    if name not in EVICTIONS:
        near = did_you_mean(name, EVICTIONS)
        raise StrategyError(f"no such policy; give one of {', '.join(EVICTIONS)}{near}")
    return name
