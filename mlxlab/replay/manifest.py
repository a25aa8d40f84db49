"""What a result must carry for somebody else to judge or repeat it."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from mlxlab.models import ModelFolder
from mlxlab.replay.contenders import Contender
from mlxlab.traces import Trace

__all__ = ["describe_run"]

_PACKAGES = ("mlxlab", "mlx", "mlx-lm", "numpy", "transformers")


def describe_run(
    traces: Iterable[Trace],
    folder: ModelFolder,
    contenders: Iterable[Contender],
    notes: Mapping[str, int],
    environment: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that decides the numbers, as JSON values.

    Args:
        traces: what was replayed.
        folder: the model that rendered and, in a live replay, computed it.
        contenders: what was compared.
        notes: what could not be rendered as meant, and how often.
        environment: device, BLAS and chunk of a live replay; empty when simulated.

    Raises:
        StrategyError: a contender that cannot be made.
    """
    return {
        "traces": [
            {
                "name": trace.name,
                "digest": trace.digest,
                "requests": len(trace.inference),
                "skipped": dict(trace.skipped),
            }
            for trace in traces
        ],
        "model": {
            "name": folder.name,
            "digest": folder.digest,
            "token_bytes": folder.token_bytes,
            "window": folder.window,
        },
        "contenders": [_contender(c, folder.token_bytes) for c in contenders],
        "notes": dict(notes),
        "simulated": not environment,
        **environment,
        # Recorded answers are forced, so nothing is drawn at random.
        "seed": None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _contender(contender: Contender, token_bytes: int) -> dict[str, Any]:
    strategy = contender.make(token_bytes)
    return {
        "strategy": contender.strategy,
        "parameters": dict(strategy.parameters),
        "exact": strategy.exact,
        "rules": list(contender.rules),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
