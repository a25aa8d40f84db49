"""What a server says of the approximate strategies that answer: what was measured.

Downloads nothing and loads no weights, so that it can be asked at any time.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from mlxlab.analysis.fidelity.store import FidelityRecord, RecordKey, recall
from mlxlab.errors import ModelError
from mlxlab.models.folder import find_model
from mlxlab.rendering.rules import parse_rules
from mlxlab.replay.specs import StrategySpec
from mlxlab.server.aliases import Aliases
from mlxlab.strategies import parse_strategy

__all__ = ["list_notices"]


def list_notices(aliases: Aliases) -> list[str]:
    """Lines on each approximate strategy; none if all aliases have exact ones."""
    answering = {(a.model, a.strategy, a.rules): None for a in aliases.values()}
    return [
        line
        for model, strategy, rules in answering
        if not parse_strategy(strategy).exact
        for line in _notice(model, strategy, rules)
    ]


def _notice(model: str, strategy: str, rules: str) -> Iterator[str]:
    yield (
        f"{strategy} on {model} is approximate: "
        "answers may differ from those of a full prefill."
    )
    record = _measured(model, StrategySpec(strategy, parse_rules(rules)))
    if record:
        yield from record.lines()
        return
    command = ["mlxlab", "fidelity", "TRACE", "--model", model]
    command += ["--strategies", strategy]
    if rules != "all":
        command += ["--rules", rules]
    yield "Nothing was measured for it on this model; to do so:"
    yield shlex.join(command)


def _measured(model: str, spec: StrategySpec) -> FidelityRecord | None:
    try:
        digest = find_model(model, download=False).digest
        return recall(RecordKey.of(digest, spec))
    except (ModelError, OSError):
        return None  # what is not here has not been measured here
