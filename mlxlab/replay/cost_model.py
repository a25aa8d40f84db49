"""Estimates the seconds of restores and prefills, by a model fitted on one machine.

Calibrations are kept in the user's cache folder, one file per model.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Self

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    model_validator,
)

from mlxlab.errors import ConfigError
from mlxlab.files import cache_folder, locked, write_json
from mlxlab.ownership import read_own
from mlxlab.replay.decoding_costs import Decoding, Step
from mlxlab.replay.fitting import Matrix, fit
from mlxlab.strategies import Disk, Plan

__all__ = [
    "CHUNK",
    "CostModel",
    "Machine",
    "Point",
    "computed",
    "fit_costs",
    "latest_costs",
    "recall_costs",
    "remember_costs",
]

log = logging.getLogger(__name__)

#: Tokens computed at a time, by default.
CHUNK = 2048

#: Seconds a byte, where none were measured: a slow NVMe disk.
_LOAD = 1 / (1 << 30)
_CPU_INFO = Path("/proc/cpuinfo")


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Machine(_Closed):
    """The machine that seconds depend on, described without importing mlx."""

    system: str
    processor: str
    mlx: str
    chunk: int

    @classmethod
    def here(cls, chunk: int) -> Self:
        """Describe this machine, with ``chunk`` tokens computed at a time."""
        system = f"{platform.system()} {platform.machine()}"
        return cls(
            system=system, processor=_processor(), mlx=version("mlx"), chunk=chunk
        )


class Point(_Closed):
    """One measured request.

    Attributes:
        start: restored tokens.
        stop: prompt tokens.
        restore_s: seconds to plan and restore.
        prefill_s: seconds to compute the rest, up to the first token's logits.
    """

    start: int
    stop: int
    restore_s: FiniteFloat
    prefill_s: FiniteFloat


class CostModel(_Closed):
    """Seconds as sums of a few terms, none negative.

    The terms of a prefill are requests, chunks, tokens, and for attention the pairs of
    a token with a position before its chunk and with a token of its chunk. The terms of
    a restore are requests and tokens.

    Attributes:
        model: digest of the model's files.
        machine: the machine of the measurement.
        device: of the model.
        blas: the library of matrix products.
        day: of the measurement, UTC.
        prefill: seconds per request, chunk, token, pair with a position in front, pair
            within a chunk, and position of the last token, which is computed by itself.
        restore: seconds per request and token.
        points: the measured requests of the fit.
        load: seconds per byte that is read from disk.
        decode: seconds of decoding; None in a calibration from before they were
            measured as they are now.
        steps: the measured steps of that fit.
    """

    model: str
    machine: Machine
    device: str
    blas: str
    day: date
    prefill: tuple[FiniteFloat, ...] = Field(min_length=6, max_length=6)
    restore: tuple[FiniteFloat, ...] = Field(min_length=2, max_length=2)
    points: tuple[Point, ...]
    load: FiniteFloat = _LOAD
    decode: Decoding | None = None
    steps: tuple[Step, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _without_old_decoding(cls, data: Any) -> Any:
        """Leave out three terms of decoding that knew nothing of padding."""
        if isinstance(data, dict) and isinstance(data.get("decode"), list):
            return {**data, "decode": None, "steps": ()}
        return data

    def prefill_s(self, start: int, stop: int) -> float:
        """Return the seconds to compute positions ``[start, stop)`` and logits."""
        if start >= stop:
            return 0.0
        return float(_prefill_terms(start, stop, self.machine.chunk) @ self.prefill)

    @property
    def decoding(self) -> Decoding:
        """The terms of :attr:`decode`.

        Raises:
            ConfigError: the calibration has none.
        """
        if self.decode is None:
            raise ConfigError(
                f"the calibration of {self.day} has no seconds of decoding; measure "
                "them with: mlxlab calibrate --force"
            )
        return self.decode

    def last_s(self, tokens: int) -> float:
        """Return the seconds to compute the last token of a prompt by itself."""
        request, _, token, _, _, position = self.prefill
        return request + token + position * tokens

    def restore_s(self, tokens: int) -> float:
        """Return the seconds to find and restore this many tokens."""
        return float(_restore_terms(tokens) @ self.restore)

    def load_s(self, size: int) -> float:
        """Return the seconds to read this many bytes from disk."""
        return size * self.load

    def loading_pays(self, disk: Disk) -> Callable[[int, int], bool]:
        """Return whether reading positions from a disk is faster than computing them.

        Args:
            disk: gives the sizes; its positions are units of tokens.
        """

        def pays(start: int, stop: int) -> bool:
            read = self.load_s(disk.size(start, stop))
            tokens = start * disk.unit, stop * disk.unit
            return read + self.restore_s(tokens[1] - tokens[0]) < self.prefill_s(
                *tokens
            )

        return pays

    def ttft_s(self, reused: int, tokens: int) -> float:
        """Return the seconds to the first token of a prompt with a reused prefix."""
        return self.restore_s(reused) + self.prefill_s(reused, tokens)

    def estimate(self, plan: Plan, unit: int, tokens: int) -> tuple[float, float]:
        """Return the seconds to restore and to compute a prompt.

        Args:
            plan: in units.
            unit: tokens that a position of the plan stands for.
            tokens: prompt tokens.
        """
        reused = plan.reused * unit
        return self.restore_s(reused), self.prefill_s(*computed(plan, unit, tokens))

    def describe(self) -> dict[str, Any]:
        """Return the manifest's entry on estimated seconds."""
        return {
            "calibrated": str(self.day),
            "points": len(self.points),
            "median_error": round(self.error, 4),
            "device": self.device,
            "blas": self.blas,
            "machine": self.machine.model_dump(),
        }

    @property
    def errors(self) -> list[float]:
        """Relative error of the estimate of each size, restore and prefill together."""
        return [
            abs(
                (self.restore_s(p.start) + self.prefill_s(p.start, p.stop))
                / (p.restore_s + p.prefill_s)
                - 1
            )
            for p in _typical(self.points)
        ]

    @property
    def error(self) -> float:
        """The median of :attr:`errors`."""
        return float(np.median(self.errors))


