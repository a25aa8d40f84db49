"""The contract of a cache strategy: what to restore, store and evict.

A strategy sees tokens and segments and answers with handles and spans. It holds no
keys and values, so one object serves simulation, live replay and the server, and
reuses the same tokens in all three.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import Signature, getattr_static
from typing import Any, ClassVar

import numpy as np

from mlxlab.errors import IntegrityError, StrategyError, did_you_mean
from mlxlab.models.kv_bits import FULL, GROUP, KVBits, read_group, read_kv
from mlxlab.models.layout import Windows
from mlxlab.prompt import Prompt, Tokens
from mlxlab.sizes import format_size
from mlxlab.strategies.declaration import check_body, document, read_body, reserved
from mlxlab.strategies.disk import Disk
from mlxlab.strategies.eviction import DEFAULT as LRU
from mlxlab.strategies.eviction import Eviction, make_eviction, read_eviction
from mlxlab.strategies.parameters import (
    Kind,
    Limit,
    Parameter,
    ParameterValue,
    parameter,
)
from mlxlab.strategies.pins import Pins
from mlxlab.strategies.placements import DEFAULT, read_placement
from mlxlab.strategies.plan import Commit, Plan
from mlxlab.strategies.resumption import ID_BYTES, Resumption
from mlxlab.strategies.use import UNKNOWN, Use

__all__ = ["CAPACITY", "EVICT", "Example", "Strategy"]

log = logging.getLogger(__name__)

#: Bytes of keys and values that a strategy may hold by default.
CAPACITY = 4 << 30

_TOKEN_BYTES: Parameter = parameter(
    1, "Bytes kept for one token, all layers.", kind=Kind.BYTES
)
_CHECKPOINT_BYTES: Parameter = parameter(
    0,
    "Bytes of a checkpoint; 0 for a model that can be cut at any token.",
    kind=Kind.BYTES,
    least=0,
)
_COMPUTED_BYTES: Parameter = parameter(
    0, "Bytes computed for one token, all layers.", kind=Kind.BYTES, least=0
)
_SIZES = {"token_bytes": _TOKEN_BYTES, "checkpoint_bytes": _CHECKPOINT_BYTES}
_UNIT: Parameter = parameter(1, "Tokens that one id of a prompt stands for.")

#: What ``tune`` tries besides the default, from few checkpoints to many.
_PLACES = (
    "prompt+answer",
    "system+tools+environment+prompt+answer",
    "system+tools+environment+branches+prompt+answer",
    "system+tools+environment+users+branches+prompt+answer",
    "system+tools+environment+messages+branches+prompt+answer",
    "every2048+prompt+answer",
)

#: The parameter of strategies that let a policy choose what to evict.
EVICT: Any = parameter(
    LRU,
    "Which policy chooses what to evict.",
    tries=(LRU, "residual"),  # the others are there to be compared with
    read=read_eviction,
)

_BUDGET: Parameter = parameter(CAPACITY, "Most bytes to hold.", Limit.CAPACITY)


@dataclass(frozen=True, slots=True)
class Example:
    """A small instance of a strategy, for the contract test.

    Attributes:
        parameters: small enough that sequences of 60 tokens, 2 bytes each, evict.
        handles: most handles that its store may hold at once; None for any number.
        slots: slots that it has; 0 for a strategy without slots.
    """

    parameters: Mapping[str, ParameterValue] = field(default_factory=dict)
    handles: int | None = None
    slots: int = 0


class Strategy(ABC):
    """A cache policy.

    Subclasses set ``name`` and ``summary``, declare their parameters, and implement
    ``_match``, ``_store``, ``stored_tokens`` and ``_check_stored``::

        @register
        class HeadOnly(Strategy):
            name = "head-only"
            summary = "the first tokens of the last prompt"
            head: int = parameter(8192, "Tokens to keep.", kind=Kind.TOKENS)

            def __init__(self, **parameters: ParameterValue) -> None:
                super().__init__(**parameters)  # sets self.head
                self.tokens = None

    Every name that this class defines is reserved, except ``capacity``. A subclass
    overrides methods with methods, properties with properties or plain values.

    Subclasses decide about tokens as if every model could be cut at any of them. Where
    the model keeps state or windows too, this class ends each plan at a checkpoint,
    says where new ones are taken, and counts their bytes in the capacity. A subclass
    that does not declare ``checkpoints`` does this itself.

    Attributes:
        name: how specs name it: lower-case words joined by hyphens.
        summary: one line for lists.
        literature: its name in papers and in other servers.
        exact: whether all plans are exact: nothing is moved.
        rank: place in lists, tables and colours, the lowest first.
        example: the small instance that the contract test runs.
        declared: the parameters by name; read from the class body.
        limits: names of the parameters that other code asks for, by limit.
        capacity: most bytes of keys and values to hold. A strategy that has no such
            limit does not declare it; reports show the given value all the same.
        token_bytes: bytes kept for one token, all layers.
        computed_bytes: bytes of one token in the caches that compute it.
        checkpoint_bytes: bytes of a checkpoint; 0 for a model that can be cut anywhere.
        windows: how the store keeps window layers.
        checkpoints: where checkpoints are kept.
        share: most of the capacity that checkpoints take, as a percentage.
        disk: most bytes on disk; 0 for none.
        kv: bits of keys and values at rest.
        kv_group: numbers that share a scale there.
        tier: what the disk holds; None without a disk.
        eviction: chooses what to evict, in strategies that declare ``evict``.

    Raises:
        StrategyError: an unknown parameter, a value out of range, or one that means
            nothing for this model.
    """

    name: ClassVar[str]
    summary: ClassVar[str] = ""
    literature: ClassVar[str] = ""
    exact: ClassVar[bool] = True
    rank: ClassVar[int] = 1000
    example: ClassVar[Example] = Example()
    declared: ClassVar[Mapping[str, Parameter]] = {}
    limits: ClassVar[Mapping[Limit, str]] = {}
    __signature__: ClassVar[Signature]

    capacity: int = CAPACITY
    token_bytes: int
    computed_bytes: int
    checkpoint_bytes: int

    windows: str = parameter(
        Windows.CHECKPOINTS.value,
        "How window layers are kept: whole at checkpoints, or token by token.",
        tries=map(str, Windows),
        words=Windows,
    )
    checkpoints: str = parameter(
        DEFAULT,
        "Where checkpoints are kept, if the model cannot be cut at any token.",
        tries=(DEFAULT, *_PLACES),
        read=read_placement,
    )
    share: int = parameter(
        33,
        "Most of the capacity that checkpoints take, as a percentage.",
        kind=Kind.PERCENT,
        tries=(10, 25, 33, 50, 75, 90),
    )
    disk: int = parameter(
        0, "Most bytes on disk, behind memory; 0 for none.", kind=Kind.BYTES, least=0
    )
    kv: str = parameter(
        str(FULL),
        "Bits of keys and values in the store, or apart as in k8v4; fewer than 16 "
        "make answers approximate.",
        read=read_kv,
    )
    kv_group: str = parameter(
        str(GROUP), "Numbers that share a scale in fewer bits.", read=read_group
    )
    tier: Disk | None
    eviction: Eviction

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        check_body(cls, Strategy)
        cls.declared = read_body(cls, Strategy)
        cls.limits = {p.limit: key for key, p in cls.declared.items() if p.limit}
        document(cls, {**cls.declared, **_SIZES})

    def __init__(self, **parameters: ParameterValue) -> None:
        given = dict(parameters)

        def take(key: str, declared: Parameter) -> int:
            value = given.pop(key, declared.default)
            return int(declared.check(self.name, key, value))

        self.checkpoint_bytes = take("checkpoint_bytes", _CHECKPOINT_BYTES)
        # A model of recurrent state alone keeps nothing for a token.
        least = 0 if self.checkpoint_bytes else 1
        self.token_bytes = take("token_bytes", replace(_TOKEN_BYTES, least=least))
        self.computed_bytes = (
            take("computed_bytes", _COMPUTED_BYTES) or self.token_bytes
        )
        unit = take("unit", _UNIT)
        if "capacity" in given and "capacity" not in self.declared:
            self.capacity = take("capacity", _BUDGET)
        defaults = {key: p.default for key, p in self.declared.items()}
        for key, value in self.check_parameters({**defaults, **given}).items():
            setattr(self, key, value)
        self.eviction = make_eviction(getattr(self, "evict", LRU))
        Resumption.check(self, given)
        self._resumption: Resumption | None = None
        if self.checkpoint_bytes:
            if (block := self.limits.get(Limit.BLOCK)) is not None:
                setattr(self, block, 1)  # a plan ends at a checkpoint, not at a block
            if "checkpoints" in self.declared:
                self._resumption = Resumption(self, unit)
        self.tier = self._make_tier(unit)
        self._pins = Pins(self.capacity // 2 // (self.token_bytes or ID_BYTES))

    def _make_tier(self, unit: int) -> Disk | None:
        if not self.disk:
            return None
        if not self.is_exact:
            instead = "leave kv out" if self.exact else "choose an exact strategy"
            raise StrategyError(
                f"{self.name}: disk={format_size(self.disk)}: only exact keys and "
                f"values go to disk; {instead}"
            )
        return Disk(self.disk, self.token_bytes, self.checkpoint_bytes, unit=unit)

    @property
    def bits(self) -> KVBits:
        """Bits of keys and values at rest."""
        return KVBits.parse(self.kv, self.kv_group)

    @property
    def is_exact(self) -> bool:
        """Whether answers are those of a full prefill."""
        return self.exact and self.bits.is_full

    @classmethod
    def check_parameters(
        cls, given: Mapping[str, ParameterValue]
    ) -> dict[str, ParameterValue]:
        """Return parameters in the order of their declaration.

        Raises:
            StrategyError: an unknown parameter, or a value out of range.
        """
        for key in given:
            if key not in cls.declared:
                accepted = ", ".join(cls.declared) or "no parameters"
                near = did_you_mean(key, cls.declared)
                raise StrategyError(
                    f"{cls.name}: no parameter {key!r}; accepted: {accepted}{near}"
                )
        return {
            key: declared.check(cls.name, key, given[key])
            for key, declared in cls.declared.items()
            if key in given
        }

    def plan(self, prompt: Prompt) -> Plan:
        """Return what to restore for ``prompt``. Changes nothing; logs a HIT or MISS.

        Other plans and commits may come before this prompt's own commit.

        Raises:
            StrategyError: the prompt is empty.
        """
        plan = self.preview(prompt)
        _log_outcome(plan, self.occupancy)
        return plan

    def preview(self, prompt: Prompt) -> Plan:
        """Return the plan of a prompt that has to wait; logs nothing.

        Raises:
            StrategyError: the prompt is empty.
        """
        if len(prompt) == 0:
            raise StrategyError(f"{self.name}: an empty prompt has no plan")
        plan = self._match(prompt)
        if self._resumption is not None:
            plan = self._resumption.plan(prompt, plan)
        return plan if self.tier is None else self.tier.extend(prompt, plan)

    def commit(self, prompt: Prompt, plan: Plan, use: Use = UNKNOWN) -> Commit:
        """Store a sequence whose keys and values have all been computed.

        Args:
            prompt: the planned prompt, usually extended by the answer. The last
                sampled token is absent: it was never fed to the model.
            plan: the plan that :meth:`plan` returned for it.
            use: the request, for the eviction policy.
        """
        self.eviction.begin(use)
        if len(prompt) == 0:
            return self._store(prompt, plan)
        own = plan.in_memory
        if self._resumption is None:
            commit = self._store(prompt, own)
        else:
            commit = self._resumption.commit(prompt, own)
        if self.tier is not None:
            commit = replace(commit, disk=self.tier.store(prompt.tokens, plan))
        if prompt.pinned:
            self._pins.add(prompt.tokens)
        self._touch_pins()
        return commit

    def recall(self, learned: Mapping[str, Sequence[float]]) -> None:
        """Let all policies of eviction take what one of them learned elsewhere."""
        self.eviction.recall(learned)
        if self._resumption and (policy := self._resumption.checkpoints.eviction):
            policy.recall(learned)

    @abstractmethod
    def _match(self, prompt: Prompt) -> Plan:
        """Return the plan for a prompt of at least one token."""

    @abstractmethod
    def _store(self, prompt: Prompt, plan: Plan) -> Commit:
        """Store a sequence; see :meth:`commit`. Its end can be resumed at."""

    def _touch_pins(self) -> None:
        for tokens in self._pins:
            self._touch(tokens)
            if self.tier is not None:
                self.tier.touch(tokens)
        if self._resumption is not None:
            self._resumption.checkpoints.pin(self._pins)

    def _touch(self, tokens: Tokens) -> None:  # noqa: B027  most need not override it
        """Make what is stored of these tokens the most recent.

        Nothing is to be done where nothing goes by its age.
        """

    def _count_stored(self, tokens: Tokens) -> int:
        """Count the leading tokens that are stored, resumable or not."""
        # A match always leaves the last token open.
        return self._match(Prompt(np.append(tokens, np.int32(-1)))).prefix_length

    def restorable_after(self, length: int) -> int:
        """Leading tokens that can be restored right after a commit of ``length``.

        For a model that is resumed at checkpoints, see :meth:`count_kept`.
        """
        return length

    def count_kept(self, plan: Plan) -> int:
        """Count the leading tokens of a planned prompt that its computation leaves.

        They can be restored right after its commit, even without an answer. What only
        the disk will hold does not count.
        """
        if self._resumption is None:
            kept = self.restorable_after(plan.length)
        else:
            kept = self._resumption.count_kept(plan.in_memory)
        return max(kept, plan.reused if plan.disk_tokens else 0)

    def count_shared(self, plan: Plan, length: int) -> int:
        """Count the leading tokens of a planned prompt that another can reuse.

        So many could be committed at once, when they have been computed.

        Args:
            plan: of the one that computes them.
            length: leading tokens that both have in common.
        """
        stored = self.restorable_after(min(length, plan.length))
        if not self.checkpoint_bytes:
            return stored
        return max((place for place in plan.captures if place <= stored), default=0)

    @property
    def occupancy(self) -> tuple[int, int] | None:
        """Slots in use and slots in all; None if it holds no fixed number of them."""
        return None

    @property
    def max_sequences(self) -> int | None:
        """Sequences that surely stay side by side, whatever they have in common.

        0 if none is stored, 1 if each may replace the last, None if capacity alone
        limits them.
        """
        return None

    @property
    def capacity_tokens(self) -> int:
        """Whole tokens that the capacity holds beside the checkpoints."""
        room = self.capacity - self.stored_checkpoints * self.checkpoint_bytes
        return max(room, 0) // (self.token_bytes or ID_BYTES)

    @property
    @abstractmethod
    def stored_tokens(self) -> int:
        """Token positions held by the store, shared ones counted once."""

    @property
    def stored_bytes(self) -> int:
        """Bytes held by the store."""
        tokens = self.stored_tokens * self.token_bytes
        return tokens + self.stored_checkpoints * self.checkpoint_bytes

    @property
    def pinned_tokens(self) -> int:
        """Stored tokens of pinned prompts; those that several share count for each."""
        return sum(self._count_stored(tokens) for tokens in self._pins)

    @property
    def stored_checkpoints(self) -> int:
        """Checkpoints held by the store."""
        return len(self._resumption.checkpoints) if self._resumption else 0

    @property
    def parameters(self) -> Mapping[str, ParameterValue]:
        """The declared parameters with their values, for a manifest.

        Those of checkpoints are left out for a model that needs none.
        """
        unused = set() if self.checkpoint_bytes else {"checkpoints", "share"}
        if not self.checkpoint_bytes and self.windows == Windows.CHECKPOINTS:
            unused.add("windows")  # there are none
        if not self.disk:
            unused.add("disk")
        if self.bits.is_full:
            unused |= {"kv", "kv_group"}
        if getattr(self, "evict", LRU) == LRU:
            unused.add("evict")  # as in results from before there was another one
        return {key: getattr(self, key) for key in self.declared if key not in unused}

    def check_integrity(self) -> None:
        """Recount everything from scratch.

        Raises:
            IntegrityError: counts disagree, or the capacity is exceeded.
        """
        if self.stored_bytes > self.capacity:
            raise IntegrityError(
                f"{self.name}: {self.stored_bytes} bytes in {self.capacity}"
            )
        if self._resumption is not None:
            self._resumption.checkpoints.check(self._count_stored)
        if self.tier is not None:
            self.tier.check()
        self._check_stored()

    @abstractmethod
    def _check_stored(self) -> None:
        """Recount the stored tokens.

        Raises:
            IntegrityError: counts disagree.
        """

    def __setattr__(self, key: str, value: object) -> None:
        part = vars(Strategy).get(key)
        if part is not None and key != "capacity" and not isinstance(part, Parameter):
            own = getattr_static(type(self), key)
            # A subclass may hold a plain value in place of a property.
            if not isinstance(part, property) or isinstance(own, property):
                raise StrategyError(reserved(type(self), f"self.{key}"))
        super().__setattr__(key, value)

    def __repr__(self) -> str:
        parameters = ", ".join(f"{k}={v}" for k, v in self.parameters.items())
        return f"{type(self).__name__}({parameters})"


def _log_outcome(plan: Plan, occupancy: tuple[int, int] | None) -> None:
    reused, length = plan.reused, plan.length
    if reused:
        share = 100 * reused / length
        log.info(
            "Cache HIT: reusing %d/%d tokens (%.1f%% cached)", reused, length, share
        )
        return
    slots = f", {occupancy[0]} of {occupancy[1]} slots in use" if occupancy else ""
    log.info(
        "Cache MISS: computing %d tokens (best match was %d tokens%s)",
        *(length, plan.best_match, slots),
    )
