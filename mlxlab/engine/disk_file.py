"""Keys, values and checkpoints as the bytes of a safetensors file.

Arrays are evaluated here, so all calls must run on the worker thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import mlx.core as mx

from mlxlab.engine.kv_store import Rows
from mlxlab.engine.layer_caches import TokenRows
from mlxlab.engine.working_cache import Checkpoint

__all__ = ["pack_checkpoint", "pack_rows", "unpack_checkpoint", "unpack_rows"]


def pack_rows(rows: Sequence[TokenRows | None], start: int, stop: int) -> bytes:
    """Return positions ``[start, stop)`` of the rows of all caches."""
    arrays: dict[str, mx.array] = {}
    for i, own in enumerate(rows):
        if own is not None:
            part = own.part(start, stop)
            arrays |= {f"{i}.keys": part.keys, f"{i}.values": part.values}
    return _pack(arrays, {"caches": str(len(rows))})


def unpack_rows(data: bytes, length: int) -> Rows:
    """Return the rows of all caches.

    Args:
        data: from :func:`pack_rows`.
        length: positions.

    Raises:
        ValueError: the data holds something else.
    """
    arrays, facts = _unpack(data)
    rows = tuple(
        TokenRows(arrays[f"{i}.keys"], arrays[f"{i}.values"])
        if f"{i}.keys" in arrays
        else None
        for i in range(int(facts.get("caches", "-1")))
    )
    held = [own.keys.shape[2] for own in rows if own is not None]
    if 2 * len(held) != len(arrays) or any(own != length for own in held):
        raise ValueError("not these rows")
    return rows


def pack_checkpoint(checkpoint: Checkpoint) -> bytes:
    """Return the state and windows of all layers."""
    arrays = {
        f"{i}.{j}": array
        for i, snapshot in enumerate(checkpoint)
        for j, array in enumerate(snapshot)
        if array is not None
    }
    sizes = ",".join(str(len(snapshot)) for snapshot in checkpoint)
    return _pack(arrays, {"snapshots": sizes})


def unpack_checkpoint(data: bytes) -> Checkpoint:
    """Return what :func:`pack_checkpoint` packed.

    Raises:
        ValueError: the data holds something else.
    """
    arrays, facts = _unpack(data)
    if "snapshots" not in facts:
        raise ValueError("no checkpoint")
    sizes = facts["snapshots"].split(",")
    return tuple(
        tuple(arrays.get(f"{i}.{j}") for j in range(int(size)))
        for i, size in enumerate(sizes)
    )


def _pack(arrays: dict[str, mx.array], facts: dict[str, str]) -> bytes:
    file = BytesIO()
    mx.save_safetensors(file, arrays, facts)
    return file.getvalue()


def _unpack(data: bytes) -> tuple[dict[str, mx.array], dict[str, str]]:
    try:
        found: Any = mx.load(BytesIO(data), format="safetensors", return_metadata=True)
        arrays, facts = found
        mx.eval(list(arrays.values()))
    except RuntimeError as error:
        raise ValueError(str(error)) from None
    return arrays, facts
