"""How long a live comparison will take, estimated before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np

from mlxlab.analysis.compare import compare
from mlxlab.models.folder import ModelFolder
from mlxlab.prompt import Prompt
from mlxlab.replay.cost_model import CostModel, Machine, Point, fit_costs, recall_costs
from mlxlab.replay.specs import Strategies
from mlxlab.strategies import make_strategy
from mlxlab.traces import Trace

__all__ = ["forecast"]

#: Tokens of the prompts that are computed where nothing was calibrated.
_SIZES = (256, 2048, 4096)


def forecast(
    traces: Sequence[Trace],
    *,
    model: ModelFolder,
    strategies: Strategies,
    rules: str = "all",
    capacity: int | None = None,
    chunk: int = 2048,
) -> str:
    """Return the duration of a live comparison in words, and the estimate's source.

    Simulates the comparison. Seconds come from this machine's calibration, or from a
    few prompts that are computed now.

    Args:
        traces: recorded traces, as for :func:`mlxlab.compare`.
        model: the model that computes.
        strategies: see :func:`mlxlab.replay.specs.parse_specs`.
        rules: default rules, for strategies without ``@rules``.
        capacity: bytes, for strategies whose parameters name none.
        chunk: tokens computed at a time.

    Raises:
        MlxlabError: see :func:`mlxlab.compare`.
    """
    calibrated = recall_costs(model.digest, chunk)
    simulated = compare(
        traces,
        strategies,
        model=model,
        rules=rules,
        capacity=capacity,
        simulate=True,
        costs=calibrated or _probe(model, chunk),
        chunk=chunk,
        progress=False,
    )
    seconds = simulated.requests.ttft_s.sum()
    source = "this machine's calibration" if calibrated else "a few prompts"
    return f"about {_duration(seconds)}, by {source}"


def _probe(model: ModelFolder, chunk: int) -> CostModel:
    """Fit a cost model to a few prompts; too rough to be kept."""
    from mlxlab.replay.live import live_model  # needs mlx

    with live_model(model, chunk=chunk) as live:
        engine = live.engine(make_strategy("none"))
        nothing = np.empty(0, np.int32)
        points = []
        for size in (min(size, model.window - 1) for size in _SIZES):
            prompt = Prompt.of(np.arange(size, dtype=np.int32) % 64)
            done = live.worker.call(engine.replay, prompt, nothing)
            points.append(
                Point(start=0, stop=size, restore_s=0, prefill_s=done.prefill_s)
            )
        environment = live.describe()
    return fit_costs(
        points,
        model=model.digest,
        machine=Machine.here(chunk),
        device=environment["device"],
        blas=environment["blas"],
        day=datetime.now(UTC).date(),
    )


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{max(round(seconds), 1)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes / 60:.1f} h"
