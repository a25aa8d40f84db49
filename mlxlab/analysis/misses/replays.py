"""Replays traces for the share of their prompts that is reused."""

from __future__ import annotations

from collections.abc import Sequence

from mlxlab.models.folder import ModelFolder
from mlxlab.models.layout import CacheLayout
from mlxlab.rendering.renderer import Renderer
from mlxlab.replay.simulator import Simulator
from mlxlab.replay.specs import StrategySpec
from mlxlab.replay.workload import Sources, Workload, open_sources
from mlxlab.traces.open import AnyTrace

__all__ = ["reused_share", "split_workloads"]


def split_workloads(sources: Sources, users: int | None) -> list[Workload]:
    """Return a workload for each cache: one for all users, or one for each trace."""
    if users:
        return [Workload(sources, users)]
    return [Workload((source,)) for source in sources]


def reused_share(
    traces: Sequence[AnyTrace],
    model: ModelFolder,
    spec: StrategySpec,
    layout: CacheLayout,
    users: int | None,
) -> float:
    """Return the share of all prompt tokens that a strategy reuses under its rules."""
    sources = open_sources(traces, Renderer(model, spec.rules), progress=False)
    reused = tokens = 0
    for workload in split_workloads(sources, users):
        simulator = Simulator(spec.make(layout, unit=workload.unit))
        for request in workload:
            reused += simulator.replay(request).reused_tokens
            tokens += request.tokens
    return reused / tokens
