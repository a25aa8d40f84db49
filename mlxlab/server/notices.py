"""Notices about the approximate strategies in use: their measured fidelity.

Nothing is downloaded and no weights are loaded, so notices are always available.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from mlxlab.analysis.fidelity.store import FidelityRecord, RecordKey, recall
from mlxlab.errors import ModelError
from mlxlab.models.folder import find_model
from mlxlab.replay.specs import StrategySpec
from mlxlab.server.aliases import Aliases

__all__ = ["list_notices"]


def list_notices(aliases: Aliases) -> list[str]:
    """Return lines on each approximate strategy; none if all are exact."""
    answering = {(a.model, a.spec): a.rules for a in aliases.values()}
    return [
        line
        for (model, spec), rules in answering.items()
        if not spec.exact
        for line in _notice(model, spec, rules)
    ]


def _notice(model: str, spec: StrategySpec, rules: str) -> Iterator[str]:
    yield (
        f"{spec.strategy} on {model} is approximate: "
        "answers may differ from those of a full prefill."
    )
    record = _measured(model, spec)
    if record:
        yield from record.lines()
        return
    command = ["mlxlab", "fidelity", "TRACE", "--model", model]
    command += ["--strategies", spec.strategy]
    if rules != "all":
        command += ["--rules", rules]
    yield "Nothing was measured for it on this model; to do so:"
    yield shlex.join(command)


def _measured(model: str, spec: StrategySpec) -> FidelityRecord | None:
    try:
        digest = find_model(model, download=False).digest
        return recall(RecordKey.of(digest, spec))
    except (ModelError, OSError):
        return None  # a model that is not here has not been measured here
