"""The tokenizer in a GGUF file, rebuilt for the ``tokenizers`` library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from reprlib import repr as short
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, normalizers
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import (
    ByteLevel,
    Digits,
    PreTokenizer,
    Sequence,
    Split,
)
from tokenizers.processors import TemplateProcessing

from mlxlab.errors import ModelError

__all__ = ["end_ids", "make_tokenizer", "tokenizer_config"]

_PREFIX = "tokenizer.ggml."
_CONTROL, _USER_DEFINED = 3, 4


def _split(digits: str) -> PreTokenizer:
    """Return the split of Llama 3 and Qwen, which differ in runs of digits."""
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
    others = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    pattern = Regex("|".join((words, digits, others)))
    return Sequence(
        [
            Split(pattern, behavior="isolated"),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


@dataclass(frozen=True, slots=True)
class _Kind:
    """A way to cut text before merging.

    Attributes:
        whole_words: whether a word in the vocabulary is taken without merging.
    """

    split: Callable[[], PreTokenizer]
    composed: bool = False
    whole_words: bool = False


def _gpt2() -> PreTokenizer:
    return ByteLevel(add_prefix_space=False)


def _smollm() -> PreTokenizer:
    return Sequence([Digits(individual_digits=True), _gpt2()])


#: By the name in ``tokenizer.ggml.pre``.
_KINDS = {
    "gpt-2": _Kind(_gpt2),
    "llama-bpe": _Kind(lambda: _split(r"\p{N}{1,3}"), whole_words=True),
    "qwen2": _Kind(lambda: _split(r"\p{N}"), composed=True),
    "smollm": _Kind(_smollm),
}


def make_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """Return the file's tokenizer; ids are those of the file.

    Raises:
        ModelError: the tokenizer is damaged or of a kind that mlxlab does not know.
    """
    model, pre = metadata.get(f"{_PREFIX}model"), metadata.get(f"{_PREFIX}pre")
    if model != "gpt2" or not isinstance(pre, str) or pre not in _KINDS:
        raise ModelError(
            f"tokenizer {short(model)} with pre-tokenizer {short(pre)}; mlxlab reads "
            f"'gpt2' with {', '.join(map(repr, _KINDS))}"
        )
    kind, tokens = _KINDS[pre], _texts(metadata, "tokens")
    merges = [tuple(merge.split(" ")) for merge in _texts(metadata, "merges")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) < len(tokens):
        raise ModelError("damaged: a token comes twice")
    try:
        bpe: Any = BPE  # its stub wants pairs
        tokenizer = Tokenizer(bpe(vocabulary, merges, ignore_merges=kind.whole_words))
    except Exception as error:  # tokenizers has no type of its own
        raise ModelError(f"damaged: its merges: {short(str(error))}") from None
    if kind.composed:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = kind.split()
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_tokens(_added(metadata, tokens))
    first = _special(metadata, "bos")
    if metadata.get(f"{_PREFIX}add_bos_token") and first:
        tokenizer.post_processor = TemplateProcessing(
            single=f"{first} $A",
            pair=f"{first} $A {first} $B",
            special_tokens=[(first, vocabulary[first])],
        )
    return tokenizer


def tokenizer_config(metadata: Mapping[str, Any], window: int) -> dict[str, Any]:
    """Return the content of ``tokenizer_config.json``, chat template included.

    Raises:
        ModelError: the file has no chat template, or names tokens that it lacks.
    """
    template = metadata.get("tokenizer.chat_template")
    if not isinstance(template, str) or not template:
        raise ModelError("it has no chat template; give an instruction-tuned model")
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    special = {f"{key}_token": _special(metadata, name) for key, name in names.items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": window,
        "chat_template": template,
        **special,
    }


def end_ids(metadata: Mapping[str, Any]) -> list[int]:
    """Return the ids that end an answer.

    Raises:
        ModelError: the file names none.
    """
    names = [name for name in ("eos", "eot", "eom") if _special(metadata, name)]
    if not names:
        raise ModelError("it names no token that ends an answer")
    return sorted({int(metadata[f"{_PREFIX}{name}_token_id"]) for name in names})


def _texts(metadata: Mapping[str, Any], name: str) -> list[str]:
    found = metadata.get(_PREFIX + name)
    if not isinstance(found, list) or not all(isinstance(own, str) for own in found):
        raise ModelError(f"it lacks a list of texts {_PREFIX}{name}")
    return found


def _added(metadata: Mapping[str, Any], tokens: list[str]) -> list[AddedToken]:
    types = metadata.get(f"{_PREFIX}token_type")
    if not isinstance(types, list) or len(types) != len(tokens):
        raise ModelError(f"it lacks one {_PREFIX}token_type a token")
    return [
        AddedToken(token, special=kind == _CONTROL, normalized=False)
        for token, kind in zip(tokens, types, strict=True)
        if kind in (_CONTROL, _USER_DEFINED)
    ]


def _special(metadata: Mapping[str, Any], name: str) -> str | None:
    index = metadata.get(f"{_PREFIX}{name}_token_id")
    if index is None:
        return None
    tokens = _texts(metadata, "tokens")
    if type(index) is not int or not 0 <= index < len(tokens):
        raise ModelError(f"damaged: {_PREFIX}{name}_token_id is {short(index)}")
    return tokens[index]
