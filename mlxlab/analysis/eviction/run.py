"""``evictions``: what each eviction policy reuses of traces, beside what could be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from mlxlab.analysis.eviction.result import Evictions
from mlxlab.errors import ConfigError, StrategyError
from mlxlab.models.folder import BUNDLED, ModelFolder, find_model
from mlxlab.models.geometry import LayoutLike, read_layout
from mlxlab.models.layout import CacheLayout
from mlxlab.rendering.renderer import Renderer
from mlxlab.replay.bounds import STORING, UNLIMITED, OptimalMemory
from mlxlab.replay.distances import ReuseDistances
from mlxlab.replay.manifest import describe_run
from mlxlab.replay.simulator import Simulator
from mlxlab.replay.specs import StrategySpec
from mlxlab.replay.uses import describe_missing
from mlxlab.replay.workload import Workload, open_sources
from mlxlab.sizes import Size, read_size
from mlxlab.strategies import STRATEGIES
from mlxlab.strategies.eviction import DEFAULT, EVICTIONS
from mlxlab.strategies.paged import Paged
from mlxlab.traces.open import Traces, open_traces

__all__ = ["evictions"]

#: Parameters that are varied here, or that keep what was evicted.
_VARIED = ("evict", "capacity", "disk")

#: Sizes that are tried where none are given, each twice the one before.
_SIZES = 5
#: Share of the prompts that the largest of them may lose.
_LOST = 0.002
#: Points of the curve for each doubling of memory.
_POINTS = 8


def evictions(
    traces: Traces,
    strategy: str = "paged",
    *,
    memory: Sequence[Size] | Size | None = None,
    policies: Sequence[str] | str | None = None,
    users: int = 1,
    model: str | ModelFolder = BUNDLED,
    layout: LayoutLike | None = None,
    rules: str = "all",
    progress: bool = True,
) -> Evictions:
    """Judge eviction policies on traces, and say whether one pays.

    Each policy is simulated at each size, and compared with two clairvoyant ones:
    Belady's MIN, which may refuse to store the newest sequence, and the same where
    every sequence is stored in full, as ``lru`` does.

    Args:
        traces: names, paths or opened traces; either recorded or hashed ones.
        strategy: ``name[:key=value,...][@rules]``, one that has ``evict``.
        memory: sizes that the cache holds, such as ``4GiB``. None for five, of which
            the largest holds nearly all that ``lru`` would find in any memory.
        policies: names, or text with commas between them; None for all. ``lru`` is
            always among them.
        users: how many traces are replayed at the same time into one cache.
        model: name, folder or hub repository.
        layout: what a model keeps for its tokens; None for this model's.
        rules: default rules.
        progress: whether to show a bar, after a second.

    Raises:
        MlxlabError: an unknown name, an unreadable file, or a strategy that lets no
            policy choose.
    """
    if users < 1:
        raise ConfigError(f"users {users}: give a whole number >= 1")
    opened = open_traces(traces)
    folder = find_model(model) if isinstance(model, str) else model
    kept = folder.layout if layout is None else read_layout(layout, "layout")
    spec = _read_spec(strategy, rules)
    named, sizes = _read_policies(policies, spec), _read_sizes(memory)
    for size in sizes:  # refused before any work
        replace(spec, capacity=size).make(kept)
    renderer = Renderer(folder, spec.rules)
    judge = _Judge(
        Workload(open_sources(opened, renderer, progress), users), spec, kept
    )
    sizes = sizes or judge.sizes()
    runs = [(policy, size) for size in sizes for policy in named]
    with tqdm(runs, "simulating", unit="run", delay=1, disable=not progress) as bar:
        rows = [judge.simulate(policy, size) for policy, size in bar]
    manifest = describe_run(opened, folder, [spec], renderer.notes, {}, layout=kept)
    return Evictions(
        requests=pd.DataFrame(rows),
        bounds=judge.bounds(sizes),
        manifest={
            **manifest,
            "users": users,
            "warnings": describe_missing(judge.requests, named),
        },
        curve=judge.curve(sizes),
    )


def _read_spec(text: str, rules: str) -> StrategySpec:
    spec = StrategySpec.parse(text, rules)
    able = [s.name for s in STRATEGIES.values() if s.exact and "evict" in s.declared]
    if not (spec.policy.exact and "evict" in spec.policy.declared):
        raise StrategyError(
            f"{spec.policy.name}: no policy can be judged by what it evicts; give one "
            f"of {', '.join(able)}"
        )
    if given := [key for key in _VARIED if key in spec.parameters]:
        raise StrategyError(
            f"{spec.strategy}: all policies are tried with each size of memory; leave "
            f"{' and '.join(given)} out"
        )
    return spec


def _read_policies(
    policies: Sequence[str] | str | None, spec: StrategySpec
) -> list[str]:
    if isinstance(policies, str):
        policies = [name.strip() for name in policies.split(",")]
    named = dict.fromkeys([DEFAULT, *(EVICTIONS if policies is None else policies)])
    for policy in named:
        spec.policy.check_parameters({"evict": policy})
    return list(named)


def _read_sizes(memory: Sequence[Size] | Size | None) -> list[int]:
    """Return the given sizes, the least first; none for None."""
    if memory is None:
        return []
    given = [memory] if isinstance(memory, int | str) else memory
    return sorted({read_size(size, "memory") for size in given})


class _Judge:
    """Finds what policies reuse of a workload, and what could be reused.

    Args:
        workload: read once.
        spec: the strategy, without policy and capacity.
        layout: what the model keeps.

    Attributes:
        requests: of the workload.
    """

    def __init__(
        self, workload: Workload, spec: StrategySpec, layout: CacheLayout
    ) -> None:
        self.requests = list(workload)
        self._workload = workload
        self._spec = spec
        self._layout = layout
        self._tokens = sum(request.tokens for request in self.requests)
        strategy = spec.make(layout, unit=workload.unit)
        self._block = strategy.block if isinstance(strategy, Paged) else 1
        self._optimal = OptimalMemory(self.requests, self._block)
        self._recency = ReuseDistances.of(self.requests, self._block)
        # Elsewhere a larger cache need not hold all that a smaller one does.
        self._is_stack = (
            spec.policy is Paged
            and not strategy.checkpoint_bytes
            and not any(request.prompt.pinned for request in self.requests)
        )

    def simulate(self, policy: str, size: int) -> dict[str, Any]:
        """Return the row of a policy in memory of this size."""
        given = {**self._spec.parameters, "evict": policy}
        spec = replace(self._spec, parameters=given, capacity=size)
        replayer = Simulator(spec.make(self._layout, unit=self._workload.unit))
        outcomes = [replayer.replay(request) for request in self.requests]
        return {
            "policy": policy,
            "capacity": size,
            "requests": len(self.requests),
            "prompt_tokens": self._tokens,
            "reused_tokens": sum(own.reused_tokens for own in outcomes),
            "evicted": sum(own.evicted for own in outcomes),
            "stored_bytes": max(own.stored_bytes for own in outcomes),
        }

    def bounds(self, sizes: Sequence[int]) -> pd.DataFrame:
        """Return the bounds at these sizes, see :class:`Evictions`."""
        held = self._optimal.stored_tokens * self._layout.token_bytes()
        rows = [("unlimited", held, sum(self._optimal.reused(UNLIMITED)))]
        for name, refuses in (("optimal", True), (STORING, False)):
            for size in sizes:
                reused = self._optimal.reused(self._room(size), refuses=refuses)
                rows.append((name, size, sum(reused)))
        table = pd.DataFrame(rows, columns=["bound", "memory", "reused_tokens"])
        table.insert(2, "prompt_tokens", self._tokens)
        return table.assign(
            memory=table.memory.astype("Int64"),
            reused=table.reused_tokens / self._tokens,
            ttft_mean_s=np.nan,
            ttft_median_s=np.nan,
        )

    def curve(self, sizes: Sequence[int]) -> pd.DataFrame:
        """Return what the least recently used finds from half to twice these sizes."""
        found: list[int] = []
        if self._is_stack:
            first, last = min(sizes) / 2, max(sizes) * 2
            number = round(_POINTS * np.log2(last / first)) + 1
            between = (round(size) for size in np.geomspace(first, last, number))
            found = sorted({*sizes, *between})
        return pd.DataFrame(
            {
                "capacity": np.array(found, np.int64),
                "reused_tokens": np.array([*map(self._recent, found)], np.int64),
            }
        )

    def sizes(self) -> list[int]:
        """Return sizes of memory that tell policies apart, the least first.

        Raises:
            ConfigError: tokens take no memory.
        """
        token = self._layout.token_bytes()
        if not token:
            raise ConfigError("evictions: tokens take no memory here; give memory")
        most = self._recent(self._recency.enough * token)
        size = 1 << max(self._recency.enough * token - 1, 0).bit_length()
        while self._recent(size // 2) >= most - _LOST * self._tokens and size > 1:
            size //= 2
        least = self._block * self._workload.unit * token
        sizes = [size >> i for i in reversed(range(_SIZES))]
        return [own for own in sizes if own >= least] or [least]

    def _recent(self, size: int) -> int:
        """Return the tokens that the least recently used finds in these bytes."""
        return int(self._recency.reused(self._room(size)).sum())

    def _room(self, size: int) -> int:
        """Return the tokens that fit into these bytes."""
        token = self._layout.token_bytes()
        # A model of recurrent state alone keeps nothing for a token.
        return size // token if token else UNLIMITED
