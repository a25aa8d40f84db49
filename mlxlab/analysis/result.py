"""Results: the object that every verb returns, and how it is shown and stored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from html import escape
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, ClassVar, Self

import pandas as pd

from mlxlab.analysis.tables import (
    html_table,
    list_records,
    read_records,
    text_table,
)
from mlxlab.errors import MlxlabError
from mlxlab.files import read_json, write_json
from mlxlab.sizes import format_size

if TYPE_CHECKING:
    from mlxlab.analysis.plots.picture import Picture

__all__ = ["Result", "describe_replay", "describe_traces", "read_result"]

#: Result classes by verb, as names: reading one kind must not import all of them.
_KINDS = {
    "compare": "mlxlab.analysis.comparison:Comparison",
    "audit": "mlxlab.analysis.audit.result:Audit",
    "misses": "mlxlab.analysis.misses.result:Misses",
    "fidelity": "mlxlab.analysis.fidelity.result:Fidelity",
    "sweep": "mlxlab.analysis.sweep:Sweep",
    "evictions": "mlxlab.analysis.eviction.result:Evictions",
    "plan": "mlxlab.analysis.capacity.result:Capacity",
    "tune": "mlxlab.analysis.tuning:Tuning",
    "calibrate": "mlxlab.analysis.calibration:Calibration",
    "doctor": "mlxlab.analysis.doctor.result:Diagnosis",
}

#: Significant digits of a float in a file: more than any measurement has.
_DIGITS = 6


@dataclass(frozen=True, eq=False, repr=False)
class Result(ABC):
    """The result of one verb.

    Attributes:
        requests: the rows that were measured; each class documents its columns.
        bounds: the most that could be reused, one row per bound, see
            :func:`mlxlab.replay.bounds.tabulate_bounds`.
        manifest: everything that decided the numbers, see
            :func:`mlxlab.replay.manifest.describe_run`.
    """

    #: The verb that makes results of this class.
    kind: ClassVar[str]

    requests: pd.DataFrame
    bounds: pd.DataFrame
    manifest: Mapping[str, Any]

    @property
    @abstractmethod
    def title(self) -> str:
        """One or two lines: traces, model, and the main number."""

    @abstractmethod
    def summary(self) -> pd.DataFrame:
        """Return the numbers that answer the verb's question, as numbers."""

    @abstractmethod
    def tables(self) -> list[pd.DataFrame]:
        """Return the summary and the bounds as text under short headings."""

    @abstractmethod
    def plot(self) -> Picture:
        """Draw the picture that answers the verb's question."""

    def lines(self) -> list[str]:
        """Return the result in sentences; most classes need none."""
        return []

    @property
    def assumed(self) -> list[str]:
        """What prompts lack, or what was assumed of them: it decides all numbers."""
        return list(self.manifest.get("assumed", ()))

    def heading(self) -> list[str]:
        """Return the lines above the tables: what was assumed, title, sentences."""
        return [*self.assumed, *self.title.split("\n"), *self.lines()]

    @property
    def notes(self) -> list[str]:
        """Warnings, the BLAS in use, the source of estimates, and skipped content."""
        manifest = self.manifest
        return [
            *manifest.get("warnings", ()),
            *([f"BLAS: {manifest['blas']}"] if "blas" in manifest else []),
            *([_estimate(manifest)] if "estimated" in manifest else []),
            *(
                f"trace {trace['name']}: {reason} ({times:,} times)"
                for trace in manifest.get("traces", ())
                for reason, times in trace.get("skipped", {}).items()
            ),
            *(
                f"{note} ({times:,} times)"
                for note, times in manifest.get("notes", {}).items()
            ),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values.

        They hold ``kind``, ``manifest``, ``summary``, a list of records for each frame,
        and ``types``: the type of each frame's columns. Floats have six significant
        digits.
        """
        frames = dict(self._frames())
        summary = self.summary()
        if summary.index.names != [None]:
            summary = summary.reset_index()
        return {
            "kind": self.kind,
            "manifest": self.manifest,
            "summary": list_records(_rounded(summary)),
            **{name: list_records(_rounded(frame)) for name, frame in frames.items()},
            "types": {
                name: {str(c): str(dtype) for c, dtype in frame.dtypes.items()}
                for name, frame in frames.items()
            },
        }

    def to_json(self, path: str | Path) -> None:
        """Write :meth:`to_dict` as JSON, whole or not at all.

        Args:
            path: the file; gzipped if the name ends in ``.gz``.

        Raises:
            MlxlabError: the file cannot be written.
        """
        write_json(self.to_dict(), path)

    @classmethod
    def read_json(cls, path: str | Path) -> Self:
        """Read a result that :meth:`to_json` wrote.

        Raises:
            MlxlabError: the file cannot be read, or holds something else.
        """
        found = read_result(path)
        if not isinstance(found, cls):
            raise MlxlabError(
                f"{path}: a result of mlxlab {found.kind}; give one of {cls.kind}"
            )
        return found

    def _frames(self) -> Iterator[tuple[str, pd.DataFrame]]:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, pd.DataFrame):
                yield field.name, value

    def __repr__(self) -> str:
        tables = [text_table(table) for table in self.tables()]
        return "\n\n".join(
            filter(
                None,
                [
                    "\n".join(self.heading()),
                    *tables,
                    "\n".join(self.notes),
                ],
            )
        )

    def _repr_html_(self) -> str:
        title = "<br>".join(map(escape, self.title.split("\n")))
        lines = self._html_lines()
        tables = "".join(map(html_table, self.tables()))
        notes = "".join(f"<p><small>{escape(note)}</small></p>" for note in self.notes)
        assumed = "".join(f"<p>{escape(line)}</p>" for line in self.assumed)
        head = f"{assumed}<p><strong>{title}</strong></p>"
        return f"<div>{head}{lines}{tables}{notes}</div>"

    def _html_lines(self) -> str:
        return "".join(f"<p>{escape(line)}</p>" for line in self.lines())


def read_result(path: str | Path) -> Result:
    """Read a result of any verb from the JSON file that ``to_json`` wrote.

    Raises:
        MlxlabError: the file cannot be read, or holds something else.
    """
    content = read_json(path)
    try:
        kind: type[Result] = resolve_name(_KINDS[content["kind"]])
        frames = {
            name: read_records(content[name], types)
            for name, types in content["types"].items()
        }
        return kind(manifest=content["manifest"], **frames)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise MlxlabError(
            f"{path}: no result in it; give a file that to_json or --json wrote"
        ) from None


def describe_traces(manifest: Mapping[str, Any]) -> str:
    """Return the names of the traces, or their number if there are many."""
    names = [trace["name"] for trace in manifest["traces"]]
    return ", ".join(names) if len(names) < 4 else f"{len(names)} traces"


def describe_sizes(manifest: Mapping[str, Any]) -> str:
    """Return the bytes of a token, and of a checkpoint where the model needs one."""
    model = manifest["model"]
    sizes = [model["token_bytes"], model["checkpoint_bytes"]]
    return "+".join(format_size(size) for size in sizes if size)


def describe_replay(manifest: Mapping[str, Any], requests: pd.DataFrame) -> str:
    """Return one line: traces, number of requests, model, and device or simulated."""
    number = len(requests[["session", "request"]].drop_duplicates())
    how = "simulated" if manifest["simulated"] else manifest["device"]
    model = manifest["model"]["name"]
    return f"{describe_traces(manifest)}: {number} requests, model {model}, {how}"


def _estimate(manifest: Mapping[str, Any]) -> str:
    estimated = manifest["estimated"]
    day, off = estimated["calibrated"], f"{estimated['median_error']:.0%}"
    source = f"{estimated['points']} points of {day}, median error {off}"
    subject = "seconds" if manifest["simulated"] else "seconds of bounds"
    if manifest["simulated"] and "endpoints" in manifest:
        subject = "seconds of strategies and bounds"
    return f"{subject} are estimated from {source}"


def _rounded(frame: pd.DataFrame) -> pd.DataFrame:
    """Round floats to significant digits: decimals would lose small divergences."""
    floats = frame.select_dtypes("float").columns
    return frame.assign(**{c: frame[c].map(_round) for c in floats})


def _round(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
