"""Checkpoints by the tokens in front of them: which are held, which go first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np

from mlxlab.errors import IntegrityError
from mlxlab.prompt import Tokens
from mlxlab.strategies.eviction import Eviction
from mlxlab.strategies.plan import Handle, Keep
from mlxlab.strategies.sequences.radix_tree import Node, RadixTree

__all__ = ["Checkpoint", "Checkpoints"]


@dataclass(slots=True, eq=False)
class Checkpoint:
    """The state behind ``position`` tokens.

    Attributes:
        taken: the commit that it was taken in.
        resumed: the latest commit that it was resumed from in, or was taken in again.
        uses: how often it was resumed from.
    """

    handle: Handle
    position: int
    taken: int
    resumed: int
    uses: int = 0

    @property
    def start(self) -> int:
        """Of the one token that it counts for: all checkpoints are of one size."""
        return self.position - 1

    @property
    def stop(self) -> int:
        return self.position


_Node = Node[Checkpoint | None]

#: How much more often a conversation goes on from the end of what is known of it than
#: from a checkpoint in front of that. 3 to 8 give nearly the same reuse on the recorded
#: traces, 1 and 16 less.
_AT_AN_END = 4


class Checkpoints:
    """A tree of the checkpoints of all sequences, within a budget.

    A checkpoint saves the tokens between it and the checkpoint in front of it, as often
    as it is resumed from. The one that saves fewest for each commit of its life goes
    first: ``saved * (uses + 1) / (life + 1)``. Hyperbolic caching ranks by uses for
    each unit of life too (Blankstein et al., USENIX ATC 2017); Marconi
    (arXiv 2411.19379) adds recency and saved work. All checkpoints are of one size, so
    this is also what one saves per byte. When a checkpoint goes, the one behind it
    saves more, so that a long sequence keeps a few that are far apart.

    Without a policy the end of a path counts more, and that of the latest commit stays.
    A policy says which end of a path is to go first, maybe that of the latest commit.
    This one counts as all others do, and the other ends stay. While a request runs, the
    end of its path stays under a policy too: others may wait for it.

    Args:
        size: bytes of a checkpoint.
        budget: most bytes of all of them.
        most: checkpoints to keep of one sequence, the latest; None for any number.
        eviction: chooses among the ends of paths; None to rank them with the others.
    """

    def __init__(
        self,
        size: int,
        budget: int,
        most: int | None = None,
        eviction: Eviction | None = None,
    ) -> None:
        self.size = size
        self.limit = budget // size
        self.most = most
        self.eviction = eviction
        self._handles = count(1)
        self._tree: RadixTree[Checkpoint | None] = RadixTree(None)
        self._held: dict[Handle, _Node] = {}
        self._now = 0
        self._end: Handle | None = None  # the last of the latest commit
        self._pinned: frozenset[Handle] = frozenset()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def nbytes(self) -> int:
        """Bytes of all checkpoints."""
        return len(self) * self.size

    @property
    def handles(self) -> frozenset[Handle]:
        """The handles of all checkpoints."""
        return frozenset(self._held)

    def find(self, tokens: Tokens) -> Checkpoint | None:
        """Return the last checkpoint on the path of ``tokens``."""
        path = self._path(tokens)
        return path[-1] if path else None

    def choose(self, places: Iterable[int], start: int) -> tuple[int, ...]:
        """Return the places that the budget has room for, ascending.

        Args:
            places: ascending positions behind ``start``.
            start: the position of the checkpoint that is resumed from, or 0.
        """
        chosen = list(places)
        while len(chosen) > min(self.limit, self.most or self.limit):
            gaps = np.diff([start, *chosen])
            # The last is where the next turn goes on.
            del chosen[int(np.argmin(gaps[:-1])) if len(gaps) > 1 else 0]
        return tuple(chosen)

    def add(
        self, tokens: Tokens, positions: Iterable[int], used: Handle | None
    ) -> list[Keep]:
        """Take checkpoints of a sequence, and make room for them.

        Args:
            tokens: the computed sequence.
            positions: where checkpoints were taken.
            used: the checkpoint that the sequence was resumed from.

        Returns:
            The new ones that stay.
        """
        self._now += 1
        if used in self._held:
            resumed = self._checkpoint(used)
            resumed.resumed, resumed.uses = self._now, resumed.uses + 1
        new = []
        for position in positions:
            node = self._node(tokens[:position])
            if node.value is None:
                handle = next(self._handles)
                node.value = Checkpoint(handle, position, self._now, self._now)
                self._held[handle] = node
                new.append(Keep(handle, position))
            node.value.resumed = self._now
            self._end = node.value.handle
        if self.eviction is not None:
            self.eviction.touch(reversed(self._path(tokens)))
        self._limit_path(tokens)
        while len(self) > self.limit:
            self.evict()
        return new

    def pin(self, sequences: Iterable[Tokens]) -> None:
        """Let the checkpoints of these sequences go last, and no other ones.

        They take at most half of the budget. The one at the end of a sequence counts
        only where it is the only one: what goes on there differs from session to
        session.

        Args:
            sequences: the least important first.
        """
        found: list[Handle] = []
        for tokens in sequences:
            path = [node for node, _ in self._tree.walk(tokens) if node.value]
            inner = [node for node in path if node.stop < len(tokens)]
            found += [self._checkpoint_of(node).handle for node in inner or path]
        self._pinned = frozenset(found[max(len(found) - self.limit // 2, 0) :])

    def evict(self) -> None:
        """Remove the checkpoint that saves least for each commit of its life."""
        spared = self._spared()
        going = (node for node in self._held.values() if node.value not in spared)
        self._remove(min(going, key=self._worth))

    def prune(self, resident: Callable[[Tokens], int]) -> None:
        """Remove the checkpoints whose tokens are not stored any more.

        Args:
            resident: returns how many leading tokens of a sequence are stored.
        """
        for node, stored in list(self._stored(resident)):
            if node.value is not None and node.stop > stored:
                self._remove(node)

    def check(self, resident: Callable[[Tokens], int]) -> None:
        """Recount the checkpoints; the tokens in front of each are stored.

        Raises:
            IntegrityError: counts disagree, the budget is exceeded, or one cannot be
                resumed from.
        """
        found = {node.value.handle: node for node in self._tree if node.value}
        if found != self._held or len(found) > self.limit:
            raise IntegrityError(
                f"checkpoints: {len(found)} in the tree, {len(self)} booked, "
                f"{self.limit} at most"
            )
        if self.eviction is not None:
            known = set(self.eviction.entries)
            if known != set(map(self._checkpoint_of, found.values())):
                raise IntegrityError(
                    f"checkpoints: {len(found)} are held, {len(known)} of the policy"
                )
        for node in list(self._tree):
            if not node.children and node.value is None:
                raise IntegrityError(f"checkpoints: none at the end of {node.stop}")
        for node, stored in self._stored(resident):
            if node.value is not None and node.stop > stored:
                raise IntegrityError(
                    f"checkpoints: {node.value.handle} is behind {node.stop} tokens, "
                    f"of which {stored} are stored"
                )

    def _stored(self, resident: Callable[[Tokens], int]) -> Iterator[tuple[_Node, int]]:
        """Yield nodes, the last of each path first, and the stored tokens of the path.

        A node on several paths is yielded with each.
        """
        for leaf in [node for node in self._held.values() if not node.children]:
            path = list(self._ancestors(leaf))
            stored = resident(np.concatenate([node.tokens for node in path[::-1]]))
            for node in path:
                yield node, stored

    def _spared(self) -> set[Checkpoint]:
        """Return the ends of paths that stay because another one is to go first."""
        if self.eviction is None:
            return set()
        ends = {
            self._checkpoint_of(node)
            for node in self._held.values()
            if not node.children and not self._stays(node)
        }
        return ends - {self.eviction.choose(ends.__contains__)} if ends else ends

    def _stays(self, node: _Node) -> bool:
        """Whether a checkpoint goes only where no other can."""
        own = self._checkpoint_of(node)
        if own.handle in self._pinned:
            return True
        if self.eviction is not None and not self.eviction.use.running:
            return False
        # The next turn goes on here.
        resumed = own.resumed == self._now
        return own.handle == self._end or (resumed and not node.children)

    def _worth(self, node: _Node) -> tuple[float, float]:
        own = self._checkpoint_of(node)
        if self._stays(node):
            last = float("inf") if own.handle in self._pinned else node.stop
            return float("inf"), last
        saved = node.stop - self._previous(node)
        if not node.children and self.eviction is None:
            saved *= _AT_AN_END
        life = self._now - own.taken
        return saved * (own.uses + 1) / (life + 1), node.stop

    def _previous(self, node: _Node) -> int:
        """Return the position of the checkpoint in front of this one, or 0."""
        for parent in self._ancestors(node):
            if parent is not node and parent.value is not None:
                return parent.stop
        return 0

    def _limit_path(self, tokens: Tokens) -> None:
        if self.most is None:
            return
        path = [node for node, _ in self._tree.walk(tokens) if node.value is not None]
        for node in path[: -self.most]:
            self._remove(node)

    def _path(self, tokens: Tokens) -> list[Checkpoint]:
        """Return the checkpoints on the path of ``tokens``, front to back."""
        return [
            node.value
            for node, length in self._tree.walk(tokens)
            if node.value is not None and length == len(node.tokens)
        ]

    def _node(self, tokens: Tokens) -> _Node:
        """Return the node that ends where ``tokens`` end; make it if need be."""
        last = self._tree.root
        for node, length in self._tree.walk(tokens):
            last = node
            if length < len(node.tokens):
                last = self._tree.split(node, length)
                last.value = None
                break
        if last.stop < len(tokens):
            last = self._tree.append(last, tokens[last.stop :], None)
        return last

    def _remove(self, node: _Node) -> None:
        gone = self._checkpoint_of(node)
        del self._held[gone.handle]
        if self.eviction is not None:
            self.eviction.discard(gone)
        node.value = None
        while node.parent is not None and node.value is None and not node.children:
            parent = node.parent
            self._tree.trim(node, 0)
            node = parent

    def _ancestors(self, node: _Node) -> Iterator[_Node]:
        """Yield a node and those in front of it, without the root."""
        at: _Node | None = node
        while at is not None and at is not self._tree.root:
            yield at
            at = at.parent

    def _checkpoint(self, handle: Handle | None) -> Checkpoint:
        assert handle is not None
        return self._checkpoint_of(self._held[handle])

    def _checkpoint_of(self, node: _Node) -> Checkpoint:
        assert node.value is not None
        return node.value
