"""Rebuilding the bundled model: ``python -m mlxlab.tiny.build``.

Both parts are deterministic. The weights are a fixed stream of random bits and come
out the same everywhere; the tokenizer is trained on the running interpreter's library
and comes out the same for the same Python version. Needs no mlx.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from math import sqrt
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer

from mlxlab.tiny import PATH
from mlxlab.tiny.corpus import read_corpus

__all__ = ["build_tokenizer", "build_weights"]

Weight: TypeAlias = NDArray[np.float32]

#: Qwen3's conventions: control tokens, and tags that stay in decoded text.
_CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TAGS = (
    *("<think>", "</think>", "<tool_call>", "</tool_call>"),
    *("<tool_response>", "</tool_response>"),
)

#: Measured: greedy answers of 64 tokens to prompts of 2 to 16,000 have 50 distinct ones
#: or more. What the layers add outweighs the embedding, which would repeat the last
#: token, being tied to the output; attention is spread over some hundred positions of
#: a long prompt; logits deviate by 4, like those of trained models.
_LAYER_GAIN = 24.0
_SHARPNESS = 1.6
_LOGIT_SCALE = 0.35

#: Escapes of JSON are pieces of their own, so that a word in JSON text is cut like the
#: same word in plain text. No piece goes on after a newline, so that text which follows
#: a newline of the chat template never merges with it.
_PIECES = (
    r"\\u[0-9a-fA-F]{4}",
    r'\\["\\/bfnrt]',
    r" ?\p{L}+",
    r"\p{N}",
    r" ?[^\s\p{L}\p{N}\\]+[\r\n]*",
    r"\\",
    r"[^\S\r\n]*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
)


def build_tokenizer(texts: Iterable[str], size: int) -> Tokenizer:
    """Train a byte-level BPE of ``size`` entries, control tokens and tags last."""
    added = [AddedToken(t, special=True, normalized=False) for t in _CONTROL]
    added += [AddedToken(t, special=False, normalized=False) for t in _TAGS]
    tokenizer = Tokenizer(BPE())
    split = Split(Regex("|".join(_PIECES)), behavior="isolated")
    as_bytes = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = Sequence([split, as_bytes])
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=size - len(added),
        initial_alphabet=sorted(ByteLevel.alphabet()),
        max_token_length=24,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(added)
    return tokenizer


def build_weights(config: dict[str, int]) -> dict[str, Weight]:
    """Random weights of a Qwen3 model, by their names in mlx-lm and transformers.

    Args:
        config: the decoded ``config.json``.
    """
    hidden = config["hidden_size"]
    draw = _Draw(seed=0)
    embedding = draw(config["vocab_size"], hidden, gain=sqrt(hidden))
    # Control tokens and tags must not turn up in random answers.
    embedding[-len(_CONTROL + _TAGS) :] /= 64
    weights = {
        "embed_tokens": embedding,
        "norm": _constant(hidden, _LOGIT_SCALE),
    }
    for i in range(config["num_hidden_layers"]):
        layer = _layer(config, draw)
        weights |= {f"layers.{i}.{name}": array for name, array in layer.items()}
    return {f"model.{name}.weight": array for name, array in weights.items()}


def _layer(config: dict[str, int], draw: _Draw) -> dict[str, Weight]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = config["head_dim"]
    queries = config["num_attention_heads"] * head
    keys = config["num_key_value_heads"] * head
    return {
        "input_layernorm": _constant(hidden, 1),
        "self_attn.q_proj": draw(queries, hidden),
        "self_attn.k_proj": draw(keys, hidden),
        "self_attn.v_proj": draw(keys, hidden),
        "self_attn.q_norm": _constant(head, _SHARPNESS),
        "self_attn.k_norm": _constant(head, _SHARPNESS),
        "self_attn.o_proj": draw(hidden, queries, gain=_LAYER_GAIN),
        "post_attention_layernorm": _constant(hidden, 1),
        "mlp.gate_proj": draw(inner, hidden),
        "mlp.up_proj": draw(inner, hidden),
        "mlp.down_proj": draw(hidden, inner, gain=_LAYER_GAIN),
    }


def _constant(size: int, value: float) -> Weight:
    return np.full(size, value, np.float32)


class _Draw:
    """Uniform random matrices from one seeded stream."""

    def __init__(self, seed: int) -> None:
        # Raw bits: numpy promises only those to stay the same in later versions.
        self._bits = np.random.Philox(key=seed)

    def __call__(self, rows: int, columns: int, gain: float = 1.0) -> Weight:
        """Weights that turn inputs of variance 1 into outputs of ``gain`` squared."""
        raw = self._bits.random_raw(rows * columns // 8).astype("<u8").view(np.int8)
        # Numbers of 8 bits pack well; the half makes their mean 0.
        centred = raw.reshape(rows, columns).astype(np.float32) + np.float32(0.5)
        deviation = sqrt((2**16 - 1) / 12)
        return centred * np.float32(gain / (deviation * sqrt(columns)))


def main() -> None:
    """Write ``tokenizer.json`` and ``model.safetensors`` next to this file."""
    config = json.loads((PATH / "config.json").read_text())
    tokenizer = build_tokenizer(read_corpus(), config["vocab_size"])
    (PATH / "tokenizer.json").write_text(tokenizer.to_str() + "\n", encoding="utf-8")
    weights = save(build_weights(config), {"format": "mlx"})
    (PATH / "model.safetensors").write_bytes(weights)


if __name__ == "__main__":
    main()
