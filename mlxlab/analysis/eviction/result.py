"""The result of ``evictions``: which eviction policy helps, and how much is left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from mlxlab.analysis.result import Result, describe_sizes, describe_traces
from mlxlab.analysis.tables import Forms, format_columns
from mlxlab.replay.bounds import STORING
from mlxlab.sizes import format_size
from mlxlab.strategies.eviction import DEFAULT

if TYPE_CHECKING:
    from mlxlab.analysis.plots.picture import Picture

__all__ = ["BOUND_NAMES", "LEAST_GAIN", "Evictions"]

#: Points of the reused share up to which a policy gains nothing worth a change.
LEAST_GAIN = 0.2

#: How tables and pictures name the bounds.
BOUND_NAMES = {STORING: "MIN, all stored", "optimal": "MIN"}


def _points(points: float) -> str:
    """Write a gain or loss; none has no minus."""
    return f"{round(points, 1) + 0.0:+.1f}"


def _percent(share: float) -> str:
    return f"{round(share, 2) + 0.0:.0%}"


_FORMS: Forms = {
    "policy": ("points", str),
    "least": ("over lru,\nleast", _points),
    "most": ("over lru,\nmost", _points),
    "to_storing": ("to MIN, all\nstored, mean", "{:.1f}".format),
    "to_optimal": ("to MIN,\nmean", "{:.1f}".format),
    "closed": ("of lru to\nMIN, median", _percent),
}


@dataclass(frozen=True, eq=False, repr=False)
class Evictions(Result):
    """The result of :func:`mlxlab.evictions`.

    Two bounds know all future requests. ``optimal`` is Belady's MIN, which need not
    store the newest sequence; ``storing`` always stores it, as ``lru`` does, and
    otherwise evicts what is used last. Both are exact for the blocks of ``paged``. For
    a model that resumes at checkpoints, they are bounds with free checkpoints. Each
    request counts as stored before the next one is planned: where our server recorded
    requests that ran at once, a policy can exceed them.

    Attributes:
        requests: totals over all requests, one row per policy and size of memory.
            Columns: ``policy``, ``capacity`` (bytes), ``requests``, ``prompt_tokens``,
            ``reused_tokens``, ``evicted`` (tokens), ``stored_bytes`` (peak).
        bounds: one row for ``unlimited`` memory, and per size for ``optimal`` and
            ``storing``.
        curve: what ``lru`` reuses at many sizes, from one pass, see
            :class:`mlxlab.replay.distances.ReuseDistances`. Columns: ``capacity``,
            ``reused_tokens``. Empty where sizes have to be simulated: for other
            strategies than ``paged``, models with checkpoints, and pinned prompts.
    """

    kind = "evictions"

    curve: pd.DataFrame

    @property
    def title(self) -> str:
        manifest, row = self.manifest, self.requests.iloc[0]
        users = f"users: {manifest['users']}, " if manifest["users"] > 1 else ""
        return (
            f"{describe_traces(manifest)}: {row.requests:,} requests, "
            f"{row.prompt_tokens:,} tokens of {describe_sizes(manifest)}, {users}"
            f"{self.strategy}, simulated"
        )

    @property
    def strategy(self) -> str:
        """The strategy whose policies are judged."""
        return str(self.manifest["strategies"][0]["strategy"])

    def summary(self) -> pd.DataFrame:
        """Return one row per policy and size of memory.

        Columns: ``policy``, ``capacity`` (bytes), ``reused`` (share of all prompt
        tokens), ``points`` (over ``lru``, in points of that share), ``to_storing`` and
        ``to_optimal`` (the regret: points that the bound reuses more), ``closed``
        (share of the distance from ``lru`` to ``optimal``; missing where there is
        none).
        """
        rows = self.requests
        reused = rows.reused_tokens / rows.prompt_tokens
        table = rows[["policy", "capacity"]].assign(reused=reused)
        lru = table[table.policy == DEFAULT].set_index("capacity").reused
        gained = reused - rows.capacity.map(lru)
        table["points"] = 100 * gained
        for name in (STORING, "optimal"):
            best = self.bounds[self.bounds.bound == name].set_index("memory").reused
            table[f"to_{name}"] = 100 * (rows.capacity.map(best) - reused)
        table["closed"] = gained / (gained + table.to_optimal / 100).where(
            lambda distance: distance > 0
        )
        return table

    def tables(self) -> list[pd.DataFrame]:
        return [self._shares(), self._distances()]

    def _shares(self) -> pd.DataFrame:
        """Lay out the reused shares: policies and bounds by sizes."""
        rows = self.requests
        sizes = list(rows.capacity.unique())
        share = rows.assign(reused=rows.reused_tokens / rows.prompt_tokens)
        shown = {
            str(policy): own.set_index("capacity").reused
            for policy, own in share.groupby("policy", sort=False)
        }
        for bound, name in BOUND_NAMES.items():
            own = self.bounds[self.bounds.bound == bound]
            shown[name] = own.set_index("memory").reused
        columns = {
            f"reused in\n{format_size(size)}": [
                f"{own[size]:.1%}" for own in shown.values()
            ]
            for size in sizes
        }
        return pd.DataFrame({"policy": list(shown), **columns})

    def _distances(self) -> pd.DataFrame:
        """Lay out each policy's gain and regret over all sizes."""
        groups = self.summary().groupby("policy", sort=False)
        table = pd.DataFrame(
            {
                "least": groups.points.min(),
                "most": groups.points.max(),
                "to_storing": groups.to_storing.mean(),
                "to_optimal": groups.to_optimal.mean(),
                "closed": groups.closed.median(),
            }
        ).reset_index()
        return pd.DataFrame(format_columns(table, _FORMS))

    @property
    def best(self) -> str:
        """The policy that gains most over all sizes; ``lru`` if none pays.

        It pays if it reuses more than 0.2 points more at some size, and more in the
        mean.
        """
        gains = self.summary().groupby("policy", sort=False).points
        name = str(gains.mean().idxmax())
        return name if round(gains.max()[name], 1) > LEAST_GAIN else DEFAULT

    @property
    def held(self) -> list[int]:
        """The sizes in which ``lru`` reuses as much as in unlimited memory."""
        lru = self.requests[self.requests.policy == DEFAULT]
        (most,) = self.bounds[self.bounds.bound == "unlimited"].reused_tokens
        return [int(size) for size in lru.capacity[lru.reused_tokens >= most]]

    def lines(self) -> list[str]:
        """Return what to do, where memory holds everything, and what is left."""
        return [self._verdict(), *self._held(), *self._left()]

    def _verdict(self) -> str:
        best = self.best
        if best == DEFAULT:
            return (
                f"{DEFAULT} is as good as any policy that was tried: nothing to gain."
            )
        rows = self.summary()
        gains = rows[rows.policy == best].set_index("capacity").points
        at = format_size(gains.index.tolist()[gains.argmax()])
        said = f"{best} reuses {gains.max():.1f} points more than {DEFAULT} at {at}"
        if len(gains) > 1:
            said += f", {_points(gains.min())} to {_points(gains.max())} over all sizes"
        joint = "," if ":" in self.strategy else ":"
        return f"{said}: {self.strategy}{joint}evict={best}."

    def _held(self) -> list[str]:
        if not self.held:
            return []
        said = f"{DEFAULT} finds whatever is asked for again: no policy can do better."
        return [f"From {format_size(min(self.held))} on {said}"]

    def _left(self) -> list[str]:
        """Say what knowing the future would gain, where it would gain most."""
        rows = self.summary()
        rows = rows[(rows.policy == DEFAULT) & ~rows.capacity.isin(self.held)]
        if rows.empty:
            return []
        row = rows.iloc[rows.to_optimal.argmax()]
        most, storing, at = row.to_optimal, row.to_storing, format_size(row.capacity)
        if most < LEAST_GAIN:
            return ["Nor would knowing the future gain anything: more memory would."]
        said = f"Knowing the future would gain {most:.1f} points at {at}"
        choice = f"{storing:.1f} by a better choice among what is stored"
        return [f"{said}: {choice}, {most - storing:.1f} by not storing all of it."]

    def plot(self) -> Picture:
        """Draw the reused share over memory: a line per policy, and the bounds."""
        from mlxlab.analysis.plots import plot_evictions

        return plot_evictions(self)
