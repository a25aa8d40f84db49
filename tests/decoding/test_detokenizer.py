"""Joined pieces are what the tokenizer decodes."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.tokenizer_utils import (
    NaiveStreamingDetokenizer,
    SPMStreamingDetokenizer,
    load,
)
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from mlxlab.decoding.detokenizer import MlxDetokenizer, detokenizer_factory
from mlxlab.models.folder import find_model

model = find_model()
tokenizer: Any = model.tokenizer
fresh = detokenizer_factory(load(model.path))

NUL = tokenizer.convert_tokens_to_ids("\u0100")
SPACE = tokenizer.convert_tokens_to_ids("\u0120")
IDS = st.lists(
    st.sampled_from([NUL, SPACE]) | st.integers(0, len(tokenizer) - 1), max_size=12
)


def detokenize(detokenizer: Any, ids: list[int]) -> str:
    return "".join(map(detokenizer.feed, ids)) + str(detokenizer.finish())


@given(IDS)
def test_nothing_is_lost_of_any_ids(ids: list[int]) -> None:
    assert detokenize(fresh(), ids) == tokenizer.decode(ids)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_pieces_never_hold_half_a_character(text: str) -> None:
    detokenizer = fresh()
    ids = tokenizer.encode(text.replace("\ufffd", ""), add_special_tokens=False)
    assert all("\ufffd" not in detokenizer.feed(i) for i in ids)


def test_answers_do_not_share_state() -> None:
    ids = tokenizer.encode("é", add_special_tokens=False)
    first, second = fresh(), fresh()
    first.feed(SPACE)
    assert detokenize(second, ids) == "é"


# Another kind of tokenizer, as Llama 2 and Gemma have it.

PIECES = ["<unk>", "▁", "▁a", "a", "b", "\n", *(f"<0x{b:02X}>" for b in range(256))]
FUSED = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]


def sentencepiece(strip: bool) -> Any:
    vocabulary = {piece: i for i, piece in enumerate(PIECES)}
    inner = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    steps = [*FUSED, decoders.Strip(" ", 1, 0)] if strip else FUSED
    inner.decoder = decoders.Sequence(steps)
    wrap: Any = PreTrainedTokenizerFast
    return wrap(tokenizer_object=inner)


@pytest.mark.parametrize("strip", [True, False])
@given(ids=st.lists(st.integers(1, 5), max_size=8), text=st.text(max_size=3))
def test_sentencepiece_loses_one_space_at_most(
    strip: bool, ids: list[int], text: str
) -> None:
    spm = sentencepiece(strip)
    ids = ids + [6 + byte for byte in text.encode()]
    detokenizer = MlxDetokenizer(SPMStreamingDetokenizer(spm, trim_space=strip))
    assert detokenize(detokenizer, ids) == spm.decode(ids)


@given(IDS)
def test_a_tokenizer_of_no_known_kind_works_too(ids: list[int]) -> None:
    detokenizer = MlxDetokenizer(NaiveStreamingDetokenizer(tokenizer))
    text = detokenize(detokenizer, ids)
    assert text.replace("\ufffd", "") == tokenizer.decode(ids).replace("\ufffd", "")
