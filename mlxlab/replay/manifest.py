"""Manifests: all that is needed to judge or repeat a result."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from mlxlab.models.folder import ModelFolder
from mlxlab.models.layout import CacheLayout
from mlxlab.replay.cost_model import CostModel
from mlxlab.replay.specs import StrategySpec
from mlxlab.traces import Trace
from mlxlab.traces.completeness import Completeness
from mlxlab.traces.hashed.trace import HashedTrace

__all__ = ["describe_run"]

_PACKAGES = ("mlxlab", "mlx", "mlx-lm", "numpy", "transformers")


def describe_run(
    traces: Iterable[Trace | HashedTrace],
    folder: ModelFolder,
    specs: Iterable[StrategySpec],
    notes: Mapping[str, int],
    environment: Mapping[str, Any],
    *,
    layout: CacheLayout | None = None,
    costs: CostModel | None = None,
) -> dict[str, Any]:
    """Return everything that decides the numbers, as JSON values.

    Args:
        traces: the replayed traces.
        folder: the model that rendered the traces and, in a live replay, computed them.
        specs: the strategies.
        notes: deviations of the rendering, and how often they occurred.
        environment: device, BLAS and chunk of a live replay; empty when simulated.
        layout: what a model keeps for its tokens; None for this model's.
        costs: the cost model of estimated seconds.

    Raises:
        StrategyError: a spec that cannot be made.
        ModelError: the model cannot be served, and no layout is given.
    """
    layout = layout or folder.layout
    described = [_trace(trace) for trace in traces]
    return {
        "traces": described,
        **_assumed(described),
        "model": {
            "name": folder.name,
            "digest": folder.digest,
            **_layout(layout),
            "window": folder.window,
        },
        "strategies": [_spec(c, layout) for c in specs],
        "notes": dict(notes),
        "simulated": not environment,
        **({"estimated": costs.describe()} if costs else {}),
        **environment,
        # Recorded answers are forced, so nothing is drawn at random.
        "seed": None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _trace(trace: Trace | HashedTrace) -> dict[str, Any]:
    described: dict[str, Any] = {"name": trace.name, "digest": trace.digest}
    if isinstance(trace, HashedTrace):
        return {**described, "unit": trace.unit}
    skipped = dict(trace.skipped)
    described |= {"requests": len(trace.inference), "skipped": skipped}
    if found := trace.completeness:
        return {**described, "completeness": found.model_dump()}
    return described


def _assumed(traces: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what was missing or assumed, one line for each trace it applies to."""
    several = len(traces) > 1
    lines = [
        (f"trace {trace['name']}: " if several else "")
        + Completeness.model_validate(trace["completeness"]).line
        for trace in traces
        if "completeness" in trace
    ]
    return {"assumed": lines} if lines else {}


def _layout(layout: CacheLayout) -> dict[str, Any]:
    return {
        "token_bytes": layout.token_bytes(),
        "checkpoint_bytes": layout.checkpoint_bytes(),
        "layout": [asdict(part) for part in layout.layers],
    }


def _spec(spec: StrategySpec, layout: CacheLayout) -> dict[str, Any]:
    strategy = spec.make(layout)
    return {
        "strategy": spec.strategy,
        "parameters": dict(strategy.parameters),
        "exact": strategy.is_exact,
        "max_sequences": strategy.max_sequences,
        "rules": list(spec.rules),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
