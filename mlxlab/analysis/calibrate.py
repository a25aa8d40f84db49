"""Measures what prefill and restore cost here, through the engine that will do them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from time import perf_counter

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from mlxlab.analysis.compare import compare
from mlxlab.analysis.tables import spec_names
from mlxlab.engine import Engine
from mlxlab.errors import ModelError
from mlxlab.models.folder import BUNDLED, ModelFolder, find_model
from mlxlab.prompt import Prompt, Tokens
from mlxlab.replay.cost_model import (
    CostModel,
    Machine,
    Point,
    fit_costs,
    remember_costs,
)
from mlxlab.replay.live import LiveModel, live_model
from mlxlab.replay.specs import DEFAULT_SPECS
from mlxlab.strategies import make_strategy
from mlxlab.traces import Trace

__all__ = ["calibrate", "check_costs"]

#: Shares of the longest prompt that are in the cache, and tokens computed behind them.
STARTS = (0.0, 0.2, 0.8)
LENGTHS = (1, 16, 64, 256, 1024, 4096)
TURNS = 12  # in which the conversation grew that is in the cache
BLOCK = 64
ROUNDS = 5
MOST = 100
LEAST = 8


def calibrate(
    model: str | ModelFolder = BUNDLED,
    *,
    chunk: int = 2048,
    tokens: int = 20_000,
    seconds: float = 60.0,
    seed: int = 0,
    force: bool = False,
    progress: bool = True,
) -> CostModel:
    """Measure requests of all sizes and fit a cost model, which is kept for this user.

    One with more points that is kept stays, see
    :func:`mlxlab.replay.cost_model.remember_costs`; a warning says so.

    Sizes come in random order, over and over, so that a machine that slows down does
    not make one of them look dear.

    Args:
        model: name, folder or hub repository.
        chunk: tokens computed at a time.
        tokens: of the longest prompt; the model's window if that is shorter.
        seconds: after which no more is measured; a first round of small prompts is.
        seed: of the order, and of the ids, which change no cost.
        force: whether to replace a calibration with more points too.
        progress: whether to show a bar.

    Raises:
        ModelError: the model cannot be loaded, or its window is too short.
        MlxlabError: the calibration cannot be kept.
    """
    folder = find_model(model) if isinstance(model, str) else model
    tokens = min(tokens, folder.window - 1)
    if tokens < 4 * BLOCK:
        raise ModelError(
            f"model {folder.name}: {tokens} tokens are too few to calibrate with; give "
            f"{4 * BLOCK} or more"
        )
    with live_model(folder, chunk=chunk) as live:
        found = list(_points(live, tokens, seconds, random.Random(seed), progress))
        environment = live.describe()
    costs = fit_costs(
        found,
        model=folder.digest,
        machine=Machine.here(chunk),
        device=environment["device"],
        blas=environment["blas"],
        day=datetime.now(UTC).date(),
    )
    remember_costs(costs, force=force)
    return costs


def _points(
    live: LiveModel, tokens: int, seconds: float, order: random.Random, progress: bool
) -> Iterator[Point]:
    ids = np.random.default_rng(order.randrange(2**32))
    base = ids.integers(0, 1 << 8, tokens, dtype=np.int32)
    sizes = [
        (start, length)
        for start in (int(share * tokens) // BLOCK * BLOCK for share in STARTS)
        for length in LENGTHS
        if start + length <= tokens
    ]
    with tqdm(total=MOST, desc="calibrating", disable=not progress) as bar:
        engine = _filled(live, base)
        end = perf_counter() + seconds
        number = 0
        for _ in range(ROUNDS):
            order.shuffle(sizes)
            for start, length in sizes:
                late = perf_counter() > end and number >= LEAST
                if late or number == MOST:
                    return
                # Nothing but the base is shared: the next block begins unlike it.
                tail = ids.integers(1 << 8, 1 << 9, length, dtype=np.int32)
                yield _measure(live, engine, np.concatenate([base[:start], tail]))
                number += 1
                bar.update(1)


def _filled(live: LiveModel, base: Tokens) -> Engine:
    """An engine with the longest prompt in its cache, as a session's turns leave it."""
    engine = live.engine(make_strategy("paged", block=BLOCK, capacity=1 << 60))
    for stop in np.linspace(0, len(base), TURNS + 1).astype(int)[1:]:
        live.worker.call(engine.replay, Prompt.of(base[:stop]), base[:0])
    return engine


def _measure(live: LiveModel, engine: Engine, tokens: Tokens) -> Point:
    prompt = Prompt.of(tokens)
    done = live.worker.call(engine.replay, prompt, tokens[:0])
    return Point(
        start=done.plan.reused,
        stop=len(prompt),
        restore_s=done.restore_s,
        prefill_s=done.prefill_s,
    )


def check_costs(
    costs: CostModel,
    traces: Trace | Sequence[Trace],
    *,
    model: str | ModelFolder = BUNDLED,
    strategies: str = DEFAULT_SPECS,
    progress: bool = True,
) -> pd.DataFrame:
    """Replay traces live and simulated, and compare the seconds.

    Returns:
        A row per strategy: ``requests``, ``median`` and ``p90`` (share by which the
        estimated time to the first token of a request is off), ``total`` (by which
        their sum is).

    Raises:
        MlxlabError: see :func:`mlxlab.compare`.
    """
    both = [
        compare(
            traces,
            model=model,
            strategies=strategies,
            simulate=simulate,
            costs=costs if simulate else None,
            chunk=costs.machine.chunk,
            progress=progress,
        )
        for simulate in (False, True)
    ]
    measured, estimated = (rows.dropna(subset="ttft_s") for rows in both)
    names = spec_names(measured)
    measured = measured.assign(estimated_s=estimated.ttft_s.loc[measured.index])
    found = {}
    for name, rows in measured.groupby(names, sort=False):
        off = (rows.estimated_s / rows.ttft_s - 1).abs()
        found[name] = {
            "requests": len(rows),
            "median": off.median(),
            "p90": off.quantile(0.9),
            "total": abs(rows.estimated_s.sum() / rows.ttft_s.sum() - 1),
        }
    return pd.DataFrame.from_dict(found, orient="index")
