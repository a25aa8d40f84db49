"""Estimates how long a live comparison or a fidelity run takes, before it starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mlxlab.analysis.compare import compare, read_factor
from mlxlab.analysis.comparison import Comparison
from mlxlab.analysis.fidelity.edits import EditedTrace
from mlxlab.analysis.fidelity.run import QUANTIZED
from mlxlab.analysis.fidelity.scenarios import apply_edits
from mlxlab.models.folder import ModelFolder
from mlxlab.prompt import Prompt
from mlxlab.replay.cost_model import (
    CHUNK,
    CostModel,
    Machine,
    Point,
    fit_costs,
    recall_costs,
)
from mlxlab.replay.specs import (
    DEFAULT_SPECS,
    FIDELITY_SPECS,
    Strategies,
)
from mlxlab.replay.turns import Schedule, list_turns, think_only
from mlxlab.sizes import format_duration
from mlxlab.strategies import make_strategy
from mlxlab.traces import Trace

if TYPE_CHECKING:
    from mlxlab.replay.live import LiveModel

__all__ = ["forecast", "forecast_fidelity"]

#: Tokens of the prompts that are computed where nothing was calibrated.
_SIZES = (256, 2048, 4096)
#: Full prefills that answer every evaluated request: reference and noise floor.
_FULL = 2


def forecast(
    traces: Sequence[Trace],
    *,
    model: ModelFolder,
    strategies: Strategies = DEFAULT_SPECS,
    rules: str = "all",
    capacity: int | None = None,
    chunk: int = CHUNK,
    users: int | None = None,
    think_times: float | None = None,
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
        users: see :func:`mlxlab.compare`. Each answer counts as if it was decoded
            alone.
        think_times: see :func:`mlxlab.compare`.

    Raises:
        MlxlabError: see :func:`mlxlab.compare`.
    """
    factor = read_factor(users, think_times)
    calibrated = recall_costs(model.digest, chunk)
    costs = calibrated or _probe(model, chunk)
    simulated = _simulate(traces, strategies, model, rules, costs, capacity, users)
    rows = simulated.requests
    seconds = float(rows.ttft_s.sum())
    if users is not None:
        think_s = think_only(Schedule(list_turns(traces), users, factor))
        seconds += rows.strategy.nunique() * think_s + _decoding_s(rows, costs)
    return _describe(seconds, calibrated)


def forecast_fidelity(
    traces: Sequence[Trace],
    *,
    model: ModelFolder,
    strategies: Strategies = FIDELITY_SPECS,
    rules: str = "all",
    edits: str | Sequence[str] = "classes",
    quantized: Sequence[int] = QUANTIZED,
    tokens: int = 64,
    greedy: int = 32,
    chunk: int = CHUNK,
) -> str:
    """Return the duration of a fidelity run in words, and the estimate's source.

    Simulates the strategies on every edited trace, because edits break reuse.

    Args:
        traces: recorded traces, as for :func:`mlxlab.fidelity`.
        model: the model that computes.
        strategies: see :func:`mlxlab.replay.specs.parse_specs`.
        rules: default rules, for strategies without ``@rules``.
        edits: see :func:`mlxlab.fidelity`.
        quantized: bits to round weights to.
        tokens: most tokens of a recorded answer that are computed at once.
        greedy: most tokens to decode.
        chunk: tokens computed at a time.

    Raises:
        MlxlabError: see :func:`mlxlab.fidelity`.
    """
    edited = [apply_edits(trace, edits) for trace in traces]
    calibrated = recall_costs(model.digest, chunk)
    costs = calibrated or _probe(model, chunk)
    full = _FULL + len(quantized)
    seconds = 0.0
    for one in (one for own in edited for one in own.edited):
        simulated = _simulate([one.trace], strategies, model, rules, costs)
        seconds += _fidelity_s(one, simulated, costs, full, tokens, greedy)
    return _describe(seconds, calibrated)


def _fidelity_s(
    edited: EditedTrace,
    simulated: Comparison,
    costs: CostModel,
    full: int,
    tokens: int,
    greedy: int,
) -> float:
    """Return the seconds of one edited trace."""
    rows = simulated.requests
    lengths = rows.groupby("request").prompt_tokens.first()
    variants = full + rows.strategy.nunique()
    seconds = float(rows.ttft_s.sum())
    for length in map(int, lengths.reindex(list(edited.changed)).dropna()):
        answer = costs.prefill_s(length, length + tokens)
        answer += greedy * costs.prefill_s(length, length + 1)
        seconds += full * costs.ttft_s(0, length) + variants * answer
    return seconds


def _decoding_s(rows: pd.DataFrame, costs: CostModel) -> float:
    """Return the seconds to decode all answers, each alone."""
    pairs = zip(rows.prompt_tokens, rows.answer_tokens, strict=True)
    seconds = 0.0
    for prompt, answer in pairs:
        seconds += answer * costs.prefill_s(prompt, prompt + 1)
    return seconds


def _simulate(
    traces: Sequence[Trace],
    strategies: Strategies,
    model: ModelFolder,
    rules: str,
    costs: CostModel,
    capacity: int | None = None,
    users: int | None = None,
) -> Comparison:
    return compare(
        traces,
        strategies,
        model=model,
        rules=rules,
        capacity=capacity,
        simulate=True,
        costs=costs,
        users=users,
        progress=False,
    )


def _describe(seconds: float, calibrated: CostModel | None) -> str:
    source = "this machine's calibration" if calibrated else "a few prompts"
    return f"about {format_duration(seconds)}, by {source}"


def _probe(model: ModelFolder, chunk: int) -> CostModel:
    """Fit a cost model to a few prompts; too rough to be kept."""
    from mlxlab.replay.live import live_model  # needs mlx

    with live_model(model, chunk=chunk) as live:
        points = list(_points(live, model.window))
        environment = live.describe()
    return fit_costs(
        points,
        model=model.digest,
        machine=Machine.here(chunk),
        device=environment["device"],
        blas=environment["blas"],
        day=datetime.now(UTC).date(),
    )


def _points(live: LiveModel, window: int) -> Iterator[Point]:
    """Measure prompts, each computed whole and then with one more token.

    Without the second, a fit cannot tell the cost of a token from that of its position.
    """
    engine = live.engine(make_strategy("paged", capacity=1 << 60))
    nothing = np.empty(0, np.int32)
    for number, size in enumerate(min(size, window - 2) for size in _SIZES):
        ids = np.arange(size + 1, dtype=np.int32) % 64 + 64 * number
        whole, longer = Prompt.of(ids[:-1]), Prompt.of(ids)
        # The longer one twice: its first replay completes the last block.
        for prompt, counts in ((whole, True), (longer, False), (longer, True)):
            done = live.worker.call(engine.replay, prompt, nothing)
            if counts:
                yield Point(
                    start=done.plan.reused,
                    stop=len(prompt),
                    restore_s=done.prefill.restore_s,
                    prefill_s=done.prefill_s,
                )
