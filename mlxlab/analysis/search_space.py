"""The parameters that a tuning tries: those with a meaning for a model's layout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from mlxlab.errors import StrategyError
from mlxlab.models.layout import CacheLayout, Windows
from mlxlab.replay.specs import StrategySpec
from mlxlab.sizes import format_size
from mlxlab.strategies import Limit, ParameterValue, Strategy

__all__ = ["SearchSpace"]

Values: TypeAlias = Mapping[str, tuple[ParameterValue, ...]]
"""The values to try, by parameter."""


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """What can be chosen for a model within a budget, and is served then.

    Attributes:
        layout: what the model keeps.
        memory: the budget in bytes.
        disk: bytes on disk that may be used too; 0 for none.
    """

    layout: CacheLayout
    memory: int
    disk: int = 0

    def check(self, policies: Iterable[type[Strategy]]) -> None:
        """Refuse a budget that does not suffice for each strategy.

        Raises:
            StrategyError: it holds no block, or no checkpoint.
        """
        if not any(self._holds(windows, 100) for windows in self._windows()):
            size = min(map(self.layout.checkpoint_bytes, self._windows()))
            raise StrategyError(
                f"memory={format_size(self.memory)} holds no checkpoint of "
                f"{format_size(size)}; give more"
            )
        for policy in policies:
            given = self.defaults(policy, 1) | self.capacity(policy)
            if self.disk and "disk" in policy.declared:
                given["disk"] = self.disk
            StrategySpec(policy, given, ()).make(self.layout)

    def capacity(self, policy: type[Strategy]) -> dict[str, ParameterValue]:
        """Return the budget as a parameter of a strategy that has one."""
        name = policy.limits.get(Limit.CAPACITY)
        return {name: self.memory} if name else {}

    def windows(self, policy: type[Strategy]) -> Values:
        """Return the ways to keep window layers, if the model has any."""
        if not self.layout.windows or "windows" not in policy.declared:
            return {}
        tried = policy.declared["windows"].tries
        return {"windows": tuple(w for w in tried if self._holds(Windows(str(w)), 100))}

    def others(
        self,
        policy: type[Strategy],
        unit: int,
        windows: ParameterValue = Windows.CHECKPOINTS.value,
    ) -> Values:
        """Return the values of all other parameters.

        Args:
            policy: the strategy.
            unit: tokens that one id of a prompt stands for.
            windows: how the store keeps window layers.
        """
        kept = Windows(str(windows))
        unused = {"windows", "checkpoints", "share"}
        if self.layout.checkpoint_bytes(kept):
            unused = {"windows", policy.limits.get(Limit.BLOCK, "")}
        found = {
            key: own.tries_in(unit)
            for key, own in policy.declared.items()
            if own.tries and key not in unused
        }
        if "share" in found:
            found["share"] = self._shares(kept, found["share"])
        if self.disk and policy.exact and "disk" in policy.declared:
            found["disk"] = (0, self.disk)
        if (block := policy.limits.get(Limit.BLOCK)) in found:
            found[block] = self._blocks(kept, found[block])
        return found

    def defaults(self, policy: type[Strategy], unit: int) -> dict[str, ParameterValue]:
        """Return the default of each parameter, or the first value where it is none."""
        chosen = _first(policy, self.windows(policy))
        return chosen | _first(policy, self.others(policy, unit, **chosen))

    def _windows(self) -> list[Windows]:
        return list(Windows) if self.layout.windows else [Windows.CHECKPOINTS]

    def _holds(self, windows: Windows, share: int) -> bool:
        """Whether a share of the budget holds a checkpoint."""
        size = self.layout.checkpoint_bytes(windows)
        return self.memory * share // 100 >= size

    def _shares(
        self, windows: Windows, tried: tuple[ParameterValue, ...]
    ) -> tuple[ParameterValue, ...]:
        """Return the shares that hold a checkpoint; the whole budget if no other."""
        fit = tuple(share for share in tried if self._holds(windows, int(share)))
        return fit or (100,)

    def _blocks(
        self, windows: Windows, tried: tuple[ParameterValue, ...]
    ) -> tuple[ParameterValue, ...]:
        """Return the blocks that the budget holds; the smallest if it holds none."""
        size = self.layout.token_bytes(windows)
        fit = tuple(block for block in tried if int(block) * size <= self.memory)
        return fit or (min(tried, key=int),)


def _first(policy: type[Strategy], values: Values) -> dict[str, ParameterValue]:
    declared = policy.declared
    return {
        key: declared[key].default if declared[key].default in own else own[0]
        for key, own in values.items()
    }
