"""What strategies have in common that move keys and values to other positions.

Knows earlier sequences, limits and generations; leaves to subclasses what of them is
found again in a prompt.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from mlxlab.errors import IntegrityError, StrategyError
from mlxlab.prompt import Prompt, Role, Tokens
from mlxlab.strategies.base import (
    CAPACITY,
    Commit,
    Parameter,
    Plan,
    Selection,
    Span,
    require,
)
from mlxlab.strategies.paged import Paged
from mlxlab.strategies.sequences.hashing import DIGEST_BYTES
from mlxlab.strategies.sequences.matches import Donor, Run

__all__ = ["Moving", "Naive"]

GOVERNING = frozenset({Role.SYSTEM, Role.TOOLS})

#: Recomputes a run's first tokens, which the plan can leave open itself.
FIRST = "first"

ANY_GENERATION = 1 << 62


class Moving(Paged):
    """Paged reuse of the prefix, and behind it runs of earlier sequences, moved.

    The prefix is found and stored exactly as in :class:`Paged`, whose blocks tell how
    far it is exact. What is computed over moved keys is of a higher generation: a
    conversation goes on over it in place, nothing is moved out of it by default, and
    the next exact computation of the same tokens replaces it.

    Donors are the latest sequences that differ by a run or more, as far as their
    blocks are still there and of a generation that may be moved. Spans refer to the
    donor's own blocks, so keys are rotated once; their ``predecessor`` is the digest of
    the donor's tokens in front of them.

    A run has to pass all limits, in this order: ``tail``, ``shift``, ``run``,
    ``rewritten``, ``governing``, ``head``. It is measured before its head is taken
    off. One that ends within a block of the prefix is not worth moving, and may even
    stand in its old place.

    Args:
        block: see :class:`Paged`.
        capacity: see :class:`Paged`; donors cost it nothing, they are ids.
        donors: sequences that runs are looked for in.
        generation: highest generation that is moved.
        rotate: ``yes``, or ``no`` to leave moved keys as they were stored.
        run: least tokens of a run.
        shift: positions that a run may be moved by, either way; 0 for any.
        head: tokens at each run's start that are computed again.
        recompute: percent of the moved tokens that are computed again.
        selection: which: the ``first`` of each run, or as the engine picks them,
            see :class:`Selection`.
        tail: tokens at the prompt's end that nothing approximate is restored for.
        rewritten: a run is left when the tokens computed between the prefix and it
            exceed this percentage of its length; 0 for never. Heads do not count.
        governing: a run is left when more than this many of those tokens are system
            text or tools, which change what everything behind them means; 0 for
            never. Segments of unknown role do not count.
        token_bytes: see :class:`Strategy`.

    The defaults are starting guesses from published measurements.
    """

    exact = False

    def __init__(
        self,
        *,
        block: int = 64,
        capacity: int = CAPACITY,
        donors: int = 8,
        generation: int = 0,
        rotate: str = "yes",
        run: int = 256,
        shift: int = 2048,
        head: int = 32,
        recompute: int = 0,
        selection: str = Selection.ATTENTION.value,
        tail: int = 64,
        rewritten: int = 25,
        governing: int = 1024,
        token_bytes: int = 1,
    ) -> None:
        super().__init__(block=block, capacity=capacity, token_bytes=token_bytes)
        require(self.name, donors=donors, run=run, tail=tail)
        self._require_none_or_more(
            generation=generation,
            shift=shift,
            head=head,
            recompute=recompute,
            rewritten=rewritten,
            governing=governing,
        )
        self._require_word("rotate", rotate, ("yes", "no"))
        self._require_word("selection", selection, (FIRST, *Selection))
        if recompute > 100:
            raise StrategyError(
                f"{self.name}: recompute={recompute} is not accepted; give a "
                "percentage up to 100"
            )
        self.donors = donors
        self.generation = generation
        self.rotate = rotate
        self.run = run
        self.shift = shift
        self.head = head
        self.recompute = recompute
        self.selection = str(selection)
        self.tail = tail
        self.rewritten = rewritten
        self.governing = governing
        self._donors: list[Donor] = []  # least recently used first

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return {
            **super().parameters,
            "donors": self.donors,
            "generation": self.generation,
            "rotate": self.rotate,
            "run": self.run,
            "shift": self.shift,
            "head": self.head,
            "recompute": self.recompute,
            "selection": self.selection,
            "tail": self.tail,
            "rewritten": self.rewritten,
            "governing": self.governing,
        }

    @abstractmethod
    def _find(self, prompt: Prompt, start: int) -> Iterable[list[Run]]:
        """Alternatives of what of ``prompt`` stands in donors too.

        Args:
            prompt: what is planned.
            start: tokens that are restored in their old places.

        Returns:
            Runs in order of target, without overlap, behind ``start``. Of alternatives
            that are worth the same the first is taken.
        """

    def _match(self, prompt: Prompt) -> Plan:
        prefix = tuple(self._prefix(prompt))
        start = sum(span.length for span in prefix)
        found = [
            [run.before(len(prompt) - 1) for run in runs]
            for runs in self._find(prompt, start)
        ]
        limited = [self._limited(prompt, start, runs) for runs in found]
        runs = max(limited, key=_tokens, default=[])
        plan = Plan(
            len(prompt),
            (*prefix, *(span for run in runs for span in self._spans(run))),
            best_match=start + max(map(_tokens, found), default=0),
            rotate=self.rotate == "yes",
        )
        if self.selection == FIRST:
            return plan
        share, selection = self._share(plan.moved), Selection(self.selection)
        return replace(plan, recompute=share, selection=selection)

    def _prefix(self, prompt: Prompt) -> Iterator[Span]:
        """What is resident from the start on; nothing approximate in the tail."""
        fresh = (len(prompt) - self.tail) // self.block * self.block
        for span in self._walk(prompt.tokens[:-1]):
            if span.exact:
                yield span
            elif span.target < fresh:
                yield span.head(fresh - span.target)

    def _limited(self, prompt: Prompt, start: int, found: list[Run]) -> list[Run]:
        """What is moved of the runs found, heads off."""
        governs = _governing(prompt)
        computed = np.ones(len(prompt), np.bool_)
        kept: list[Run] = []
        for run in found:
            run = run.before(len(prompt) - self.tail)
            between = slice(start, run.target)
            new = int(np.count_nonzero(computed[between]))
            governing = int(np.count_nonzero(computed[between] & governs[between]))
            if run.stop > start + self.block and self._passes(run, new, governing):
                computed[run.target : run.stop] = False
                kept.append(run.cut(front=self._head(run)))
        return kept

    def _passes(self, run: Run, new: int, governing: int) -> bool:
        """Whether ``run``, behind so many ``new`` tokens, is within the limits."""
        return (
            (not self.shift or abs(run.shift) <= self.shift)
            and run.length >= self.run
            and (not self.rewritten or 100 * new <= self.rewritten * run.length)
            and (not self.governing or governing <= self.governing)
            and run.length > self._head(run)
        )

    def _head(self, run: Run) -> int:
        """Tokens to compute at the start of ``run``."""
        if self.selection != FIRST:
            return self.head
        return self.head + self._share(max(run.length - self.head, 0))

    def _share(self, moved: int) -> int:
        """Tokens to compute again of so many, rounded up."""
        return -(-moved * self.recompute // 100)

    def _spans(self, run: Run) -> Iterator[Span]:
        stop, tokens = run.origin + run.length, run.donor.tokens
        for span in self._walk(tokens[: run.donor.stored]):
            origin = max(span.target, run.origin)
            length = min(span.target + span.length, stop) - origin
            if length > 0:
                yield replace(
                    span,
                    source=span.source + origin - span.target,
                    target=origin + run.shift,
                    length=length,
                    origin=origin,
                    predecessor=_digest(tokens[:origin]),
                )

    def commit(self, prompt: Prompt, plan: Plan) -> Commit:
        """As :class:`Paged`; the sequence is a donor from now on."""
        moved = [span for span in plan.spans if span.moved]
        if moved:
            self._donors.sort(key=lambda donor: self._gave(donor, moved))
        commit = super().commit(prompt, plan)
        self._remember(prompt)
        return commit

    def _gave(self, donor: Donor, moved: Iterable[Span]) -> bool:
        return any(
            span.handle == own.handle and 0 <= span.source - own.source < own.length
            for own in self._walk(donor.tokens[: donor.stored])
            for span in moved
        )

    def _remember(self, prompt: Prompt) -> None:
        """Add a donor, cut those whose blocks went, drop those like another."""
        movable = self._movable(prompt.tokens)
        new = Donor(prompt.head(movable + self.block), movable, self.block)
        donors = [
            donor.head(self._movable(donor.tokens[: donor.stored]))
            for donor in self._donors
        ]
        donors.append(new)
        donors.sort(key=lambda donor: new.within(donor, self.run))  # so they were used
        self._donors = self._distinct(donors)[-self.donors :]

    def _movable(self, tokens: Tokens) -> int:
        """Leading tokens that are there and of a generation that may be moved."""
        resident = self._walk(tokens)
        return sum(s.length for s in resident if s.generation <= self.generation)

    def _distinct(self, donors: list[Donor]) -> list[Donor]:
        """Those of which longer or later ones lack a run at least."""
        ranked = [(donor.stored, i, donor) for i, donor in enumerate(donors)]
        return [
            donor
            for length, i, donor in ranked
            if donor.stored
            and not any(
                (longer, later) > (length, i) and donor.within(other, self.run)
                for longer, later, other in ranked
            )
        ]

    def check_integrity(self) -> None:
        """Blocks as in Paged; donors are theirs, may be moved, and are distinct."""
        super().check_integrity()
        distinct = self._distinct(self._donors)
        if len(self._donors) > self.donors or distinct != self._donors:
            raise IntegrityError(
                f"{self.name}: {len(self._donors)} donors, {len(distinct)} of them "
                f"distinct, where {self.donors} may be"
            )
        for donor in self._donors:
            movable = self._movable(donor.tokens[: donor.stored])
            if movable != donor.stored:
                raise IntegrityError(
                    f"{self.name}: of {donor.stored} tokens of a donor {movable} are "
                    f"there and of a generation up to {self.generation}"
                )

    def _require_none_or_more(self, **parameters: int) -> None:
        for key, value in parameters.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise StrategyError(
                    f"{self.name}: {key}={value!r} is not accepted; give a whole "
                    "number >= 0"
                )

    def _require_word(self, key: str, value: str, choices: Iterable[str]) -> None:
        words = [str(choice) for choice in choices]
        if value not in words:
            raise StrategyError(
                f"{self.name}: {key}={value!r} is not accepted; give one of "
                f"{', '.join(words)}"
            )


class Naive(Moving):
    """The simple-minded original: whatever is found is kept as it is.

    Not rotated, nothing computed again, no limits but a block as the least run; what
    was computed over moved keys is moved like everything else.

    Args:
        block: see :class:`Paged`.
        capacity: see :class:`Paged`.
        token_bytes: see :class:`Strategy`.
    """

    def __init__(
        self, *, block: int = 64, capacity: int = CAPACITY, token_bytes: int = 1
    ) -> None:
        super().__init__(
            block=block,
            capacity=capacity,
            generation=ANY_GENERATION,
            rotate="no",
            run=block,
            shift=0,
            head=0,
            tail=1,
            rewritten=0,
            governing=0,
            token_bytes=token_bytes,
        )

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return {"block": self.block, "capacity": self.capacity}


def _tokens(runs: Iterable[Run]) -> int:
    return sum(max(run.length, 0) for run in runs)


def _governing(prompt: Prompt) -> NDArray[np.bool_]:
    """Which tokens are system text or tools."""
    governs = np.zeros(len(prompt), np.bool_)
    for segment in prompt.segments:
        if segment.role in GOVERNING:
            governs[segment.start : segment.stop] = True
    return governs


def _digest(tokens: Tokens) -> bytes:
    return blake2b(tokens.tobytes(), digest_size=DIGEST_BYTES).digest()
