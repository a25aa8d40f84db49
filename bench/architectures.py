"""Random models of architectures that keep more than keys and values of all tokens.

They have the kinds of layers of the models that people run. Weights are random, which
changes no second.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlxlab.engine  # noqa: F401  before mlx: it chooses the BLAS
from mlxlab.models.folder import ModelFolder, find_model
from tests.support.architectures import save_architecture

__all__ = ["ARCHITECTURES", "opened"]

#: What all have in common, the bundled tokenizer's ids included.
_COMMON = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 8704,
    "eos_token_id": 8697,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "dtype": "float32",
}

ARCHITECTURES: Mapping[str, Mapping[str, Any]] = {
    # A layer of recurrent state, one of all tokens; the template opens the thinking.
    "qwen3_5": {
        **_COMMON,
        "model_type": "qwen3_5",
        "intermediate_size": 192,
        "full_attention_interval": 2,
        "linear_num_value_heads": 2,
        "linear_num_key_heads": 1,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
        "linear_conv_kernel_dim": 4,
        "tie_word_embeddings": True,
    },
    # One layer keeps a window, one all tokens.
    "gpt_oss": {
        **_COMMON,
        "model_type": "gpt_oss",
        "intermediate_size": 64,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_theta": 150000,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "original_max_position_embeddings": 4096,
        },
    },
}
"""Contents of ``config.json`` by name."""


#: How the bundled template begins an answer, and how one that opens the thinking does.
#: In a history it shows the tag only where the client gave the thinking back.
_OPENING = "{{- '<|im_start|>assistant\\n' -}}\n{%- if enable_thinking is defined"
_THINKING = _OPENING.replace("assistant\\n", "assistant\\n<think>\\n")


@contextmanager
def opened(name: str) -> Iterator[ModelFolder]:
    """Find a model, or build an architecture in a folder that is removed afterwards.

    Args:
        name: a key of :data:`ARCHITECTURES`, or what :func:`find_model` takes.

    Raises:
        ModelError: there is no such model.
    """
    if name not in ARCHITECTURES:
        yield find_model(name)
        return
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        save_architecture(path, ARCHITECTURES[name])
        if name == "qwen3_5":
            template = path / "chat_template.jinja"
            template.write_text(template.read_text().replace(_OPENING, _THINKING))
        yield replace(find_model(str(path)), name=name)
