"""Calibrations: measured seconds of one machine, and the fitted cost model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import pandas as pd

from mlxlab.analysis.result import Result
from mlxlab.analysis.tables import format_bounds
from mlxlab.models.folder import ModelFolder
from mlxlab.replay.bounds import Bounds, tabulate_bounds
from mlxlab.replay.cost_model import CostModel
from mlxlab.replay.manifest import describe_run

if TYPE_CHECKING:
    from mlxlab.analysis.plots.picture import Picture

__all__ = ["Calibration", "format_check"]

#: Cached tokens and new tokens of the summary.
_STARTS = (0, 4096, 8192, 16384, 32768)
_LENGTHS = (1, 64, 256, 1024, 4096)


@dataclass(frozen=True, eq=False, repr=False)
class Calibration(Result):
    """The result of :func:`mlxlab.calibrate`.

    Attributes:
        requests: one row per measured request. Columns: ``start`` (restored tokens),
            ``stop`` (prompt tokens), ``restore_s``, ``prefill_s``, and ``estimated_s``
            (the cost model's estimate of both).
        bounds: the measured prompts with everything but the last token reused: the
            least seconds to the first token. One row, ``unlimited``.
    """

    kind = "calibrate"

    @classmethod
    def of(
        cls, costs: CostModel, folder: ModelFolder, environment: Mapping[str, Any]
    ) -> Self:
        """Make the result of a fitted cost model.

        Args:
            costs: the cost model, with its points.
            folder: the model.
            environment: device, BLAS and chunk.
        """
        points = costs.points
        requests = pd.DataFrame([point.model_dump() for point in points])
        estimated = [
            costs.restore_s(point.start) + costs.prefill_s(point.start, point.stop)
            for point in points
        ]
        most = [Bounds(point.stop, point.stop - 1, {}, None) for point in points]
        held = max(point.stop for point in points) * folder.layout.token_bytes()
        manifest = describe_run([], folder, [], {}, environment)
        return cls(
            requests=requests.assign(estimated_s=estimated),
            bounds=tabulate_bounds(most, held, costs),
            manifest=manifest | {"costs": costs.model_dump(mode="json")},
        )

    @property
    def costs(self) -> CostModel:
        """The cost model, for the ``costs`` of other verbs."""
        return CostModel.model_validate(self.manifest["costs"])

    @property
    def title(self) -> str:
        costs, model = self.costs, self.manifest["model"]["name"]
        return (
            f"model {model}: {len(costs.points)} points, median error "
            f"{costs.error:.1%}, {costs.device}"
        )

    def summary(self) -> pd.DataFrame:
        """Return one row per number of cached tokens, as far as was measured.

        Columns: ``cached_tokens``, ``restore_s``, and ``prefill_NEW_s``: the seconds to
        compute NEW tokens after the cached ones.
        """
        costs = self.costs
        most = int(self.requests.stop.max())
        return pd.DataFrame(
            {
                "cached_tokens": start,
                "restore_s": costs.restore_s(start),
                **{
                    f"prefill_{n}_s": costs.prefill_s(start, start + n)
                    for n in _LENGTHS
                },
            }
            for start in _STARTS
            if start < most
        )

    def tables(self) -> list[pd.DataFrame]:
        summary = self.summary()
        table = {
            "cached\ntokens": summary.cached_tokens.map("{:,}".format),
            "restore\nms": (summary.restore_s * 1e3).map("{:.1f}".format),
        }
        for new in _LENGTHS:
            seconds = summary[f"prefill_{new}_s"]
            table[f"{new:,} new\nms"] = (seconds * 1e3).map("{:,.0f}".format)
        return [pd.DataFrame(table), format_bounds(self.bounds)]

    def plot(self) -> Picture:
        """Draw the measured seconds and the fitted cost model."""
        from mlxlab.analysis.plots import plot_costs

        return plot_costs(self)


def format_check(found: pd.DataFrame) -> pd.DataFrame:
    """Return the frame of :func:`mlxlab.analysis.calibrate.check_costs` as text."""
    share = "{:.1%}".format
    return pd.DataFrame(
        {
            "strategy": found.index,
            "requests": found.requests.map(str),
            "TTFT error\nmedian": found["median"].map(share),
            "TTFT error\n90 %": found.p90.map(share),
            "sum error": found.total.map(share),
        }
    )
