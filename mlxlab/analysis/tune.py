"""Searches strategy and parameters for somebody's traffic under a memory budget."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from mlxlab.analysis.fidelity.store import FidelityRecord, known
from mlxlab.analysis.tuning import Tuning, rank
from mlxlab.extras import needs
from mlxlab.models.folder import BUNDLED, ModelFolder, find_model
from mlxlab.rendering.renderer import Renderer
from mlxlab.rendering.rules import parse_rules
from mlxlab.replay.bounds import INFINITE, Foresight
from mlxlab.replay.cost_model import CostModel
from mlxlab.replay.manifest import describe_run
from mlxlab.replay.simulator import Simulator
from mlxlab.replay.sources import AnyTrace, open_sources
from mlxlab.replay.specs import StrategySpec, label_rules
from mlxlab.replay.workload import Workload
from mlxlab.strategies import STRATEGIES, Limit, Strategy

if TYPE_CHECKING:
    import optuna

__all__ = ["tune"]


def tune(
    traces: AnyTrace | Sequence[AnyTrace],
    *,
    memory: int,
    model: str | ModelFolder = BUNDLED,
    token_bytes: int | None = None,
    rules: str = "all",
    users: int = 1,
    costs: CostModel | None = None,
    kld: float | None = None,
    trials: int = 60,
    seed: int = 0,
    progress: bool = True,
) -> Tuning:
    """Find the strategy and parameters that answer this traffic soonest.

    Each parameter declares the values worth trying (``Parameter.tries``);
    Optuna's tree-structured Parzen estimator chooses among them. Every strategy is
    tried as it is first. What differs by no more than the calibration's error is a
    tie: then several agents must be safe, and the least memory wins.

    Args:
        traces: recorded or hashed.
        memory: bytes for keys and values.
        model: name, folder or hub repository.
        token_bytes: keys and values of one token, if other than the model's.
        rules: see :func:`mlxlab.rendering.rules.parse_rules`.
        users: traces replayed at the same time.
        costs: what seconds are estimated by; without, computed tokens are minimised.
        kld: the most KL divergence from a full prefill, in nats at the 99.9 %
            quantile, that may be accepted; approximate strategies that were measured
            to be below take part. None for exact ones only.
        trials: how many to try.
        seed: of the search.
        progress: whether to show bars.

    Raises:
        MlxlabError: anything unknown or unreadable, or a budget that holds nothing.
    """
    traces = [traces] if isinstance(traces, AnyTrace) else list(traces)
    folder = find_model(model) if isinstance(model, str) else model
    renderer = Renderer(folder, parse_rules(rules))
    workload = Workload(open_sources(traces, renderer, progress), users)
    token_bytes = token_bytes or folder.token_bytes
    approximate = [] if kld is None else _close_enough(folder, renderer.rules, kld)
    search = _Search(workload, token_bytes, memory, costs)
    found = search.run(approximate, trials, seed, progress)
    foresight = Foresight(workload)
    specs = [StrategySpec.parse(found.strategy.iloc[0], renderer.rules)]
    return Tuning(
        trials=found,
        error=costs.error if costs else 0.0,
        users=users,
        infinite=sum(foresight.reused(INFINITE)),
        finite=sum(foresight.reused(memory // token_bytes)),
        memory=memory,
        model=folder.name,
        rules=label_rules(renderer.rules),
        manifest=describe_run(
            traces,
            folder,
            specs,
            renderer.notes,
            {},
            token_bytes=token_bytes,
            costs=costs,
        )
        | {"seed": seed},
    )


class _Search:
    """Tries strategies out on one workload."""

    def __init__(
        self,
        workload: Workload,
        token_bytes: int,
        memory: int,
        costs: CostModel | None,
    ) -> None:
        self.workload = workload
        self.token_bytes = token_bytes
        self.memory = memory
        self.costs = costs
        self._known: dict[str, dict[str, Any]] = {}

    def run(
        self,
        approximate: Sequence[StrategySpec],
        trials: int,
        seed: int,
        progress: bool,
    ) -> pd.DataFrame:
        """All that was tried, in the order of :func:`rank`."""
        with needs("tune"):
            import optuna  # slow to import, and needed here only

        logging.getLogger("optuna").setLevel(logging.WARNING)
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
        exact = [StrategySpec(s, {}, ()) for s in STRATEGIES.values() if s.exact]
        candidates = {spec.strategy: spec for spec in (*exact, *approximate)}
        for name in candidates:
            study.enqueue_trial({"strategy": name}, skip_if_exists=True)
        with tqdm(total=trials, desc="tuning", disable=not progress) as bar:
            for _ in range(max(trials, len(candidates))):
                study.optimize(lambda trial: self._try(trial, candidates), n_trials=1)
                bar.update(1)
        error = self.costs.error if self.costs else 0.0
        return rank(pd.DataFrame(self._known.values()), error)

    def _try(
        self, trial: optuna.Trial, candidates: Mapping[str, StrategySpec]
    ) -> float:
        spec = candidates[trial.suggest_categorical("strategy", list(candidates))]
        if spec.exact:
            parameters: dict[str, int] = {
                key: trial.suggest_categorical(f"{spec.strategy}.{key}", list(values))
                for key, values in self._space(spec.policy).items()
            }
            if Limit.CAPACITY in spec.policy.limits:
                parameters[spec.policy.limits[Limit.CAPACITY]] = self.memory
            spec = replace(spec, parameters=parameters)
        if spec.strategy not in self._known:
            self._known[spec.strategy] = self._measure(spec)
        return float(self._known[spec.strategy]["cost"])

    def _space(self, policy: type[Strategy]) -> dict[str, tuple[int, ...]]:
        """Return the values to try, by parameter."""
        unit = self.workload.unit
        declared = policy.declared.items()
        return {key: own.tries_in(unit) for key, own in declared if own.tries}

    def _measure(self, spec: StrategySpec) -> dict[str, Any]:
        strategy = spec.make(self.token_bytes, unit=self.workload.unit)
        replayer = Simulator(strategy, costs=self.costs)
        seconds, prompt, reused, requests, peak = [], 0, 0, 0, 0
        for request in self.workload:
            outcome = replayer.replay(request)
            seconds.append(outcome.ttft_s)
            prompt += request.tokens
            reused += outcome.reused_tokens
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
        if self.costs is None:
            return row
        ttft = np.array(seconds, dtype=float)
        return row | {
            "cost": ttft.mean(),
            "ttft_mean_s": ttft.mean(),
            "ttft_median_s": np.median(ttft),
            "ttft_p90_s": np.quantile(ttft, 0.9),
        }


def _close_enough(
    folder: ModelFolder, rules: Sequence[str], kld: float
) -> list[StrategySpec]:
    """Approximate strategies that were measured to be within the limit."""

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
