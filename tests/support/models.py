"""Models for tests, besides the bundled one, whose answers make sense and end."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models import llama, qwen3

from mlxlab.models.folder import find_model

MODULES = {"llama": llama, "qwen3": qwen3}

#: Tokens that would end an answer, or begin a thought or a call.
SILENT: tuple[str, ...] = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<think>",
    "</think>",
)
SILENT += ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")

ROOMY = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "intermediate_size": 256,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "rms_norm_eps": 1e-6,
    "vocab_size": 8704,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
    "max_position_embeddings": 131072,
}


def save_model(
    folder: Path, kind: str = "qwen3", dtype: mx.Dtype = mx.float32, **config: Any
) -> Path:
    """Save a random model with the bundled tokenizer, whose answers never end.

    Args:
        folder: created.
        kind: architecture.
        dtype: type of the weights.
        config: differences from :data:`ROOMY`.
    """
    tiny = find_model().path
    folder.mkdir(parents=True, exist_ok=True)
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "generation_config.json",
    ):
        shutil.copy(tiny / name, folder / name)
    name = str(dtype).rpartition(".")[2]
    whole = {**ROOMY, "model_type": kind, "dtype": name, **config}
    (folder / "config.json").write_text(json.dumps(whole))
    module = MODULES[kind]
    model = module.Model(module.ModelArgs.from_dict(whole))
    mx.random.seed(0)
    parameters: Any = tree_flatten(model.parameters())
    weights = {n: drawn(n, array) for n, array in parameters}
    weights = {n: array.astype(dtype) for n, array in weights.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    return folder


def drawn(name: str, array: mx.array) -> mx.array:
    """Draw weights that spread attention and outweigh the last token."""
    if "norm" in name:
        gain = {"model.norm.weight": 0.35}.get(name, 1.6 if "_norm" in name else 1.0)
        return mx.full(array.shape, gain)
    if "embed_tokens" in name:
        ids = find_model().tokenizer.convert_tokens_to_ids(list(SILENT))
        embedding = mx.random.normal(array.shape)
        embedding[mx.array(ids)] = embedding[mx.array(ids)] / 64
        return embedding
    gain = 24.0 if "o_proj" in name or "down_proj" in name else 1.0
    scale: float = gain / array.shape[1] ** 0.5
    return scale * mx.random.normal(array.shape)
