"""Encoding in pieces gives the ids of the whole."""

from __future__ import annotations

import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mlxlab.errors import ModelError
from mlxlab.models.encoder import Encoded, Encoder
from mlxlab.models.folder import find_model
from mlxlab.rendering.renderer import Renderer
from mlxlab.replay.requests import render_trace
from mlxlab.traces import load_trace

bundled: Any = find_model().tokenizer

#: Whole tokens, parts of them, and what tokenizers treat in ways of their own.
BITS = [
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</tool_call>"),
    *("<|im_", "end|>", "<", "|>", "<|", ">", "im_end"),
    *(" ", "  ", "\n", "\n\n", "\t", "\u00a0", "\u0338", "e\u0301", "\ufb01", "\0"),
    *("user", "a", "Hello", "1,200", "\U0001f600", "\u4f60", "'s", "don't"),
]


class Counted:
    """A tokenizer that knows what it was asked for."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.texts: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __call__(self, text: str, **options: Any) -> Any:
        self.texts.append(text)
        return self.tokenizer(text, **options)


def plain(tokenizer: Any, text: str) -> tuple[list[int], list[int]]:
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return found["input_ids"], [start for start, _ in found["offset_mapping"]]


def listed(encoded: Encoded) -> tuple[list[int], list[int]]:
    ids, starts = encoded
    return ids.tolist(), starts.tolist()


def made(*added: AddedToken, pre: Any = None, normalizer: Any = None) -> Any:
    """A tokenizer of characters, and of one pair that a wrong cut tears apart."""
    letters = sorted({*"".join(BITS), *"Once 1,200upon time\u00e9\u2581[SEP]"})
    vocabulary = {c: i for i, c in enumerate([*letters, ">a"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [(">", "a")]))
    tokenizer.pre_tokenizer = pre or pre_tokenizers.WhitespaceSplit()
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.add_tokens(list(added))
    make: Any = PreTrainedTokenizerFast
    return make(tokenizer_object=tokenizer)


TOKENIZERS = {
    "metaspace": made(
        AddedToken("<|im_end|>", normalized=False, special=True),
        pre=pre_tokenizers.Metaspace(prepend_scheme="first"),
    ),
    "prepended": made(
        AddedToken("<|im_end|>", normalized=False, special=True),
        normalizer=normalizers.Prepend("\u2581"),
    ),
    "stripping": made(
        AddedToken("<|im_end|>", lstrip=True, rstrip=True, special=True),
        AddedToken("<|im_start|>", normalized=False, special=True),
    ),
    "normalized": made(
        AddedToken("<|im_end|>", normalized=True, special=True),
        normalizer=normalizers.NFC(),  # makes one character of ">" and what follows
    ),
    "words": made(
        AddedToken("user", single_word=True, normalized=False),
        AddedToken("im_end", normalized=False, special=True),
    ),
    "longer": made(
        AddedToken("<|im_end|>", normalized=False, special=True),
        AddedToken("<|im_end|>a", normalized=False),
    ),
    "across": made(
        AddedToken("<|im_end|>", normalized=False, special=True),
        AddedToken("user<", normalized=False),
    ),
    "spaces": made(
        AddedToken("\n", normalized=False, special=True),
        AddedToken("<|im_end|>", rstrip=True, normalized=False),
    ),
    "none": made(),
}


@given(st.lists(st.sampled_from(BITS) | st.text(max_size=5), max_size=20))
def test_pieces_give_the_ids_of_the_whole(bits: list[str]) -> None:
    text = "".join(bits)
    text = text.encode(errors="replace").decode()  # no half surrogate pairs
    encoder = Encoder(bundled)
    assert listed(encoder.encode(text)) == plain(bundled, text)
    assert listed(encoder.encode(text)) == plain(bundled, text)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers_of_other_kinds_are_not_cut_wrongly(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    encoder = Encoder(tokenizer)
    for one, other in product(BITS, BITS):
        text = f"{one}{other}{one}a {one}{other}{one} a"
        assert listed(encoder.encode(text)) == plain(tokenizer, text)


def test_a_recorded_session_renders_as_if_encoded_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trace = load_trace("sessions")
    pieces = render_trace(trace, Renderer(find_model()))
    monkeypatch.setattr("mlxlab.models.encoder._find_separators", lambda added: [])
    whole = render_trace(trace, Renderer(find_model()))
    for request, other in zip(pieces, whole, strict=True):
        assert request.prompt.tokens.tolist() == other.prompt.tokens.tolist()
        assert request.prompt.segments == other.prompt.segments
        assert request.answer.tolist() == other.answer.tolist()


def test_what_was_seen_is_not_encoded_again() -> None:
    counted: Any = Counted(bundled)
    encoder = Encoder(counted)
    turns = [f"<|im_start|>user\nturn {i}<|im_end|>\n" for i in range(9)]
    encoder.encode("".join(turns[:8]))
    counted.texts.clear()
    encoder.encode("".join(turns))
    assert counted.texts == ["user\nturn 8<|im_end|>"]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxlab.models.encoder._CACHED_BYTES", 1400)
    counted: Any = Counted(bundled)
    encoder = Encoder(counted)
    texts = [f"{i} " * 12 + "<|im_end|>" for i in range(9)]
    texts.append("long " * 100)  # fits nowhere
    for text in [*texts, *texts]:
        assert listed(encoder.encode(text)) == plain(bundled, text)
    assert all(counted.texts.count(text) == 2 for text in texts)


def test_threads_share_an_encoder() -> None:
    encoder = Encoder(bundled)
    texts = [f"<|im_start|>user\n{i % 7} {i}<|im_end|>\n" * 20 for i in range(200)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(encoder.encode, texts))
    assert list(map(listed, found)) == [plain(bundled, text) for text in texts]


def test_a_limited_encoder_gives_up_on_long_texts_only() -> None:
    encoder = find_model().encoder
    limited = encoder.limited(1_000)
    text = "word " * 60_000
    with pytest.raises(ModelError, match=r"too long: (59|60)\d{3} tokens > 1000 "):
        limited.encode(text)
    split = "<|im_end|>".join([text[:50_000]] * 6)
    with pytest.raises(ModelError, match=r"too long: (59|60)\d{3} tokens > 1000 "):
        limited.encode(split)
    assert len(limited.encode(text[:10_000])[0]) == 2_001
    assert len(encoder.encode(text)[0]) == 60_001


def test_a_limited_encoder_has_a_cache_of_its_own() -> None:
    counted: Any = Counted(bundled)
    encoder = Encoder(counted)
    one, other = encoder.limited(1_000), encoder.limited(1_000)
    for each in (one, other, one, other):
        each.encode("said to one")
    assert counted.texts.count("said to one") == 2


@pytest.mark.parametrize("words", [1, 400])
def test_the_cache_takes_the_memory_that_it_counts(
    words: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlxlab.models.encoder._CACHED_BYTES", most := 2**21)
    encoder = Encoder(bundled)
    tracemalloc.start()
    for i in range(most // (400 + 12 * words)):
        encoder.encode(f"{i} word" * words)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.7 * most < taken < 1.2 * most
