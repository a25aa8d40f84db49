"""One pool of hashed blocks that all sequences share.

Knows digests of whole blocks and who hangs on whom; keeps no token ids and has no
notion of a sequence or session.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count

from mlxlab.errors import IntegrityError, StrategyError
from mlxlab.prompt import Prompt, Tokens
from mlxlab.strategies.base import (
    Commit,
    Handle,
    Parameter,
    Plan,
    Put,
    Span,
    Strategy,
    require,
)
from mlxlab.strategies.prefixes import chained_digests

__all__ = ["Paged"]


@dataclass(slots=True)
class _Block:
    """A resident block.

    ``generation`` is that of its keys and values, see :class:`Span`; ``references``
    counts the resident blocks behind it.
    """

    handle: Handle
    parent: bytes | None
    generation: int
    references: int = 0


class Paged(Strategy):
    """Blocks under their chained hash, least recently used leaf evicted first.

    The scheme of vLLM's automatic prefix caching (paged storage: arXiv 2309.06180;
    hashing: https://docs.vllm.ai/en/latest/design/prefix_caching/): sequences share
    the blocks of what they have in common, and a block goes only when no resident
    block hangs on it.
    Every use touches a chain from its tail to its root, so a parent is always more
    recent than its children, and the least recent block of all is always a leaf.

    A commit evicts the tokens of the blocks that go: each stands for a prefix of its
    own that nothing else can restore.

    Plans made here are exact, so all blocks are of generation 0. A subclass may plan
    otherwise: blocks with an approximate token, or behind one, have the plan's
    generation. A block takes the place of one of a higher generation, never of a lower
    one, so none is closer to exact than its parent.

    Args:
        block: tokens in a block; a tail shorter than this is not stored.
        capacity: bytes the pool may hold. A chain longer than that keeps its head.
        token_bytes: see :class:`Strategy`.
    """

    name = "paged"
    summary = "one pool of hashed blocks shared by all sequences"

    def __init__(
        self, *, block: int = 64, capacity: int = 4 << 30, token_bytes: int = 1
    ) -> None:
        super().__init__(token_bytes=token_bytes)
        require(self.name, block=block, capacity=capacity)
        self.block = block
        self.capacity = capacity
        self._limit = capacity // (block * token_bytes)
        if self._limit == 0:
            raise StrategyError(
                f"{self.name}: capacity={capacity} holds no block; give at least "
                f"{block * token_bytes} bytes for blocks of {block} tokens"
            )
        self._handles = count(1)
        self._pool: OrderedDict[bytes, _Block] = OrderedDict()  # least recent first

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return {"block": self.block, "capacity": self.capacity}

    def _match(self, prompt: Prompt) -> Plan:
        spans = self._walk(prompt.tokens[:-1])
        return Plan(len(prompt), spans, len(spans) * self.block)

    def _walk(self, tokens: Tokens) -> tuple[Span, ...]:
        """The resident blocks from the start on, in their old places."""
        spans: list[Span] = []
        for digest in chained_digests(tokens, self.block):
            block = self._pool.get(digest)
            if block is None:
                break
            target = len(spans) * self.block
            spans.append(Span(block.handle, 0, target, self.block, block.generation))
        return tuple(spans)

    def commit(self, prompt: Prompt, plan: Plan) -> Commit:
        """Add the blocks that are not resident yet; drop what no longer fits."""
        return self._store(self._chain(prompt), plan)

    def kept(self, length: int) -> int:
        return min(length // self.block, self._limit) * self.block

    def _chain(self, prompt: Prompt) -> tuple[bytes, ...]:
        """Digests of the blocks that a commit of ``prompt`` keeps."""
        head = prompt.tokens[: self._limit * self.block]
        return tuple(chained_digests(head, self.block))

    def _store(self, chain: tuple[bytes, ...], plan: Plan) -> Commit:
        replaced, put = self._add(chain, plan)
        for digest in reversed(chain):
            self._pool.move_to_end(digest)
        # The chain is now the most recent and fits, so none of it can go.
        gone = [self._evict() for _ in range(len(self._pool) - self._limit)]
        return Commit((*replaced, *gone), tuple(put), len(gone) * self.block)

    def _add(
        self, chain: tuple[bytes, ...], plan: Plan
    ) -> tuple[list[Handle], list[Put]]:
        """Make ``chain`` resident, head first; what it replaces and what is new."""
        approximate = plan.generation
        # An answer goes on as exactly as its prompt.
        exact = plan.exact_length // self.block if approximate else len(chain)
        replaced, put = [], []
        parent = None
        for i, digest in enumerate(chain):
            generation = 0 if i < exact else approximate
            block = self._pool.get(digest)
            if block is None or block.generation > generation:
                handle = next(self._handles)
                put.append(Put(handle, i * self.block, (i + 1) * self.block))
                if block is None:
                    self._pool[digest] = _Block(handle, parent, generation)
                    if parent is not None:
                        self._pool[parent].references += 1
                else:
                    replaced.append(block.handle)
                    block.handle, block.generation = handle, generation
            parent = digest
        return replaced, put

    def _evict(self) -> Handle:
        """Forget the least recent block."""
        _, block = self._pool.popitem(last=False)
        if block.parent is not None:
            self._pool[block.parent].references -= 1
        return block.handle

    @property
    def stored_tokens(self) -> int:
        return len(self._pool) * self.block

    def check_integrity(self) -> None:
        """Recount references; parents are later in line and as exact; capacity."""
        if self.stored_bytes > self.capacity:
            raise IntegrityError(
                f"{self.name}: {self.stored_bytes} bytes in {self.capacity}"
            )
        age = {digest: i for i, digest in enumerate(self._pool)}
        references = Counter(block.parent for block in self._pool.values())
        for digest, block in self._pool.items():
            if references[digest] != block.references:
                raise IntegrityError(
                    f"{self.name}: block {block.handle} counts {block.references} "
                    f"references and has {references[digest]}"
                )
            if block.parent is not None and age.get(block.parent, -1) < age[digest]:
                raise IntegrityError(
                    f"{self.name}: block {block.handle} outlives or outranks its parent"
                )
            if block.parent and self._pool[block.parent].generation > block.generation:
                raise IntegrityError(
                    f"{self.name}: block {block.handle} is closer to exact than its "
                    "parent"
                )
        handles = {block.handle for block in self._pool.values()}
        if len(handles) != len(self._pool):
            raise IntegrityError(f"{self.name}: a handle names two blocks")
