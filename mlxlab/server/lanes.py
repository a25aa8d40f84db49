"""Strategies that follow a served cache: its own, and others in its shadow.

They see the same prompts in the same order, and store nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mlxlab.analysis.misses.attribution import Attributor, History, RequestAttribution
from mlxlab.analysis.misses.blocks import make_decode
from mlxlab.analysis.misses.losses import find_losses
from mlxlab.errors import StrategyError
from mlxlab.models.folder import ModelFolder
from mlxlab.rendering.rules import parse_rules
from mlxlab.replay.cost_model import recall_costs
from mlxlab.replay.requests import RenderedRequest
from mlxlab.server.aliases import add_disk
from mlxlab.server.explanation import Explanation
from mlxlab.strategies import Plan, Strategy, parse_strategy
from mlxlab.strategies.use import Use

__all__ = ["Followed", "Lane", "Setting"]

log = logging.getLogger(__name__)

#: Two of these that are not served are simulated by default.
_USUAL = ("paged", "prefix", "block-hash")


@dataclass(frozen=True, slots=True)
class Setting:
    """How a request is served.

    Attributes:
        folder: of the model.
        strategy: spec, with its capacity.
        rules: spec.
        credential: whose cache is used.
        chunk: tokens that are computed at a time.
    """

    folder: ModelFolder
    strategy: str
    rules: str
    credential: str
    chunk: int


@dataclass(slots=True)
class Followed:
    """A request that was planned and has not ended.

    Attributes:
        plan: that the lane's own strategy made.
        shadow: plans of the others, by spec.
        attribution: None where it was skipped.
    """

    lane: Lane
    request: RenderedRequest
    plan: Plan
    shadow: dict[str, Plan]
    attribution: RequestAttribution | None


class Lane:
    """Follows one cache.

    Args:
        setting: how its requests are served.
        history: what was computed for this credential and model.
        shadow: specs of other strategies; two usual ones if None. They get the
            capacity and the disk of the served one, unless they name theirs.
    """

    def __init__(
        self, setting: Setting, history: History, shadow: Sequence[str] | None
    ) -> None:
        self._setting = setting
        own = parse_strategy(setting.strategy, layout=setting.folder.layout)
        self._rules = parse_rules(setting.rules)
        decode = make_decode(setting.folder.tokenizer)
        self._attributor = Attributor(own, decode, history)
        if shadow is None:
            shadow = [name for name in _USUAL if name != own.name][:2]
        made = {spec: self._other(spec, own) for spec in shadow}
        self._shadow = {spec: other for spec, other in made.items() if other}
        for strategy in (own, *self._shadow.values()):
            self._time_disk(strategy)

    def plan(self, request: RenderedRequest, plan: Plan, *, explain: bool) -> Followed:
        """Follow the plan of a request.

        Args:
            request: without its answer.
            plan: as it was carried out.
            explain: whether to find the causes, which takes longest.
        """
        attribute = self._attributor.attribute
        return Followed(
            self,
            request,
            self._attributor.strategy.preview(request.prompt),
            {spec: s.preview(request.prompt) for spec, s in self._shadow.items()},
            attribute(request, plan) if explain else None,
        )

    def commit(
        self, own: Followed, length: int, answer: Sequence[int], use: Use
    ) -> None:
        """Follow a commit of this many leading tokens, with the answer so far."""
        request = replace(own.request, answer=np.array(answer, np.int32))
        self._attributor.commit(request, own.plan, length, use)
        computed = request.computed.head(length)
        for spec, strategy in self._shadow.items():
            strategy.commit(computed, own.shadow[spec].head(length), use)

    def explain(self, own: Followed) -> Explanation:
        """Explain a request that has ended."""
        shadow = {spec: plan.reused for spec, plan in own.shadow.items()}
        if own.attribution is None:
            return Explanation(shadow=shadow)
        strategy = self._attributor.strategy
        losses = list(find_losses(own.attribution, strategy, self._rules))
        return Explanation.of(own.attribution, losses, shadow)

    def _other(self, spec: str, own: Strategy) -> Strategy | None:
        """Return a strategy for the shadow; None if the model cannot have it."""
        layout = self._setting.folder.layout
        whole = add_disk(spec, own.disk) if own.disk else spec
        try:
            return parse_strategy(whole, layout=layout, capacity=own.capacity)
        except StrategyError as error:
            log.warning("no shadow: %s", error)
            return None

    def _time_disk(self, strategy: Strategy) -> None:
        """Let a disk be read where that pays, as the server does."""
        costs = recall_costs(self._setting.folder.digest, self._setting.chunk)
        if costs is not None and strategy.tier is not None:
            strategy.tier.pays = costs.loading_pays(strategy.tier)
