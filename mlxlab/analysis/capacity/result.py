"""The result of ``plan``: how many agents a machine carries, and what carries more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from mlxlab.analysis.result import Result, describe_traces
from mlxlab.analysis.tables import Forms, format_bounds, format_columns
from mlxlab.sizes import format_size

if TYPE_CHECKING:
    from mlxlab.analysis.plots.picture import Picture

__all__ = ["ASKED", "MEMORY", "Capacity"]

#: The name of the setup that was asked about.
ASKED = "as asked"
#: Names of the setups that differ from it in memory begin like this.
MEMORY = "memory "

_FORMS: Forms = {
    "setup": ("setup", str),
    "carries": ("agents", str),
    "users": ("users", str),
    "reused": ("reused", "{:.1%}".format),
    "ttft_p50_s": ("TTFT s\n50 %", "{:.2f}".format),
    "ttft_p90_s": ("TTFT s\n90 %", "{:.2f}".format),
    "ttft_p99_s": ("TTFT s\n99 %", "{:.2f}".format),
    "queue_p90_s": ("queue s\n90 %", "{:.2f}".format),
    "itl_p50_s": ("ITL s\n50 %", "{:.3f}".format),
    "tokens_per_s": ("tokens\na second", "{:.1f}".format),
    "good": ("in\ntime", "{:.0%}".format),
    "utilisation": ("busy", "{:.0%}".format),
}


@dataclass(frozen=True, eq=False, repr=False)
class Capacity(Result):
    """The result of :func:`mlxlab.plan`.

    Attributes:
        requests: one row per setup and number of users. Columns: ``setup``,
            ``strategy``, ``capacity`` (bytes), ``chunk``, ``users``, ``requests``,
            ``reused`` (share of prompt tokens); with a calibration also ``queue``,
            ``ttft``, ``itl`` and ``total``, each with ``_p50_s``, ``_p90_s`` and
            ``_p99_s``, ``tokens_per_s`` (of answers), ``good`` (share of requests whose
            first token came in time), ``goodput`` (these, a second) and
            ``utilisation``.
        bounds: of one user, who takes all traces in turn.
    """

    kind = "plan"

    @property
    def is_timed(self) -> bool:
        """Whether there was a calibration."""
        return "ttft_p90_s" in self.requests

    def carries(self, setup: str = ASKED) -> int:
        """Return the most users of a setup within the limit; 0 if one is too many."""
        rows = self.requests[self.requests.setup == setup]
        within = rows[rows.ttft_p90_s <= self.manifest["ttft_s"]]
        return int(within.users.max()) if len(within) else 0

    def by_memory(self) -> pd.DataFrame:
        """Return the users that each size of memory carries, all else as asked.

        Columns: ``capacity`` (bytes), ``carries``; the least memory first.
        """
        rows = self.requests.drop_duplicates("setup")
        own = rows[(rows.setup == ASKED) | rows.setup.str.startswith(MEMORY)]
        table = own[["capacity"]].assign(carries=[*map(self.carries, own.setup)])
        return table.sort_values("capacity", ignore_index=True)

    @property
    def title(self) -> str:
        manifest = self.manifest
        name, memory = manifest["model"]["name"], format_size(manifest["memory"])
        what = f"{describe_traces(manifest)}: model {name}, {memory}"
        limit = f", TTFT of 90 % within {manifest['ttft_s']:g} s"
        return f"{what}{limit * self.is_timed}, simulated"

    def lines(self) -> list[str]:
        if not self.is_timed:
            model = self.manifest["model"]["name"]
            if self.manifest["borrowed"]:
                return ["Counts only: another model's layout has no seconds here."]
            command = f"mlxlab calibrate --force --model {model}"
            return [f"Counts only: no seconds of decoding are known here; {command}"]
        found = self.carries()
        most = self.manifest["most"]
        if found >= most:
            return [f"This machine carries {most} agents or more."]
        said = [f"This machine carries {found} agent{'s' * (found != 1)}."]
        doubling = max(2 * found, 1)
        enough = [
            f"{setup} ({self.carries(setup)})"
            for setup in self.requests.setup.unique()
            if setup != ASKED and self.carries(setup) >= doubling
        ]
        what = ", ".join(enough) or "none of the changes that were tried"
        return [*said, f"Enough for {doubling}: {what}."]

    def summary(self) -> pd.DataFrame:
        """Return one row per setup: the one with the most users that it carries.

        Columns: ``setup``, ``carries``, then those of ``requests`` at that number, or
        with one user if it carries none. Without a calibration all rows.
        """
        if not self.is_timed:
            return self.requests
        rows = []
        for setup, own in self.requests.groupby("setup", sort=False):
            carries = self.carries(str(setup))
            at = own[own.users == max(carries, 1)].iloc[[0]]
            rows.append(at.assign(carries=carries))
        return pd.concat(rows, ignore_index=True)

    def tables(self) -> list[pd.DataFrame]:
        tables = [self.requests[self.requests.setup == ASKED].drop(columns="setup")]
        if self.is_timed:
            tables.append(self.summary().drop(columns="users"))
        shown = [pd.DataFrame(format_columns(table, _FORMS)) for table in tables]
        return [*shown, format_bounds(self.bounds)]

    def plot(self) -> Picture:
        """Draw the seconds to the first token over the number of users."""
        from mlxlab.analysis.plots import plot_users

        return plot_users(self)
