"""Keeps the figures of fidelity runs, to show them beside approximate strategies.

The user's own figures are in the cache folder, one file per model. Figures of the
bundled model come with mlxlab, in the same format.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any, Literal, Self

import pandas as pd
from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from mlxlab.analysis.fidelity.result import Fidelity, format_nats, format_share
from mlxlab.files import cache_folder, locked, write_json
from mlxlab.models.layout import CacheLayout
from mlxlab.ownership import read_own
from mlxlab.replay.specs import StrategySpec
from mlxlab.strategies import ParameterValue

__all__ = ["Closeness", "FidelityRecord", "RecordKey", "known", "recall", "remember"]

log = logging.getLogger(__name__)

_PREPARED = Path(__file__).with_name("measurements.json")


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class RecordKey(_Closed):
    """The subject of a measurement; equal keys mean equal conditions.

    Attributes:
        model: digest of its files, see :attr:`mlxlab.models.folder.ModelFolder.digest`.
        strategy: its name.
        parameters: all of them, defaults too.
        rules: names, in the order of RULES.
    """

    model: str
    strategy: str
    parameters: dict[str, ParameterValue]
    rules: tuple[str, ...]

    @classmethod
    def of(cls, digest: str, spec: StrategySpec) -> Self:
        """Return the key of a spec under the model with that digest.

        Raises:
            StrategyError: see :meth:`StrategySpec.make`.
        """
        strategy = spec.make(CacheLayout.plain(1))  # no parameter depends on it
        return cls(
            model=digest,
            strategy=strategy.name,
            parameters=dict(strategy.parameters),
            rules=spec.rules,
        )


class Closeness(_Closed):
    """The distance of predictions from those of a full prefill.

    Attributes:
        kld_median: median KL divergence over all scored tokens, in nats.
        kld_999: 99.9 % quantile of the KL divergence, in nats.
        same_top: share of the tokens with the same most likely token.
    """

    kld_median: FiniteFloat
    kld_999: FiniteFloat
    same_top: FiniteFloat

    def figures(self) -> tuple[str, str, str]:
        """The attributes, formatted."""
        median, highest = format_nats(self.kld_median), format_nats(self.kld_999)
        return median, highest, format_share(self.same_top)


class FidelityRecord(_Closed):
    """The result of one run for one approximate strategy.

    Attributes:
        key: the conditions of the measurement.
        traces: names.
        edits: names; only ``none`` if requests were evaluated as recorded.
        answers: number of evaluated answers.
        recovered: share of the tokens lost to exact reuse; None if none were lost.
        closeness: closeness of its answers.
        floor: closeness of a full prefill in other chunks, in the same run.
        tasks_right: share of tasks answered right; None for traces without tasks.
        reference_tasks_right: share of tasks that the full prefill answers right.
        day: UTC day of the run.
        version: version of mlxlab; None where it was not installed.
    """

    key: RecordKey
    traces: tuple[str, ...]
    edits: tuple[str, ...]
    answers: int
    recovered: FiniteFloat | None
    closeness: Closeness
    floor: Closeness
    tasks_right: FiniteFloat | None
    reference_tasks_right: FiniteFloat | None
    day: date
    version: str | None

    def lines(self) -> list[str]:
        """The figures in two lines of text, three with tasks."""
        edits = "none" if self.edits == ("none",) else len(self.edits)
        first = (
            f"Measured {self.day} on {', '.join(self.traces)} "
            f"(edits: {edits}, answers: {self.answers}):"
        )
        if self.recovered is not None:
            first += f" {format_share(self.recovered)} of lost tokens recovered,"
        median, highest, same = self.closeness.figures()
        second = (
            f"KLD median {median}, 99.9% {highest}, same top {same} "
            f"(noise floor: {', '.join(self.floor.figures())})"
        )
        right, reference = self.tasks_right, self.reference_tasks_right
        if right is None or reference is None:
            return [first, second]
        third = (
            f"tasks right: {format_share(right)} "
            f"(full prefill: {format_share(reference)})"
        )
        return [first, second, third]


class _File(_Closed):
    version: Literal[1] = 1
    measurements: tuple[FidelityRecord, ...] = ()


def remember(found: Fidelity, path: Path | None = None) -> None:
    """Keep the figures of approximate strategies, in place of earlier ones.

    Args:
        found: the result of a run.
        path: the file to add to; the model's file in the cache folder if None.

    Raises:
        MlxlabError: the file cannot be written.
        OSError: see :func:`mlxlab.files.cache_folder`.
    """
    new = list(_records(found))
    if not new:
        return
    model = found.manifest["model"]["digest"]
    keys = [record.key for record in new]
    out = path or _path(model)
    with locked(out.parent):
        before = _read(path) if path else _read_own(model)
        kept = [old for old in before if old.key not in keys]
        content = _File(measurements=(*kept, *new)).model_dump(mode="json")
        write_json(content, out, own=path is None)


def recall(key: RecordKey) -> FidelityRecord | None:
    """Return the user's latest figures, else mlxlab's own; None if there are none."""
    found = (*_read_own(key.model), *_read(_PREPARED))
    return next((m for m in found if m.key == key), None)


def known(model: str) -> list[FidelityRecord]:
    """Return all figures for the model with that digest, the latest of each key."""
    found = (*_read(_PREPARED), *_read_own(model))
    own = [m for m in found if m.key.model == model]
    return [m for m in own if recall(m.key) == m]


def _path(digest: str) -> Path:
    return cache_folder() / "fidelity" / f"{digest}.json"


def _read_own(digest: str) -> tuple[FidelityRecord, ...]:
    """Read the user's own figures; a file that others may have written is ignored."""
    try:
        path = _path(digest)
    except FileNotFoundError:  # no cache folder
        return ()
    return _read(path, read_own)


def _read(
    path: Path, read: Callable[[Path], bytes] = Path.read_bytes
) -> tuple[FidelityRecord, ...]:
    """Read the records of a file; none if it is missing or not ours."""
    try:
        return _File.model_validate_json(read(path)).measurements
    except FileNotFoundError:
        return ()
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not of this format"
        log.warning("%s: %s; its figures are ignored", path, reason)
        return ()


def _records(found: Fidelity) -> Iterator[FidelityRecord]:
    manifest = found.manifest
    rows: dict[Hashable, dict[Hashable, Any]] = found.summary().to_dict(orient="index")
    names = dict(zip(found.requests.kind, found.requests.variant, strict=True))
    floor, reference = rows[names["floor"]], rows[names["reference"]]
    for described in manifest["strategies"]:
        if described["exact"]:
            continue
        spec = StrategySpec.parse(described["strategy"], described["rules"])
        row = rows[spec.name]
        yield FidelityRecord(
            key=RecordKey.of(manifest["model"]["digest"], spec),
            traces=tuple(trace["name"] for trace in manifest["traces"]),
            edits=tuple(manifest["edits"]),
            answers=row["requests"],
            recovered=_known(row, "recovered"),
            closeness=_closeness(row),
            floor=_closeness(floor),
            tasks_right=_known(row, "task_right"),
            reference_tasks_right=_known(reference, "task_right"),
            day=date.fromisoformat(manifest["day"]),
            version=manifest["packages"]["mlxlab"],
        )


def _closeness(row: Mapping[Hashable, Any]) -> Closeness:
    return Closeness(**{key: row[key] for key in Closeness.model_fields})


def _known(row: Mapping[Hashable, Any], column: str) -> float | None:
    """Return a figure; None also if the summary has no such column."""
    value = row.get(column)
    return None if pd.isna(value) else float(value)
