"""Measures the seconds of a step that decodes a token of several answers."""

from __future__ import annotations

from statistics import median
from time import perf_counter

import numpy as np

from mlxlab.engine import Engine
from mlxlab.engine.batch import Batch
from mlxlab.engine.samplers import greedy
from mlxlab.prompt import Prompt, Tokens
from mlxlab.replay.decoding_costs import Step
from mlxlab.replay.live import LiveModel
from mlxlab.strategies import make_strategy

__all__ = ["measure_steps"]

#: Answers that decode together, and tokens in front of each.
ROWS = (1, 2, 4, 8)
CONTEXTS = (256, 4096)
_ROUNDS = 2
_STEPS = 10
_WARM = 2  # the first steps wait for the batch to be merged


def measure_steps(live: LiveModel, tokens: int) -> list[Step]:
    """Decode in batches of several sizes, on the worker.

    Args:
        live: the model.
        tokens: most tokens in front of an answer.
    """
    rows = ROWS if live.batched else ROWS[:1]
    contexts = sorted({min(context, tokens) for context in CONTEXTS})
    # What was computed once is restored.
    engine = live.engine(make_strategy("paged", capacity=1 << 60))
    ids = np.arange(contexts[-1] + 1, dtype=np.int32) % 64
    live.worker.call(engine.replay, Prompt.of(ids), ids[:0])
    sizes = [(n, context) for n in rows for context in contexts] * _ROUNDS
    return [
        live.worker.call(_measure, engine, live.batched, ids[: size[1]], size[0])
        for size in sizes
    ]


def _measure(engine: Engine, batched: bool, ids: Tokens, rows: int) -> Step:
    batch = Batch(engine.model, shared=batched)
    for _ in range(rows):
        batch.add(engine.prefill(Prompt.of(ids)).caches, int(ids[-1]), greedy)
    seconds = []
    for _ in range(_WARM + _STEPS):
        started = perf_counter()
        batch.step()
        seconds.append(perf_counter() - started)
    grown = rows * (len(ids) + _WARM + _STEPS // 2)
    return Step(rows=rows, context=grown, step_s=median(seconds[_WARM:]))
