"""Quantises a model's weights, to compare its divergence with that of cache reuse.

The copy is neither faster nor smaller: plain weights stay plain and are only rounded.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from mlxlab.errors import ModelError

__all__ = ["quantize_weights", "stored_bits"]

#: Weights per scale and offset; the first size that divides a row is used.
_GROUP_SIZES = (64, 32)


def quantize_weights(model: Any, bits: int) -> Any:
    """Return a copy of ``model`` with its matrices and embeddings rounded to ``bits``.

    Rounds to nearest in groups of 64 or 32, as ``mlx_lm.convert`` does. Norms, biases
    and matrices with rows that neither size divides stay unchanged. Evaluates arrays.

    Args:
        model: from :func:`mlxlab.engine.load_model`. The copy shares its unrounded
            weights.
        bits: 2, 3, 4, 5, 6 or 8.

    Raises:
        ModelError: the weights are already stored with this many bits or fewer.
    """
    own = stored_bits(model)
    if own is not None and bits >= own:
        raise ModelError(
            f"rounding to {bits} bits: the weights are stored with {own} bits; "
            "give fewer"
        )
    # deepcopy reuses arrays in the memo. They are replaced later, never written to.
    flat: Any = tree_flatten(model.parameters())
    rounded = deepcopy(model, {id(array): array for _, array in flat})
    for module in rounded.modules():
        if _is_quantized(module):
            _requantize(module, bits)
        elif hasattr(module, "to_quantized"):
            _round(module, bits)
    mx.eval(rounded.parameters())
    return rounded


def stored_bits(model: Any) -> int | None:
    """Return the lowest bits per weight; None if no weights are quantised."""
    return min((m.bits for m in model.modules() if _is_quantized(m)), default=None)


def _is_quantized(module: Any) -> bool:
    return "scales" in module and hasattr(module, "bits")


def _round(module: Any, bits: int) -> None:
    if size := _group_size(module.weight):
        quantized = mx.quantize(module.weight, group_size=size, bits=bits)
        module.weight = mx.dequantize(*quantized, group_size=size, bits=bits)


def _requantize(module: Any, bits: int) -> None:
    weight = mx.dequantize(
        module.weight,
        module.scales,
        module.get("biases"),
        group_size=module.group_size,
        bits=module.bits,
        mode=module.mode,
    )
    if size := _group_size(weight):
        module.weight, module.scales, module.biases = mx.quantize(
            weight, group_size=size, bits=bits
        )
        module.group_size, module.bits, module.mode = size, bits, "affine"


def _group_size(weight: mx.array) -> int:
    """Return the first group size that divides a row, or 0."""
    width = weight.shape[-1]
    return next((size for size in _GROUP_SIZES if width % size == 0), 0)
