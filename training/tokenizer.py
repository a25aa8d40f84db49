"""Builds the bundled tokenizer: ``python -m training.tokenizer``.

It is trained on the running interpreter's library, so equal Python versions give equal
tokenizers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer

from mlxlab.models.tiny import PATH
from training.corpus import read_corpus

__all__ = ["build_tokenizer"]

#: Qwen3's conventions: control tokens, and tags that stay in decoded text.
_CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TAGS = (
    *("<think>", "</think>", "<tool_call>", "</tool_call>"),
    *("<tool_response>", "</tool_response>"),
)

#: JSON escapes are separate pieces, so a word in JSON text is cut as in plain text. No
#: piece continues after a newline, so text after a newline of the chat template never
#: merges with it.
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


def main() -> None:
    """Write ``tokenizer.json`` next to this file."""
    config = json.loads((PATH / "config.json").read_text())
    tokenizer = build_tokenizer(read_corpus(), config["vocab_size"])
    (PATH / "tokenizer.json").write_text(tokenizer.to_str() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