def computed(plan: Plan, unit: int, tokens: int) -> tuple[int, int]:
    """Return positions whose computation costs what the gaps of a plan cost.

    Args:
        plan: in units.
        unit: tokens that a position of the plan stands for.
        tokens: prompt tokens.
    """
    gaps = [(a * unit, min(b * unit, tokens)) for a, b in plan.gaps]
    if len(gaps) == 1:
        return gaps[0]
    # All gaps after the first moved span are computed together.
    reused = plan.reused * unit
    middle = sum((a + b) * (b - a) for a, b in gaps) // (2 * (tokens - reused))
    half = (tokens - reused) // 2
    start = min(max(middle - half, 0), reused)
    return start, start + tokens - reused


def fit_costs(
    points: Sequence[Point],
    *,
    model: str,
    machine: Machine,
    device: str,
    blas: str,
    day: date,
    steps: Sequence[Step] = (),
) -> CostModel:
    """Fit the cost model with the least sum of relative errors at these points.

    Of points of one size the median counts. The fastest point underestimated replays by
    15 %. Without steps there are no seconds of decoding.
    """
    chunk = machine.chunk
    kept = tuple(points)
    points = _typical(points)
    prefill = fit(
        np.array([_prefill_terms(p.start, p.stop, chunk) for p in points]),
        np.array([p.prefill_s for p in points]),
    )
    restored = [p for p in points if p.start]
    restore = fit(
        np.array([_restore_terms(p.start) for p in restored]).reshape(-1, 2),
        np.array([p.restore_s for p in restored]),
    )
    return CostModel(
        model=model,
        machine=machine,
        device=device,
        blas=blas,
        day=day,
        prefill=tuple(prefill),
        restore=tuple(restore),
        points=kept,
        decode=Decoding.of(steps) if steps else None,
        steps=tuple(steps),
    )


