"""Converts the weights of a GGUF file. A program of its own, because it loads mlx.

So simulations stay free of mlx, only the worker evaluates arrays in their process, and
a file that makes mlx crash ends this program alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mlxlab.errors import MlxlabError
from mlxlab.extras import needs
from mlxlab.models.gguf.architecture import Config, place_weights

if TYPE_CHECKING:
    import mlx.core as mx

__all__ = ["convert", "main"]

_GROUP = 32


def convert(source: Path, folder: Path) -> None:
    """Write the weights of a GGUF file into a folder that holds its ``config.json``.

    Prints a line for each weight.

    Raises:
        MissingExtraError: mlx is not installed.
    """
    with needs("unpacking a GGUF file", "cpu"):
        import mlx.core as mx

    mx.set_default_device(mx.cpu)  # the GPU may be at work for another process
    config: Config = json.loads((folder / "config.json").read_text())
    arrays = mx.load(str(source), format="gguf")
    assert isinstance(arrays, dict)  # for mypy: so it is for GGUF
    weights: dict[str, mx.array] = {}
    for name, (place, _) in place_weights(config):
        found = _typed(_parts(arrays, name, place), config)
        found = {own: _unpaired(own, array, config) for own, array in found.items()}
        mx.eval(*found.values())
        weights |= found
        print(name, flush=True)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})


def _parts(arrays: dict[str, mx.array], name: str, place: str) -> dict[str, mx.array]:
    """Return a weight under its place; a packed one with its scales and biases."""
    found = {place: arrays.pop(name)}
    stem, new = name.removesuffix(".weight"), place.removesuffix(".weight")
    if stem != name and f"{stem}.scales" in arrays:
        for part in ("scales", "biases"):
            found[f"{new}.{part}"] = arrays.pop(f"{stem}.{part}")
    return found


def _typed(parts: dict[str, mx.array], config: Config) -> dict[str, mx.array]:
    """Unpack a weight, unless the configuration keeps it packed."""
    import mlx.core as mx

    dtype: mx.Dtype = getattr(mx, config["dtype"])
    if len(parts) == 1 or "quantization" in config:
        packed = mx.uint32
        return {
            n: a if a.dtype == packed else a.astype(dtype) for n, a in parts.items()
        }
    place = next(iter(parts))
    weight, scales, biases = parts.values()
    bits = weight.shape[1] // scales.shape[1]  # 32 weights of ``bits`` in 32-bit words
    whole = mx.dequantize(
        weight,
        scales.astype(dtype),
        biases.astype(dtype),
        group_size=_GROUP,
        bits=bits,
    )
    return {place: whole}


def _unpaired(place: str, array: mx.array, config: Config) -> mx.array:
    """Undo the order of rows in which llama.cpp keeps queries and keys of llama.

    It turns neighbouring rows, mlx-lm the two halves of a head. Files of other
    architectures keep the halves.
    """
    if config["model_type"] != "llama":
        return array
    if ".q_proj." in place:
        heads = config["num_attention_heads"]
    elif ".k_proj." in place:
        heads = config["num_key_value_heads"]
    else:
        return array
    pairs = array.reshape(heads, config["head_dim"] // 2, 2, -1)
    return pairs.swapaxes(1, 2).reshape(array.shape)


def main() -> int:
    """Convert ``argv[1]`` into the folder ``argv[2]``."""
    try:
        convert(*map(Path, sys.argv[1:]))
    except MlxlabError as error:
        print(error, file=sys.stderr)
        return 2
    return 0
