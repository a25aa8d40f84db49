"""Small GGUF files: random models with a small tokenizer, as llama.cpp would write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models import llama, qwen2, qwen3
from tokenizers.pre_tokenizers import ByteLevel

__all__ = ["CONFIG", "METADATA", "random_model", "save_gguf", "tensors_of"]

MODULES: dict[str, Any] = {"llama": llama, "qwen2": qwen2, "qwen3": qwen3}

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGED = ["\u0120t", "he", "\u0120the", "12"]
TOKENS = [*SPECIAL, "<tool>", *sorted(ByteLevel.alphabet()), *MERGED]

CONFIG: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": len(TOKENS) + 3,  # rows beyond the tokens, as in Qwen's files
    "max_position_embeddings": 512,
    "rope_theta": 5000.0,
    "tie_word_embeddings": True,
}
#: By the names of llama.cpp.
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
METADATA: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": mx.array(
        [3] * len(SPECIAL) + [4] + [1] * (len(TOKENS) - len(SPECIAL) - 1), mx.int32
    ),
    "tokenizer.ggml.merges": ["\u0120 t", "h e", "\u0120t he", "1 2"],
    "tokenizer.ggml.bos_token_id": mx.array(1, mx.uint32),
    "tokenizer.ggml.eos_token_id": mx.array(2, mx.uint32),
    "tokenizer.ggml.padding_token_id": mx.array(0, mx.uint32),
    "tokenizer.chat_template": TEMPLATE,
}


def random_model(kind: str, seed: int = 0, **config: Any) -> Any:
    """A small model of mlx-lm with weights of which every one matters."""
    whole = {"model_type": kind, "head_dim": 16, **CONFIG, **config}
    model = MODULES[kind].Model(MODULES[kind].ModelArgs.from_dict(whole))
    mx.random.seed(seed)
    parameters: Any = tree_flatten(model.parameters())
    model.load_weights(
        [(name, 0.3 * mx.random.normal(own.shape)) for name, own in parameters]
    )
    return model


def tensors_of(model: Any, kind: str) -> dict[str, mx.array]:
    """The model's weights as llama.cpp names and orders them."""
    tensors: dict[str, mx.array] = {}
    parameters: Any = tree_flatten(model.parameters())
    for name, array in parameters:
        stem, _, part = name.rpartition(".")
        if stem.startswith("model.layers."):
            _, _, index, own = stem.split(".", 3)
            new = f"blk.{index}.{NAMES[own]}.{part}"
        else:
            new = f"{NAMES[stem]}.{part}"
        heads = {"attn_q": model.args.num_attention_heads}
        heads["attn_k"] = model.args.num_key_value_heads
        for own, count in heads.items():
            if kind == "llama" and f".{own}." in new:
                # Row i of a head's first half comes before row i of its second.
                halves = array.reshape(count, 2, array.shape[0] // count // 2, -1)
                array = halves.swapaxes(1, 2).reshape(array.shape)
        tensors[new] = array
    return tensors


def metadata_of(model: Any, kind: str) -> dict[str, Any]:
    """The model's parameters and the tokenizer."""
    args = model.args
    counts = {
        "block_count": args.num_hidden_layers,
        "context_length": args.max_position_embeddings,
        "embedding_length": args.hidden_size,
        "feed_forward_length": args.intermediate_size,
        "attention.head_count": args.num_attention_heads,
        "attention.head_count_kv": args.num_key_value_heads,
        "attention.key_length": 16,
    }
    numbers = {
        "attention.layer_norm_rms_epsilon": args.rms_norm_eps,
        "rope.freq_base": args.rope_theta,
    }
    own = {f"{kind}.{key}": mx.array(n, mx.uint32) for key, n in counts.items()}
    own |= {f"{kind}.{key}": mx.array(n, mx.float32) for key, n in numbers.items()}
    return {"general.architecture": kind, **METADATA, **own}


def save_gguf(
    file: Path,
    model: Any = None,
    kind: str = "llama",
    *,
    tensors: dict[str, mx.array] | None = None,
    **metadata: Any,
) -> Path:
    """Write a model, with changes; None leaves out a key or tensor.

    Args:
        metadata: by key, with two underscores for each dot.
    """
    model = model or random_model(kind)
    changes = {key.replace("__", "."): value for key, value in metadata.items()}
    content = {**metadata_of(model, kind), **changes}
    arrays: dict[str, Any] = {**tensors_of(model, kind), **(tensors or {})}
    mx.save_gguf(
        str(file),
        {key: own for key, own in arrays.items() if own is not None},
        {key: own for key, own in content.items() if own is not None},
    )
    return file