def remember_costs(costs: CostModel, *, force: bool = False) -> Path:
    """Keep a calibration, unless a better one of this model and machine is kept.

    A calibration with more points is better. With equal numbers the later one stays. A
    calibration of another device or BLAS is always replaced. One of another processor,
    mlx or chunk is kept beside this one.

    Args:
        costs: the calibration of a run.
        force: whether to replace a better one too.

    Returns:
        The file.

    Raises:
        MlxlabError: the file cannot be written.
    """
    path = _file(costs.model)
    with locked(path.parent):
        kept = _kept(costs.model)
        better = next((c for c in kept if not force and _is_better(c, costs)), None)
        if better is None:
            others = [c for c in kept if c.machine != costs.machine]
            content = [c.model_dump(mode="json") for c in (*others, costs)]
            write_json({"calibrations": content}, path, own=True)
            return path
    log.warning(
        "calibration not kept: it has %d points, that of %s has %d and stays; "
        "force replaces it (--force)",
        *(len(costs.points), better.day, len(better.points)),
    )
    return path


def _is_better(old: CostModel, new: CostModel) -> bool:
    same = all(
        getattr(old, key) == getattr(new, key) for key in ("machine", "device", "blas")
    )
    return same and len(old.points) > len(new.points)


def recall_costs(model: str, chunk: int) -> CostModel | None:
    """Return the calibration of the model of that digest on this machine, if any."""
    here = Machine.here(chunk)
    return next((c for c in _kept(model) if c.machine == here), None)


def latest_costs(chunk: int, *, without: str) -> CostModel | None:
    """Return the latest calibration of any model on this machine, if there is one.

    Args:
        chunk: tokens computed at a time.
        without: digest of a model whose calibration says nothing of others.
    """
    try:
        models = [path.stem for path in _file(without).parent.glob("*.json")]
    except OSError:  # no cache folder
        return None
    here = Machine.here(chunk)
    found = (c for model in models if model != without for c in _kept(model))
    return max(
        (c for c in found if c.machine == here), key=lambda c: c.day, default=None
    )


class _Calibrations(_Closed):
    calibrations: tuple[CostModel, ...]


def _kept(model: str) -> tuple[CostModel, ...]:
    try:
        return _Calibrations.model_validate_json(read_own(_file(model))).calibrations
    except FileNotFoundError:
        return ()
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not of this format"
        log.warning("%s: %s; calibrate again", _file(model), reason)
        return ()


def _file(model: str) -> Path:
    return cache_folder() / "calibration" / f"{model}.json"


def _typical(points: Sequence[Point]) -> list[Point]:
    """Return one point per size, with the median prefill and the median restore."""
    sizes: dict[tuple[int, int], list[Point]] = {}
    for point in points:
        sizes.setdefault((point.start, point.stop), []).append(point)
    return [
        own[0].model_copy(
            update={
                "prefill_s": median(point.prefill_s for point in own),
                "restore_s": median(point.restore_s for point in own),
            }
        )
        for own in sizes.values()
    ]


def _prefill_terms(start: int, stop: int, chunk: int) -> Matrix:
    """Return the terms of a prefill of positions ``[start, stop)``."""
    # The last token is computed by itself, the others in chunks.
    starts = np.arange(start, stop - 1, chunk, dtype=np.float64)
    lengths = np.minimum(starts + chunk, stop - 1) - starts
    pairs = starts @ lengths, lengths @ lengths
    return np.array([1.0, len(starts), stop - start, *pairs, stop])


def _restore_terms(tokens: int) -> Matrix:
    return np.array([1.0, tokens]) if tokens else np.zeros(2)


def _processor() -> str:
    """Return the processor's name; ``platform`` has none on Linux."""
    names: Iterable[str] = ()
    if _CPU_INFO.exists():
        lines = _CPU_INFO.read_text().splitlines()
        names = (
            line.partition(":")[2].strip() for line in lines if "model name" in line
        )
    return next(iter(names), "") or platform.processor() or "unknown"
