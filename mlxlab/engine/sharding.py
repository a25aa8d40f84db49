"""Divides a model among the processes of a group, by mlx-lm's own rules.

Each process keeps some heads of each layer, with their keys and values, and the same
share of each feed-forward part. Embeddings and norms are whole everywhere.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from mlxlab.errors import ModelError

__all__ = ["shard", "weight_bytes"]


def shard(model: Any, group: mx.distributed.Group) -> None:
    """Keep this process's part of a model; reads no weights if they are lazy.

    Args:
        model: from mlx-lm.
        group: all processes.

    Raises:
        ModelError: mlx-lm cannot divide such a model, or not by this number.
    """
    size = group.size()
    if not hasattr(model, "shard"):
        raise ModelError(
            f"mlx-lm cannot divide a model of this kind among {size} processes; "
            "serve it with one"
        )
    before = _counts(model)
    try:
        model.shard(group)
    except (ValueError, RuntimeError, ZeroDivisionError) as error:
        raise ModelError(_refusal(size, str(error))) from None
    for name, after in _counts(model).items():
        whole = before.get(name, after)
        if after != whole and whole % size and after == whole // size:
            raise ModelError(_refusal(size, f"{name.rpartition('.')[2]} is {whole}"))


def weight_bytes(model: Any) -> int:
    """Return the bytes of a model's weights, read or not."""
    weights: Any = tree_flatten(model.parameters())
    return sum(weight.nbytes for _, weight in weights)


def _counts(model: Any) -> dict[str, int]:
    """Return the whole numbers of all modules, such as heads, by path."""
    return {
        f"{path}.{key}": value
        for path, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, int) and not isinstance(value, bool)
    }


def _refusal(size: int, why: str) -> str:
    return f"cannot be divided among {size} processes: {' '.join(why.split())}"
