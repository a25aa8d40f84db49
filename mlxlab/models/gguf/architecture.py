"""What llama.cpp's architectures are in mlx-lm: configuration, and names of weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import pi, prod
from pathlib import Path
from reprlib import repr as short
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlxlab.errors import ModelError
from mlxlab.models.gguf.header import QUANTIZED, Header, Tensor, open_file

__all__ = ["Config", "check_tensors", "place_weights", "read_config"]

Config: TypeAlias = dict[str, Any]
"""The content of ``config.json``."""

Place: TypeAlias = tuple[str, tuple[int, ...]]
"""A weight's name in mlx-lm, and its shape."""

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
#: Keys behind the architecture's name. Another one may change what is computed.
_KNOWN = {
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "tensor_data_layout",
    "vocab_size",
}
_ROPE_FACTORS = "rope_freqs.weight"
#: Llama 3's constants beside its factor; they are the same in 3.1, 3.2 and 3.3.
_LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
#: Models with fewer weights become float32: on a CPU, their prefill is ten times
#: faster than that of packed weights, at a gigabyte at most.
_FLOAT32_BELOW = 2**28


def read_config(header: Header, path: Path) -> Config:
    """Return mlx-lm's configuration of the model in a GGUF file.

    ``quantization`` is there if packed weights are to stay packed.

    Raises:
        ModelError: mlxlab does not know the architecture, or one of its parameters.
    """
    kind = header.metadata.get("general.architecture")
    if not isinstance(kind, str) or kind not in _CLASSES:
        raise ModelError(
            f"architecture {short(kind)}; mlxlab reads {', '.join(_CLASSES)}"
        )
    own = _Parameters(header.metadata, kind)
    own.check()
    hidden, heads = own.count("embedding_length"), own.count("attention.head_count")
    kv_heads = own.count("attention.head_count_kv", heads)
    head_dim = own.count("attention.key_length", hidden // heads)
    for same in ("attention.value_length", "rope.dimension_count"):
        if own.count(same, head_dim) != head_dim or head_dim % 2 or heads % kv_heads:
            raise ModelError(
                f"{same} {short(own.get(same))} with {heads} heads, {kv_heads} of keys "
                f"and {head_dim} wide; mlxlab needs heads of one even width"
            )
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    config = {
        "architectures": [_CLASSES[kind]],
        "model_type": kind,
        # Rows beyond the tokens are padding, and rows are what is computed.
        "vocab_size": _rows(header, len(tokens) if isinstance(tokens, list) else 0),
        "hidden_size": hidden,
        "num_hidden_layers": own.count("block_count"),
        "intermediate_size": own.count("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": own.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": own.number("rope.freq_base", 10000.0),
        "max_position_embeddings": own.count("context_length"),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "attention_bias": "blk.0.attn_q.bias" in header.tensors,
        **_rope_scaling(own, header, path, head_dim),
        **_types(header),
    }
    if kind == "qwen2" and head_dim * heads != hidden:
        raise ModelError(f"{heads} heads of {head_dim} do not add up to {hidden}")
    return config


class _Parameters:
    """The metadata of one architecture."""

    def __init__(self, metadata: Mapping[str, Any], kind: str) -> None:
        self._metadata = metadata
        self._prefix = f"{kind}."

    def check(self) -> None:
        """Refuse parameters that are not known and not off."""
        for key, value in self._metadata.items():
            name = key.removeprefix(self._prefix)
            if name != key and name not in _KNOWN and value:
                raise ModelError(f"{key} is {short(value)}, which mlxlab does not know")

    def get(self, name: str) -> Any:
        return self._metadata.get(self._prefix + name)

    def count(self, name: str, otherwise: int | None = None) -> int:
        value = self._metadata.get(self._prefix + name, otherwise)
        if type(value) is not int or value < 1:
            raise self._wrong(name, value)
        return value

    def number(self, name: str, otherwise: float | None = None) -> float:
        value = self._metadata.get(self._prefix + name, otherwise)
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise self._wrong(name, value)
        return float(value)

    def _wrong(self, name: str, value: Any) -> ModelError:
        got = "missing" if value is None else short(value)
        return ModelError(f"{self._prefix}{name} is {got}; it must be a number above 0")


def place_weights(config: Config) -> Iterator[tuple[str, Place]]:
    """Yield each tensor's name in GGUF, with its place in mlx-lm's model."""
    hidden, width = config["hidden_size"], config["head_dim"]
    inner = config["intermediate_size"]
    queries = config["num_attention_heads"] * width
    keys = config["num_key_value_heads"] * width
    kind = config["model_type"]
    layer: dict[str, Place] = {
        "attn_norm.weight": ("input_layernorm.weight", (hidden,)),
        "ffn_norm.weight": ("post_attention_layernorm.weight", (hidden,)),
        "attn_q.weight": ("self_attn.q_proj.weight", (queries, hidden)),
        "attn_k.weight": ("self_attn.k_proj.weight", (keys, hidden)),
        "attn_v.weight": ("self_attn.v_proj.weight", (keys, hidden)),
        "attn_output.weight": ("self_attn.o_proj.weight", (hidden, queries)),
        "ffn_gate.weight": ("mlp.gate_proj.weight", (inner, hidden)),
        "ffn_up.weight": ("mlp.up_proj.weight", (inner, hidden)),
        "ffn_down.weight": ("mlp.down_proj.weight", (hidden, inner)),
    }
    if kind == "qwen3":
        layer["attn_q_norm.weight"] = ("self_attn.q_norm.weight", (width,))
        layer["attn_k_norm.weight"] = ("self_attn.k_norm.weight", (width,))
    if kind == "qwen2" or config["attention_bias"]:
        layer["attn_q.bias"] = ("self_attn.q_proj.bias", (queries,))
        layer["attn_k.bias"] = ("self_attn.k_proj.bias", (keys,))
        layer["attn_v.bias"] = ("self_attn.v_proj.bias", (keys,))
    if kind != "qwen2" and config["attention_bias"]:
        layer["attn_output.bias"] = ("self_attn.o_proj.bias", (hidden,))
    vocabulary = (config["vocab_size"], hidden)
    yield "token_embd.weight", ("model.embed_tokens.weight", vocabulary)
    yield "output_norm.weight", ("model.norm.weight", (hidden,))
    if not config["tie_word_embeddings"]:
        yield "output.weight", ("lm_head.weight", vocabulary)
    for index in range(config["num_hidden_layers"]):
        for name, (place, shape) in layer.items():
            yield f"blk.{index}.{name}", (f"model.layers.{index}.{place}", shape)


def check_tensors(header: Header, config: Config) -> None:
    """Check that the file holds the tensors of its configuration, and no other.

    Raises:
        ModelError: it lacks one, or holds another one or another shape.
    """
    left: dict[str, Tensor] = dict(header.tensors)
    left.pop(_ROPE_FACTORS, None)
    if config["num_hidden_layers"] > len(left):
        raise ModelError(f"it claims {config['num_hidden_layers']:,} layers")
    for name, (_, shape) in place_weights(config):
        tensor = left.pop(name, None)
        if tensor is None:
            raise ModelError(f"it lacks tensor {name!r}; give a whole model")
        if tensor.shape != shape:
            raise ModelError(f"tensor {name!r} is {tensor.shape}, not {shape}")
    if left:
        raise ModelError(f"tensor {min(left)!r:.80}, which mlxlab does not know")


def _rows(header: Header, tokens: int) -> int:
    table = header.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2 or table.shape[0] < tokens:
        raise ModelError(f"it lacks a table of embeddings for {tokens:,} tokens")
    return table.shape[0]


def _types(header: Header) -> Config:
    weights = sum(prod(tensor.shape) for tensor in header.tensors.values())
    if weights < _FLOAT32_BELOW:
        return {"dtype": "float32"}
    kinds = [tensor.kind for tensor in header.tensors.values()]
    if not QUANTIZED.intersection(kinds):
        return {"dtype": "float16"}
    bits = 8 if kinds.count("Q8_0") * 2 > len(kinds) else 4
    # mlx-lm takes the bits of each packed weight from its shape.
    return {"dtype": "float16", "quantization": {"group_size": 32, "bits": bits}}


def _rope_scaling(
    own: _Parameters, header: Header, path: Path, head_dim: int
) -> Config:
    kind = own.get("rope.scaling.type")
    if kind is None:  # llama.cpp's default, if there is a factor
        kind = "linear" if own.get("rope.scaling.factor") else "none"
    if kind not in ("none", "linear", "yarn"):
        raise ModelError(f"rope.scaling.type {short(kind)}; give none, linear or yarn")
    scaling: Config = {}
    if kind in ("linear", "yarn"):
        scaling = {"type": kind, "factor": own.number("rope.scaling.factor")}
    if kind == "yarn":
        original = own.count("rope.scaling.original_context_length")
        scaling["original_max_position_embeddings"] = original
    if _ROPE_FACTORS in header.tensors:
        if scaling:
            raise ModelError(f"both rope.scaling.type and tensor {_ROPE_FACTORS!r}")
        found = _rope_factors(header.tensors[_ROPE_FACTORS], path, head_dim)
        scaling = _llama3_scaling(found, own.number("rope.freq_base", 10000.0))
    return {"rope_scaling": scaling} if scaling else {}


def _rope_factors(tensor: Tensor, path: Path, head_dim: int) -> NDArray[np.float64]:
    if tensor.kind != "F32" or tensor.shape != (head_dim // 2,):
        raise ModelError(f"tensor {_ROPE_FACTORS!r} is {tensor.kind} {tensor.shape}")
    with open_file(path) as file:
        file.seek(tensor.start)
        data = file.read(2 * head_dim)
    return np.frombuffer(data, dtype="<f4").astype(np.float64)


def _llama3_scaling(found: NDArray[np.float64], base: float) -> Config:
    """Return the scaling of Llama 3.1 and later, whose factors the file holds."""
    with np.errstate(all="ignore"):  # damaged factors
        factor = float(found.max())
        waves = 2 * pi * base ** (np.arange(len(found)) / len(found))
        low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
        turns = _LLAMA3["original_max_position_embeddings"] / waves
        smooth = np.clip((turns - low) / (high - low), 0, 1)
        expected = 1 / ((1 - smooth) / factor + smooth)
        if not np.allclose(found, expected, rtol=1e-3):
            raise ModelError(f"tensor {_ROPE_FACTORS!r} does not scale as Llama 3 does")
    return {"rope_type": "llama3", "factor": factor, **_LLAMA3}
