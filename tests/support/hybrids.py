"""Tiny configurations of models that cannot be cut at any token, one of each kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["HYBRIDS"]

_COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 8704,
    "eos_token_id": 8697,
    "max_position_embeddings": 131072,
    "rope_theta": 10000,
    "dtype": "float32",
}

HYBRIDS: Mapping[str, Mapping[str, Any]] = {
    # Recurrent state and full attention.
    "qwen3_5": {
        **_COMMON,
        "model_type": "qwen3_5",
        "head_dim": 32,
        "intermediate_size": 96,
        "full_attention_interval": 2,
        "linear_num_value_heads": 2,
        "linear_num_key_heads": 1,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_conv_kernel_dim": 4,
    },
    # Windows and full attention.
    "gpt_oss": {
        **_COMMON,
        "model_type": "gpt_oss",
        "head_dim": 32,
        "intermediate_size": 64,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "sliding_window": 64,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    # A state of the last tokens, and full attention.
    "lfm2": {
        **_COMMON,
        "model_type": "lfm2",
        "norm_eps": 1e-5,
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_dim": 64,
        "block_ff_dim": 96,
        "block_multiple_of": 4,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
        "layer_types": ["conv", "full_attention"],
    },
    # Recurrent state alone.
    "mamba": {
        **_COMMON,
        "model_type": "mamba",
        "tie_word_embeddings": False,
        "use_bias": False,
        "use_conv_bias": True,
        "conv_kernel": 4,
        "state_size": 8,
        "intermediate_size": 96,
        "time_step_rank": 4,
    },
}
"""Contents of ``config.json`` by architecture."""
