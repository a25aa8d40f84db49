"""Compares the reuse of a live server with a simulation of the same requests."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from mlxlab.analysis.compare import compare
from mlxlab.errors import TraceError
from mlxlab.models.folder import BUNDLED, ModelFolder, find_model
from mlxlab.traces import Exchange, Trace
from mlxlab.traces.open import Traces, open_recorded
from mlxlab.traces.schema import Configuration

__all__ = ["compare_served"]

#: Parts of a message's usage that add up to its prompt.
_PROMPT = (
    "input_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
)


def compare_served(
    recordings: Traces, *, model: str | ModelFolder = BUNDLED
) -> pd.DataFrame:
    """Simulate recorded requests with the strategy and rules that served them.

    The simulation begins with an empty cache for each strategy of a recording. Equal
    counts are to be expected only if the server began so, too: record from its start,
    or from a change of strategy.

    Args:
        recordings: traces that ``serve`` recorded: names, paths or opened ones.
        model: name, folder or hub repository that served them.

    Returns:
        One row per answered request, in recorded order. Columns: ``recording``,
        ``request``, ``strategy``, ``rules``, ``prompt_tokens`` (live),
        ``reused_live``, ``reused_simulated`` (tokens).

    Raises:
        TraceError: a trace holds no request that ``serve`` answered.
    """
    folder = find_model(model) if isinstance(model, str) else model
    opened = open_recorded(recordings)
    tables = [_compare_one(trace, folder) for trace in opened]
    return pd.concat(tables, ignore_index=True)


def _compare_one(trace: Trace, model: ModelFolder) -> pd.DataFrame:
    served = _group_served(trace)
    if not served:
        raise TraceError(
            f"trace {trace.name}: no request that mlxlab served; give a recording of "
            "`mlxlab serve --record`"
        )
    tables = [_simulate(trace, *own, model) for own in served.items()]
    return pd.concat(tables).sort_values("request", ignore_index=True)


def _group_served(trace: Trace) -> dict[Configuration, list[Exchange]]:
    """Group the answered requests by the strategy and rules that served them."""
    groups: dict[Configuration, list[Exchange]] = {}
    for exchange in trace.inference:
        answer = exchange.response
        if answer and answer.configuration and "usage" in (answer.message or {}):
            groups.setdefault(answer.configuration, []).append(exchange)
    return groups


def _simulate(
    trace: Trace, setting: Configuration, served: list[Exchange], model: ModelFolder
) -> pd.DataFrame:
    """Return a row for each request that one strategy served."""
    result = compare(
        replace(trace, exchanges=tuple(served)),
        [setting.strategy],
        model=model,
        rules=setting.rules,
        simulate=True,
        progress=False,
    )
    usage = pd.DataFrame([_usage(exchange) for exchange in served])
    return pd.DataFrame(
        {
            "recording": trace.name,
            "request": [exchange.id for exchange in served],
            "strategy": setting.strategy,
            "rules": setting.rules,
            "prompt_tokens": usage.sum(axis="columns"),
            "reused_live": usage.cache_read_input_tokens,
            "reused_simulated": result.requests.reused_tokens,
        }
    )


def _usage(exchange: Exchange) -> dict[str, int]:
    """Return the parts of a prompt as its answer counts them, in tokens."""
    assert exchange.response is not None
    assert exchange.response.message is not None
    usage = exchange.response.message["usage"]
    return {part: int(usage.get(part) or 0) for part in _PROMPT}
