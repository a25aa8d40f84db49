"""Runs a model under a cache strategy, on mlx-lm.

Importing this package chooses the BLAS that mlx uses. The choice has to come before
mlx itself is imported.
"""

from mlxlab import blas

blas.preload()

from mlxlab.engine.engine import (  # noqa: E402
    Engine,
    LogitsProcessor,
    Prefill,
    PrefillProgress,
    Replayed,
    Sampler,
    device_name,
    load_model,
)
from mlxlab.engine.kv_store import KVStore  # noqa: E402
from mlxlab.engine.samplers import Barred, BoundedThinking, Forced  # noqa: E402
from mlxlab.engine.worker import Worker  # noqa: E402

__all__ = [
    "Barred",
    "BoundedThinking",
    "Engine",
    "Forced",
    "KVStore",
    "LogitsProcessor",
    "Prefill",
    "PrefillProgress",
    "Replayed",
    "Sampler",
    "Worker",
    "device_name",
    "load_model",
]
