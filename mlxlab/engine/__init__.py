"""Runs a model under a cache strategy, on mlx-lm.

Importing this package chooses the BLAS that mlx uses. The choice has to come before
mlx itself is imported.
"""

from mlxlab.backend import prepare
from mlxlab.extras import needs

prepare()

with needs("running a model", "cpu"):
    from mlxlab.engine.disk_folder import DiskFolder
    from mlxlab.engine.disk_store import DiskStore
    from mlxlab.engine.engine import (
        Engine,
        Prefill,
        PrefillProgress,
        Replayed,
        device_name,
    )
    from mlxlab.engine.executor import Executor
    from mlxlab.engine.kv_store import KVStore
    from mlxlab.engine.loading import LoadedModel, Loader, load_model
    from mlxlab.engine.memory import Memory
    from mlxlab.engine.runner import Request, Runner, Stored
    from mlxlab.engine.samplers import (
        Barred,
        BoundedThinking,
        Forced,
        LogitsProcessor,
        Sampler,
    )
    from mlxlab.engine.worker import Worker

__all__ = [
    "Barred",
    "BoundedThinking",
    "DiskFolder",
    "DiskStore",
    "Engine",
    "Executor",
    "Forced",
    "KVStore",
    "LoadedModel",
    "Loader",
    "LogitsProcessor",
    "Memory",
    "Prefill",
    "PrefillProgress",
    "Replayed",
    "Request",
    "Runner",
    "Sampler",
    "Stored",
    "Worker",
    "device_name",
    "load_model",
]
