"""Upper bounds on reuse where a prompt can be resumed at checkpoints only.

Models with recurrent state or windows cannot be cut at any token. They resume a prompt
at position ``p`` if the keys and values of its first ``p`` tokens are held, and a
checkpoint of exactly these tokens. A request that resumes at ``p`` computes, and can
capture, the positions behind ``p``. Both are held in one memory.

Checkpoints at every token, free and without limit, make such a model one that can be
cut anywhere: :mod:`mlxlab.replay.bounds` has its bounds, ``unlimited`` and ``optimal``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlxlab.replay.accesses import Accesses, Numbers, Steps

__all__ = ["BestPlacement"]

Reals: TypeAlias = NDArray[np.float64]

_NOISE = 1e-6  # ids; of sums of floating-point numbers


class BestPlacement:
    """No placement of checkpoints reuses more, whatever it knows of the future.

    The bound is a linear program over the nodes of the tree of all sequences. Its
    variables are shares. For each node of a prompt that an earlier request passed:
    the share of its tokens that is reused, so held since. For each node and each two
    requests in a row that pass it: the share of a checkpoint at the node's end that is
    held between them. The rows say that

    - a node's tokens are reused only behind reused tokens;
    - the share that ends at a node needs that share of its checkpoint;
    - a request captures at most the share that it does not resume there or behind;
    - after each request, all shares that are held fit into the memory.

    Why every placement is a solution with at least its tokens: what is held between
    two requests that pass a node matters only at the second, so it is constant. All
    requests that pass a node pass all of it. So a resume within a node, behind a share
    ``f`` of its tokens, is ``1 - f`` of a resume in front of it and ``f`` of one at
    its end: the same tokens, keys and values. A checkpoint there counts as ``1 - f``
    and ``f`` of those at both ends. Of several in a node, the first counts in front
    and the last at the end: fewer bytes than theirs. Where several nodes count one
    checkpoint, the largest share holds. No captured share exceeds the third row,
    because checkpoints behind a resumed one leave its share in front as it was.

    The relaxation: shares lie between 0 and 1, where a store holds a checkpoint or
    none. No position counts that does not fit into the memory with its checkpoint.

    The value is that of the dual program. By weak duality it is an upper bound however
    closely the solver came to the optimum.

    Args:
        accesses: of all requests.
        token_bytes: kept for one token; positive.
        checkpoint_bytes: one checkpoint; positive.
    """

    def __init__(
        self, accesses: Accesses, token_bytes: int, checkpoint_bytes: int
    ) -> None:
        self._accesses = accesses
        self._id_bytes = token_bytes * accesses.unit
        self._checkpoint = checkpoint_bytes / self._id_bytes
        self._steps = Steps.of(accesses)

    def reused(self, capacity: int) -> list[int]:
        """Return the tokens that each request reuses in the best solution.

        Only their sum is a bound. They are rounded such that the sum is rounded down.

        Args:
            capacity: for keys, values and checkpoints, in bytes.
        """
        lengths = self._accesses.lengths
        everything = sum(lengths) + len(lengths) * self._checkpoint
        memory = min(capacity / self._id_bytes, everything)
        steps = self._steps.within(int(memory - self._checkpoint))
        if not steps.usable.any():
            return [0] * len(self._accesses.requests)
        shares, most = _Program(steps, memory, self._checkpoint).solve()
        ids = np.zeros(len(self._accesses.requests))
        np.add.at(ids, steps.time[steps.usable], shares * steps.length[steps.usable])
        tokens = np.cumsum(ids) + (most - ids.sum()) + _NOISE
        whole = np.floor(tokens * self._accesses.unit).astype(np.int64)
        reused: list[int] = np.diff(whole, prepend=0).tolist()
        return reused


@dataclass(slots=True)
class _Program:
    """The program of :class:`BestPlacement`; see there.

    Its columns are the shares that are reused, one for each usable step, the shares of
    checkpoints, one for each step after which they are of use, and the memory that is
    in use after each request.

    Attributes:
        memory: capacity, in ids.
        checkpoint: size of one, in ids.
    """

    steps: Steps
    memory: float
    checkpoint: float
    usable: Numbers = field(init=False)
    held: Numbers = field(init=False)
    _reuse: Numbers = field(init=False)  # the columns of a step, -1 for none
    _hold: Numbers = field(init=False)
    _use: Numbers = field(init=False)
    _limits: list[Reals] = field(init=False, default_factory=list)
    _entries: list[Reals] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        steps = self.steps
        self.usable = np.flatnonzero(steps.usable)
        self.held = np.flatnonzero(steps.held)
        self._reuse, self._hold = np.full((2, len(steps.time)), -1)
        self._reuse[self.usable] = np.arange(len(self.usable))
        self._hold[self.held] = len(self.usable) + np.arange(len(self.held))
        shares = len(self.usable) + len(self.held)
        self._use = shares + np.arange(steps.time.max(initial=-1) + 1)
        self._fit()
        self._resume()
        self._capture()

    def solve(self) -> tuple[Reals, float]:
        """Return the share of each usable step, and the bound on the reused ids.

        Any prices of the rows give a bound: what the limits cost at these prices, and
        what each column gains beyond them.
        """
        from scipy.optimize import linprog
        from scipy.sparse import coo_array

        most = np.ones(len(self.usable) + len(self.held) + len(self._use))
        most[self._use] = self.memory
        gains = np.zeros(len(most))
        gains[: len(self.usable)] = self.steps.length[self.usable]
        limits = np.concatenate(self._limits)
        row, column, factor = np.concatenate(self._entries, axis=1)
        places = row.astype(np.int64), column.astype(np.int64)
        shape = len(limits), len(most)
        sums = coo_array((factor, places), shape=shape).tocsr()
        found = linprog(-gains, sums, limits, bounds=np.stack([0 * most, most], axis=1))
        if not found.success:
            # Reusing nothing is a solution, so this is a failure of the solver.
            raise RuntimeError(f"bound of placements: {found.message}")
        prices = np.maximum(-found.ineqlin.marginals, 0)
        beyond = np.maximum(gains - sums.T @ prices, 0)
        bound = float(limits @ prices + most @ beyond)
        return found.x[: len(self.usable)], bound

    def _fit(self) -> None:
        """After each request, what is held is at most the memory in use."""
        time, last = self.steps.time, self.steps.before[self.usable]
        row = self._add_rows(len(self._use))
        self._put(row, self._use, -1)
        self._put(row[1:], self._use[:-1], 1)
        tokens = self.steps.length[self.usable]
        self._put(row[time[last]], self._reuse[self.usable], tokens)
        self._put(row[time[self.usable]], self._reuse[self.usable], -tokens)
        following, size = self.steps.after[self.held], self.checkpoint
        self._put(row[time[self.held]], self._hold[self.held], size)
        self._put(row[time[following]], self._hold[self.held], -size)

    def _resume(self) -> None:
        """Tokens are reused behind reused ones, and up to a checkpoint."""
        front = np.flatnonzero(self.steps.followed)
        row = self._add_rows(len(front))
        self._put(row, self._reuse[front + 1], 1)
        self._put(row, self._reuse[front], -1)
        row = self._add_rows(len(self.usable))
        self._put(row, self._reuse[self.usable], 1)
        self._put(row[self._reuse[front]], self._reuse[front + 1], -1)
        self._put(row, self._hold[self.steps.before[self.usable]], -1)

    def _capture(self) -> None:
        """What is held was held before, unless the request computes the node's end."""
        kept = np.flatnonzero(self.steps.usable & self.steps.held)
        row = self._add_rows(len(kept), limit=1)
        self._put(row, self._hold[kept], 1)
        self._put(row, self._hold[self.steps.before[kept]], -1)
        self._put(row, self._reuse[kept], 1)

    def _add_rows(self, count: int, limit: float = 0) -> Numbers:
        """Add rows, each a sum of columns that is at most ``limit``."""
        first = sum(map(len, self._limits))
        self._limits.append(np.full(count, float(limit)))
        return first + np.arange(count)

    def _put(self, rows: Numbers, columns: Numbers, factors: ArrayLike) -> None:
        entries = np.broadcast_arrays(rows, columns, factors)
        self._entries.append(np.stack(entries).astype(np.float64))
