"""Measures the seconds of decoding: steps, joining a batch and leaving it."""

from __future__ import annotations

from statistics import median
from time import perf_counter

import numpy as np
from tqdm.auto import tqdm

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
CONTEXTS = (256, 4096, 16_384)
#: Most tokens of a batch, which bounds the memory that is needed.
PADDED = 32_768
_ROUNDS = 3
_CHANGES = 3  # of a batch
_STEPS = 10
_WARM = 2  # steps that still wait for a batch that has changed


def measure_steps(
    live: LiveModel, tokens: int, seconds: float, progress: bool = False
) -> list[Step]:
    """Decode in batches of several sizes, on the worker.

    Args:
        live: the model.
        tokens: most tokens in front of an answer.
        seconds: no round begins later; the first one always runs.
        progress: whether to show a bar.
    """
    rows = ROWS if live.batched else ROWS[:1]
    contexts = sorted({min(context, tokens) for context in CONTEXTS})
    # What was computed once is restored.
    engine = live.engine(make_strategy("paged", capacity=1 << 60))
    ids = np.arange(contexts[-1] + 1, dtype=np.int32) % 64
    live.worker.call(engine.replay, Prompt.of(ids), ids[:0])
    sizes = [
        (n, context) for n in rows for context in contexts if n * context <= PADDED
    ]
    found: list[Step] = []
    started = perf_counter()
    with tqdm(total=_ROUNDS * len(sizes), desc="decoding", disable=not progress) as bar:
        for _ in range(_ROUNDS):
            if found and perf_counter() - started > seconds:
                break
            for n, context in sizes:
                given = engine, live.batched, ids[:context], n
                found.append(live.worker.call(_measure, *given))
                bar.update(1)
    return found


def _measure(engine: Engine, batched: bool, ids: Tokens, rows: int) -> Step:
    batch = Batch(engine.model, shared=batched)

    def timed_join() -> tuple[int, float]:
        caches = engine.prefill(Prompt.of(ids)).caches
        started = perf_counter()
        number = batch.add(caches, int(ids[-1]), greedy)
        batch.step()
        return number, perf_counter() - started

    def timed_steps() -> list[float]:
        seconds = []
        for _ in range(_WARM + _STEPS):
            started = perf_counter()
            batch.step()
            seconds.append(perf_counter() - started)
        return seconds[_WARM:]

    for _ in range(rows - 1):
        timed_join()
    steps, fewer, joins, leaves = [], [], [], []
    for _ in range(_CHANGES):
        number, seconds = timed_join()
        joins.append(seconds)
        steps += timed_steps()
        started = perf_counter()
        batch.remove(number)
        batch.step()
        leaves.append(perf_counter() - started)
        fewer += timed_steps() if len(batch) else []
    step_s = median(steps)
    grown = _CHANGES * (_WARM + _STEPS) if len(batch) else _STEPS // 2
    found = Step(rows=rows, longest=len(ids) + grown, step_s=step_s)
    if not fewer:
        return found
    # A change, and the step after it, less that step.
    change = {
        "join_s": median(joins) - step_s,
        "leave_s": median(leaves) - median(fewer),
    }
    return found.model_copy(update=change)
