"""Searches the best strategy and parameters for traces under a memory budget."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from mlxlab.analysis.fidelity.store import FidelityRecord, known
from mlxlab.analysis.search_space import SearchSpace
from mlxlab.analysis.tuning import Tuning, rank
from mlxlab.errors import StrategyError
from mlxlab.extras import needs
from mlxlab.models.folder import BUNDLED, ModelFolder, find_model
from mlxlab.models.geometry import LayoutLike, read_layout
from mlxlab.models.layout import CacheLayout
from mlxlab.rendering.renderer import Renderer
from mlxlab.rendering.rules import parse_rules
from mlxlab.replay.bounds import find_bounds, tabulate_bounds
from mlxlab.replay.cost_model import CostModel
from mlxlab.replay.manifest import describe_run
from mlxlab.replay.simulator import Simulator
from mlxlab.replay.specs import StrategySpec
from mlxlab.replay.uses import describe_missing
from mlxlab.replay.workload import Workload, open_sources
from mlxlab.sizes import Size, read_size
from mlxlab.strategies import STRATEGIES, ParameterValue, Strategy
from mlxlab.strategies.base import CAPACITY
from mlxlab.traces.open import Traces, open_traces

if TYPE_CHECKING:
    import optuna

__all__ = ["tune"]


def tune(
    traces: Traces,
    *,
    memory: Size = CAPACITY,
    model: str | ModelFolder = BUNDLED,
    layout: LayoutLike | None = None,
    rules: str = "all",
    users: int = 1,
    costs: CostModel | None = None,
    kld: float | None = None,
    disk: Size | None = None,
    trials: int = 60,
    seed: int = 0,
    without: Collection[str] = (),
    progress: bool = True,
) -> Tuning:
    """Find the strategy and parameters with the least time to the first token.

    Each parameter declares the values worth trying (``Parameter.tries``); those that
    mean nothing for the layout are left out. Optuna's tree-structured Parzen estimator
    chooses among them, after one trial of every strategy with its defaults. The best
    trial is made again with each other eviction policy worth trying. Trials
    within the cost model's error are ties, see :func:`mlxlab.analysis.tuning.rank`.

    Args:
        traces: names, paths or opened traces; either recorded or hashed ones.
        memory: bytes or a size such as ``16GiB``, for keys and values.
        model: name, folder or hub repository.
        layout: what a model keeps for its tokens, see
            :func:`mlxlab.models.geometry.read_layout`; None for this model's.
        rules: see :func:`mlxlab.rendering.rules.parse_rules`.
        users: how many traces are replayed at the same time into one cache.
        costs: estimates seconds; None minimises the tokens to compute.
        kld: adds approximate strategies whose KL divergence from a full prefill was
            measured to be at most this, in nats at the 99.9 % quantile. None for exact
            strategies only.
        disk: bytes or a size: tries each exact strategy with this much disk too, and
            says whether it pays. None for no disk.
        trials: number of trials.
        seed: of the search.
        without: names of strategies that are not tried.
        progress: whether to show bars.

    Raises:
        MlxlabError: an unknown name, an unreadable file, or a budget below one block
            or one checkpoint.
    """
    opened = open_traces(traces)
    memory = read_size(memory, "memory")
    folder = find_model(model) if isinstance(model, str) else model
    # A model that cannot be served is refused, whatever the layout to simulate.
    kept = folder.layout
    if layout is not None:
        kept = read_layout(layout, "layout")
    space = SearchSpace(kept, memory, read_size(disk, "disk") if disk else 0)
    space.check(s for s in STRATEGIES.values() if s.exact)
    renderer = Renderer(folder, parse_rules(rules))
    workload = Workload(open_sources(opened, renderer, progress), users)
    approximate = [] if kld is None else _close_enough(folder, renderer.rules, kld)
    tried = [s for s in STRATEGIES.values() if s.exact and s.name not in without]
    candidates = [StrategySpec(s, {}, ()) for s in tried] + approximate
    search = _Search(workload, space, costs)
    found = search.run(candidates, trials, seed, progress)
    specs = [StrategySpec.parse(found.strategy.iloc[0], renderer.rules)]
    manifest = describe_run(
        opened, folder, specs, renderer.notes, {}, layout=kept, costs=costs
    )
    policies = [StrategySpec.parse(text).evict for text in found.strategy]
    return Tuning(
        requests=found,
        bounds=tabulate_bounds(*find_bounds(workload, [memory], kept), costs),
        manifest=manifest
        | {"seed": seed, "memory": memory, "disk": space.disk, "users": users}
        | {"error": costs.error if costs else 0.0}
        | {"servable": _is_accepted(specs[0], folder.layout)}
        | {"warnings": describe_missing(workload, policies)},
        replayed=search.replay(specs[0]),
    )


class _Search:
    """Tries strategies on one workload."""

    def __init__(
        self, workload: Workload, space: SearchSpace, costs: CostModel | None
    ) -> None:
        self.workload = workload
        self.space = space
        self.costs = costs
        self._known: dict[str, dict[str, Any]] = {}

    def run(
        self,
        specs: Sequence[StrategySpec],
        trials: int,
        seed: int,
        progress: bool,
    ) -> pd.DataFrame:
        """Return all trials of these strategies, in the order of :func:`rank`."""
        with needs("tune"):
            import optuna  # slow to import

        logging.getLogger("optuna").setLevel(logging.ERROR)  # our errors say more
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
        candidates = {
            spec.strategy: spec
            for spec in specs
            if spec.exact or _is_accepted(spec, self.space.layout)
        }
        for name, spec in candidates.items():
            first = self._first(spec.policy) if spec.exact else {}
            study.enqueue_trial({"strategy": name, **first}, skip_if_exists=True)
            disk = {key: self.space.disk for key in first if key.endswith(".disk")}
            if disk:
                study.enqueue_trial({"strategy": name, **first, **disk})
        with tqdm(total=trials, desc="tuning", disable=not progress) as bar:
            least = len(candidates) * (2 if self.space.disk else 1)
            for _ in range(max(trials, least)):
                study.optimize(lambda trial: self._try(trial, candidates), n_trials=1)
                bar.update(1)
        found = self._ranked()
        # One may be better still; then its own siblings are tried.
        while left := self._siblings(found.strategy.iloc[0]):
            for spec in left:
                self._known[spec.strategy] = self._measure(spec)
            found = self._ranked()
        return found

    def _ranked(self) -> pd.DataFrame:
        error = self.costs.error if self.costs else 0.0
        return rank(pd.DataFrame(self._known.values()), error)

    def _siblings(self, best: str) -> list[StrategySpec]:
        """Return what differs from the best trial by its eviction, and is not tried."""
        spec = StrategySpec.parse(best)
        if "evict" not in spec.parameters:
            return []
        every = (
            replace(spec, parameters={**spec.parameters, "evict": policy})
            for policy in spec.policy.declared["evict"].tries
        )
        return [own for own in every if own.strategy not in self._known]

    def replay(self, spec: StrategySpec) -> pd.DataFrame:
        """Return what a strategy reuses of each request, see :class:`Tuning`."""
        strategy = spec.make(self.space.layout, unit=self.workload.unit)
        replayer = Simulator(strategy)
        return pd.DataFrame(
            {
                "session": request.session,
                "request": request.id,
                "prompt_tokens": request.tokens,
                "reused_tokens": replayer.replay(request).reused_tokens,
            }
            for request in self.workload
        )

    def _try(
        self, trial: optuna.Trial, candidates: Mapping[str, StrategySpec]
    ) -> float:
        spec = candidates[trial.suggest_categorical("strategy", list(candidates))]
        if spec.exact:
            spec = replace(spec, parameters=self._choose(trial, spec.policy))
        if spec.strategy not in self._known:
            self._known[spec.strategy] = self._measure(spec)
        return float(self._known[spec.strategy]["cost"])

    def _first(self, policy: type[Strategy]) -> dict[str, ParameterValue]:
        """Return the defaults of an exact strategy, by the names of the search."""
        own = self.space.defaults(policy, self.workload.unit)
        return {_name(policy, key, own): value for key, value in own.items()}

    def _choose(
        self, trial: optuna.Trial, policy: type[Strategy]
    ) -> dict[str, ParameterValue]:
        """Let the trial choose parameters; windows decide which others there are."""
        chosen: dict[str, ParameterValue] = {}

        def choose(values: Mapping[str, Sequence[ParameterValue]]) -> None:
            for key, own in values.items():
                name = _name(policy, key, chosen)
                picked = trial.suggest_categorical(name, list(own))
                chosen[key] = cast(ParameterValue, picked)

        choose(self.space.windows(policy))
        choose(self.space.others(policy, self.workload.unit, **chosen))
        if not chosen.get("disk"):
            chosen.pop("disk", None)
        return chosen | self.space.capacity(policy)

    def _measure(self, spec: StrategySpec) -> dict[str, Any]:
        strategy = spec.make(self.space.layout, unit=self.workload.unit)
        replayer = Simulator(strategy, costs=self.costs)
        seconds, prompt, reused, loaded, requests, peak = [], 0, 0, 0, 0, 0
        for request in self.workload:
            outcome = replayer.replay(request)
            seconds.append(outcome.ttft_s)
            prompt += request.tokens
            reused += outcome.reused_tokens
            loaded += outcome.disk_tokens
            peak = max(peak, outcome.stored_bytes)
            requests += 1
        row = {
            "strategy": spec.strategy,
            "name": strategy.name,
            "several": strategy.max_sequences is None or strategy.max_sequences > 1,
            "cost": (prompt - reused) / requests,
            "prompt_tokens": prompt,
            "reused_tokens": reused,
            "stored_bytes": peak,
        }
        if self.space.disk:
            row |= {"disk_tokens": loaded, "disk_bytes": strategy.disk}
        if self.costs is None:
            return row
        ttft = np.array(seconds, dtype=float)
        return row | {
            "cost": ttft.mean(),
            "ttft_mean_s": ttft.mean(),
            "ttft_median_s": np.median(ttft),
            "ttft_p90_s": np.quantile(ttft, 0.9),
        }


def _name(
    policy: type[Strategy], key: str, chosen: Mapping[str, ParameterValue]
) -> str:
    """Name a parameter for Optuna, which wants the same values under one name."""
    windows = "" if key == "windows" else chosen.get("windows", "")
    return f"{policy.name}.{windows}.{key}"


def _is_accepted(spec: StrategySpec, layout: CacheLayout) -> bool:
    """Whether a model of this layout is served with a strategy."""
    try:
        spec.make(layout)
    except StrategyError:
        return False
    return True


def _close_enough(
    folder: ModelFolder, rules: Sequence[str], kld: float
) -> list[StrategySpec]:
    """Return approximate strategies whose measured divergence is within the limit."""

    def within(record: FidelityRecord) -> bool:
        same = record.key.rules == tuple(rules)
        return same and record.closeness.kld_999 <= kld

    keys = [m.key for m in known(folder.digest) if within(m)]
    return [
        StrategySpec(STRATEGIES[key.strategy], key.parameters, ())
        for key in keys
        # Records of other versions may name what this one does not have.
        if key.strategy in STRATEGIES
        and key.parameters.keys() <= STRATEGIES[key.strategy].declared.keys()
    ]
