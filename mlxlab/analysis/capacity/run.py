"""``plan``: how many agents a machine carries, by simulating it in time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from mlxlab.analysis.capacity.result import ASKED, MEMORY, Capacity
from mlxlab.errors import ConfigError
from mlxlab.models.folder import BUNDLED, ModelFolder, find_model
from mlxlab.models.geometry import LayoutLike, read_layout
from mlxlab.models.layout import CacheLayout
from mlxlab.rendering.renderer import Renderer
from mlxlab.replay.bounds import find_bounds, tabulate_bounds
from mlxlab.replay.clock.arrivals import Sessions
from mlxlab.replay.clock.server import ClockedServer
from mlxlab.replay.clock.timing import Service
from mlxlab.replay.cost_model import CHUNK, CostModel
from mlxlab.replay.manifest import describe_run
from mlxlab.replay.simulator import Simulator
from mlxlab.replay.specs import StrategySpec
from mlxlab.replay.uses import describe_missing
from mlxlab.replay.workload import Sources, Workload, open_sources
from mlxlab.sizes import Size, format_size, read_size
from mlxlab.strategies.base import CAPACITY
from mlxlab.strategies.eviction import DEFAULT as LRU
from mlxlab.traces.open import Traces, open_traces

__all__ = ["plan"]

#: Bytes of the disk that is tried.
_DISK = 64 << 30
_SHARES = (50, 90, 99)
_TIMES = ("queue_s", "ttft_s", "itl_s", "total_s")


def plan(
    traces: Traces,
    strategy: str = "paged",
    *,
    memory: Size = CAPACITY,
    ttft: float = 5.0,
    most: int = 64,
    model: str | ModelFolder = BUNDLED,
    layout: LayoutLike | None = None,
    rules: str = "all",
    costs: CostModel | None = None,
    progress: bool = True,
) -> Capacity:
    """Find how many agents a machine carries, and what would carry twice as many.

    Each user replays traces with their recorded think times against a simulated server,
    see :class:`mlxlab.replay.clock.server.ClockedServer`. Users are doubled until 90 %
    of the requests get their first token later than the limit; then bisection finds the
    number. The same is done with half, twice and four times the memory, with a disk,
    with the policy ``residual`` and with smaller chunks.

    Args:
        traces: names, paths or opened traces; either recorded or hashed ones. Where
            there are fewer than users, they are taken again with other tokens.
        strategy: ``name[:key=value,...][@rules]``.
        memory: bytes that the cache holds.
        ttft: limit of the seconds to the first token.
        most: users to try at most.
        model: name, folder or hub repository.
        layout: what a model keeps for its tokens; None for this model's.
        rules: default rules.
        costs: this machine's calibration; without seconds of decoding, tokens are
            counted only.
        progress: whether to show a bar.

    Raises:
        MlxlabError: an unknown name, an unreadable file, or a limit out of range.
    """
    if not ttft > 0 or most < 1:
        raise ConfigError("plan: give a ttft of more than 0 s, and most of 1 or more")
    opened = open_traces(traces)
    folder = find_model(model) if isinstance(model, str) else model
    kept = folder.layout if layout is None else read_layout(layout, "layout")
    size = read_size(memory, "memory")
    spec = StrategySpec.parse(strategy, rules, size)
    timed = costs if costs is not None and costs.decode is not None else None
    chunk = CHUNK if timed is None else timed.machine.chunk
    asked = _Setup(ASKED, spec, chunk)
    asked.spec.make(kept)  # refused before any work
    renderer = Renderer(folder, spec.rules)
    crowd = _Crowd(open_sources(opened, renderer, progress), kept, timed, ttft)
    bounds = find_bounds(Workload(crowd.sources), [size], kept)
    with tqdm(desc="simulating", unit="run", disable=not progress) as bar:
        rows = []
        setups = [asked, *(asked.changes() if timed else ())]
        for setup in setups:
            for row in crowd.search(setup, most):
                rows.append(row)
                bar.update(1)
    manifest = describe_run(
        opened, folder, [spec], renderer.notes, {}, layout=kept, costs=timed
    )
    found = pd.DataFrame(rows).sort_values(["users"], kind="stable")
    order = list(dict.fromkeys(row["setup"] for row in rows))
    found = found.sort_values("setup", key=lambda s: s.map(order.index), kind="stable")
    return Capacity(
        requests=found.reset_index(drop=True),
        bounds=tabulate_bounds(*bounds, timed),
        manifest={
            **manifest,
            "memory": size,
            "ttft_s": ttft,
            "most": most,
            "borrowed": layout is not None,
            "warnings": describe_missing(
                Workload(crowd.sources),
                [setup.spec.evict for setup in setups],
                clocked=True,
            ),
        },
    )


@dataclass(frozen=True, slots=True)
class _Setup:
    """A machine to simulate."""

    name: str
    spec: StrategySpec
    chunk: int

    def changes(self) -> Iterator[_Setup]:
        """Yield what may carry more, and half the memory."""
        spec, size = self.spec, self.spec.capacity or CAPACITY
        given, declared = spec.parameters, spec.policy.declared
        if "capacity" in declared and "capacity" not in given:
            for other in (size // 2, 2 * size, 4 * size):
                name = f"{MEMORY}{format_size(other)}"
                yield _Setup(name, replace(spec, capacity=other), self.chunk)
        if spec.exact and "disk" in declared and not given.get("disk"):
            yield self._with("disk", _DISK, f"disk {format_size(_DISK)}")
        if "evict" in declared and given.get("evict", LRU) == LRU:
            yield self._with("evict", "residual", "evict=residual")
        if self.chunk >= 512:
            chunk = self.chunk // 4
            yield _Setup(f"chunk {chunk}", spec, chunk)

    def _with(self, key: str, value: int | str, name: str) -> _Setup:
        spec = replace(self.spec, parameters={**self.spec.parameters, key: value})
        return _Setup(name, spec, self.chunk)


class _Crowd:
    """Lets any number of users ask a setup."""

    def __init__(
        self,
        sources: Sources,
        layout: CacheLayout,
        costs: CostModel | None,
        ttft: float,
    ) -> None:
        self.sources = sources
        self.layout = layout
        self.costs = costs
        self.ttft = ttft
        self._sessions: dict[int, Sessions] = {}

    def search(self, setup: _Setup, most: int) -> Iterator[dict[str, Any]]:
        """Yield rows of ever more users, then of those around the limit."""
        carries, users = 0, 1
        while users <= most:
            row = self._row(setup, users)
            yield row
            if row.get("ttft_p90_s", 0.0) > self.ttft:
                break
            carries, users = users, min(2 * users, most) if users < most else most + 1
        while users - carries > 1 and users <= most:
            middle = (carries + users) // 2
            row = self._row(setup, middle)
            yield row
            if row["ttft_p90_s"] > self.ttft:
                users = middle
            else:
                carries = middle

    def _row(self, setup: _Setup, users: int) -> dict[str, Any]:
        unit = Workload(self.sources).unit
        strategy = setup.spec.make(self.layout, unit=unit)
        if users not in self._sessions:
            self._sessions[users] = Sessions(self.sources, users)
        sessions = self._sessions[users]
        known = {
            "setup": setup.name,
            "strategy": setup.spec.name,
            "capacity": strategy.capacity,
            "chunk": setup.chunk,
            "users": users,
            "requests": len(sessions.requests),
        }
        if self.costs is None:
            counted = Simulator(strategy)
            reused = tokens = 0
            for request in Workload(self.sources, users):
                reused += counted.replay(request).reused_tokens
                tokens += request.tokens
            return {**known, "reused": reused / tokens}
        server = ClockedServer(strategy, self.costs, chunk=setup.chunk)
        served = server.serve(sessions.requests, sessions.schedule())
        return {**known, **_measures(served, self.ttft)}


def _measures(served: Service, ttft: float) -> dict[str, float]:
    times = {
        f"{name.removesuffix('_s')}_p{share}_s": served.quantile(
            share / 100, attrgetter(name)
        )
        for name in _TIMES
        for share in _SHARES
    }
    return {
        "reused": served.reused,
        **times,
        "tokens_per_s": served.tokens_per_s,
        "good": served.good(ttft),
        "goodput": served.goodput(ttft),
        "utilisation": served.utilisation,
    }
