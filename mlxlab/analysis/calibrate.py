"""Measures the seconds of prefill, restore and decoding here, with the engine."""

from __future__ import annotations

import fcntl
import os
import random
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256
from tempfile import TemporaryFile
from time import perf_counter

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from mlxlab.analysis.calibration import Calibration
from mlxlab.analysis.compare import compare
from mlxlab.analysis.decoding_steps import measure_steps
from mlxlab.engine import Engine
from mlxlab.errors import MlxlabError, ModelError
from mlxlab.files import cache_folder, make_folder
from mlxlab.models.folder import BUNDLED, ModelFolder, find_model
from mlxlab.prompt import Prompt, Tokens
from mlxlab.replay.cost_model import (
    CHUNK,
    CostModel,
    Machine,
    Point,
    fit_costs,
    remember_costs,
)
from mlxlab.replay.live import LiveModel, live_model
from mlxlab.replay.specs import DEFAULT_SPECS, Strategies
from mlxlab.strategies import make_strategy
from mlxlab.traces.open import Traces

__all__ = ["calibrate", "check_costs"]

#: Cached shares of the longest prompt, and tokens computed after them.
STARTS = (0.0, 0.2, 0.8)
LENGTHS = (1, 16, 64, 256, 1024, 4096)
TURNS = 12  # of the cached conversation
BLOCK = 64
ROUNDS = 5
MOST = 100
LEAST = 8
#: Bytes of the file that is read to measure the disk.
_FILE_BYTES = 32 << 20


def calibrate(
    model: str | ModelFolder = BUNDLED,
    *,
    chunk: int = CHUNK,
    tokens: int = 20_000,
    seconds: float = 60.0,
    seed: int = 0,
    force: bool = False,
    progress: bool = True,
) -> Calibration:
    """Measure requests and steps of all sizes, fit a cost model, and keep it.

    A kept calibration with more points stays, see
    :func:`mlxlab.replay.cost_model.remember_costs`; a warning says so.

    Sizes come in random order, several times, so that a machine that slows down does
    not distort one of them.

    Args:
        model: name, folder or hub repository.
        chunk: tokens computed at a time.
        tokens: length of the longest prompt; the model's window if that is shorter.
        seconds: limit of the measurement; a first round of small prompts always runs.
        seed: of the order of sizes, and of the ids, which change no cost.
        force: whether to replace a calibration with more points too.
        progress: whether to show a bar.

    Raises:
        ModelError: the model cannot be loaded, or its window is too short.
        MlxlabError: the calibration cannot be written.
    """
    folder = find_model(model) if isinstance(model, str) else model
    tokens = min(tokens, folder.window - 1)
    if tokens < 4 * BLOCK:
        raise ModelError(
            f"model {folder.name}: {tokens} tokens are too few to calibrate with; give "
            f"{4 * BLOCK} or more"
        )
    load = measure_load()  # first, since it finds out whether anything can be kept
    with live_model(folder, chunk=chunk) as live:
        points = list(_points(live, tokens, seconds, random.Random(seed), progress))
        steps = measure_steps(live, tokens, seconds, progress)
        environment = live.describe()
    found = fit_costs(
        points,
        model=folder.digest,
        machine=Machine.here(chunk),
        device=environment["device"],
        blas=environment["blas"],
        day=datetime.now(UTC).date(),
        steps=steps,
    )
    costs = found.model_copy(update={"load": load})
    remember_costs(costs, force=force)
    return Calibration.of(costs, folder, environment)


def measure_load() -> float:
    """Return the seconds per byte to read and check a file that is not in memory.

    It is a file of the user's cache folder, where servers keep theirs.

    Raises:
        MlxlabError: it cannot be written.
    """
    try:
        make_folder(cache_folder())
        return _read_s(os.urandom(_FILE_BYTES)) / _FILE_BYTES
    except OSError as error:
        raise MlxlabError(
            f"the user's cache folder: {error.strerror or error}; give one that can be "
            "written, by HOME or XDG_CACHE_HOME"
        ) from None


def _read_s(data: bytes) -> float:
    """Return the seconds to read and check a new file of this content."""
    with TemporaryFile(dir=cache_folder(), buffering=0) as file:
        view = memoryview(data)
        while view:  # a disk that gets full takes a part first
            view = view[file.write(view) :]
        os.fsync(file.fileno())
        if sys.platform == "darwin":
            fcntl.fcntl(file.fileno(), fcntl.F_NOCACHE, 1)
        else:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        started = perf_counter()
        sha256(file.read()).digest()
        return perf_counter() - started


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
                # Only the base is shared: the next block begins with another token.
                tail = ids.integers(1 << 8, 1 << 9, length, dtype=np.int32)
                yield _measure(live, engine, np.concatenate([base[:start], tail]))
                number += 1
                bar.update(1)


def _filled(live: LiveModel, base: Tokens) -> Engine:
    """Return an engine that has cached the longest prompt, turn by turn."""
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
        restore_s=done.prefill.restore_s,
        prefill_s=done.prefill_s,
    )


def check_costs(
    costs: CostModel,
    traces: Traces,
    strategies: Strategies = DEFAULT_SPECS,
    *,
    model: str | ModelFolder = BUNDLED,
    progress: bool = True,
) -> pd.DataFrame:
    """Replay traces live and simulated, and compare the seconds.

    Returns:
        One row per strategy. Columns: ``requests``, ``median`` and ``p90`` (relative
        error of the estimated time to the first token of a request), ``total``
        (relative error of the sum).

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
        ).requests
        for simulate in (False, True)
    ]
    measured, estimated = (rows.dropna(subset="ttft_s") for rows in both)
    measured = measured.assign(estimated_s=estimated.ttft_s.loc[measured.index])
    found = {}
    for name, rows in measured.groupby("strategy", sort=False):
        off = (rows.estimated_s / rows.ttft_s - 1).abs()
        found[name] = {
            "requests": len(rows),
            "median": off.median(),
            "p90": off.quantile(0.9),
            "total": abs(rows.estimated_s.sum() / rows.ttft_s.sum() - 1),
        }
    return pd.DataFrame.from_dict(found, orient="index")
