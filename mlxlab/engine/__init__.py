"""Runs a model under a cache strategy, on mlx-lm.

Importing this package decides which BLAS mlx uses, because that has to happen before
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
from mlxlab.engine.samplers import Barred, BoundedReasoning, Forced  # noqa: E402
from mlxlab.engine.worker import Worker  # noqa: E402

__all__ = [
    "Barred",
    "BoundedReasoning",
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
