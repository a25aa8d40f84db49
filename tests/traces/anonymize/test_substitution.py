"""Words go; tokens keep their number, texts their common prefixes."""

import json
import re
from itertools import combinations
from string import ascii_letters

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from mlxlab.errors import TraceError
from mlxlab.models.tiny import PATH
from mlxlab.traces.anonymize.bpe import BpeTokenizer, PreTokenKind
from mlxlab.traces.anonymize.substitutes import Substitutes
from mlxlab.traces.anonymize.substitution import Passage, Place, Substitution

TOKENIZER = Tokenizer.from_file(str(PATH / "tokenizer.json"))
BPE = BpeTokenizer(TOKENIZER)
SUBSTITUTES = Substitutes(BPE)
FRAGMENTS = [
    *("The", " quick", " brown fox", "camelCase", " HTTPServer", "zzyzx"),
    *(
        " naïve",
        " été",
        " 好",
        "é",
        "\u00d7",
        "çà",
        " “so”",
        "—",
        "你好",
        " 世界",
        "。",
        "カナ",
        "ー",
    ),
    *("привет", " ½", "٤٢", " مرحبا", "हिन्दी", "🎉", "🇫🇷", "\ud83d"),
    *("0", "007", " 1 024", "3.14", "2026-11-22", "3fa9c1", "x2y", "v2beta"),
    *("\n", "\r\n", "\n\n  ", "\t", "   ", "\u3000", "\x1b[31m", "\x00"),
    *("\\n", "\\nfoo", "\\d+", "\\\\", "C:\\users\\new", "\\u4f60\\u597D"),
    *('{"a": "b\\nc"}', "<div>", "</a>", "a_b", "if (x) {", "://", "'s", '"'),
    *("<think>", "</think>", "<|im_end|>", "<tool_call>", "tool_call", "think"),
]
TEXTS = st.lists(
    st.text(max_size=6) | st.sampled_from(FRAGMENTS),
    max_size=12,
).map("".join)
PLACES = st.sampled_from([Place.TEXT, Place.NAME, Place.VALUE])
PROSE = "The river turns east below the mill, and nobody asked the miller why."


def replaced(*passages: Passage, key: bytes = b"k") -> list[str]:
    substitution = Substitution(SUBSTITUTES, passages, key)
    return [substitution.replace(passage) for passage in passages]


def texts_replaced(*texts: str, key: bytes = b"k") -> list[str]:
    return replaced(*(Passage(text, Place.TEXT) for text in texts), key=key)


def tokens(text: str, place: Place) -> list[int]:
    """Ids as in a prompt; half surrogate pairs, which none holds, as one token."""
    printed = json.dumps(text, ensure_ascii=False) if place.quoted else text
    encodable = re.sub("[\ud800-\udfff]+", "<|endoftext|>", printed)
    return TOKENIZER.encode(encodable).ids


def bytewise(control: str | None = None) -> Substitutes:
    """Of a tokenizer that cuts like the bundled one but merges nothing."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = TOKENIZER.pre_tokenizer
    if control:
        tokenizer.add_tokens([control])
    return Substitutes(BpeTokenizer(tokenizer))


def shared(a: list[int], b: list[int]) -> int:
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def words(text: str) -> list[str]:
    return [
        part.text for part in BPE.pre_tokenize(text) if part.kind is PreTokenKind.WORD
    ]


# Words that share bytes of a character, or a bare space, with parts of other kinds.
@example(["été", "5", "5é", " x", "\u00d7"], " ", Place.TEXT)
@example(["、", "ゝ", "ゞ", "カ"], "<", Place.NAME)
@example(["ق", "٣", "ك", "٤"], "x", Place.VALUE)
@given(st.lists(TEXTS, min_size=1, max_size=4), TEXTS, PLACES)
def test_token_counts_and_common_prefixes_stay(
    ends: list[str], start: str, place: Place
) -> None:
    texts = [start, *(start + end for end in ends)]
    swapped = replaced(*(Passage(text, place) for text in texts))
    before = [tokens(text, place) for text in texts]
    after = [tokens(text, place) for text in swapped]
    assert [len(ids) for ids in after] == [len(ids) for ids in before]
    for i, j in combinations(range(len(texts)), 2):
        assert shared(after[i], after[j]) == shared(before[i], before[j])
        assert (swapped[i] == swapped[j]) == (texts[i] == texts[j])


@given(TEXTS)
def test_what_is_no_word_and_no_digit_stays_in_place(text: str) -> None:
    (swapped,) = texts_replaced(text)
    before, after = list(BPE.pre_tokenize(text)), list(BPE.pre_tokenize(swapped))
    assert [part.kind for part in after] == [part.kind for part in before]
    for old, new in zip(before, after, strict=True):
        if old.kind is PreTokenKind.OTHER:
            assert new.text == old.text


@given(TEXTS)
def test_no_word_of_three_ascii_letters_stays(text: str) -> None:
    (swapped,) = texts_replaced(text)
    for old, new in zip(words(text), words(swapped), strict=True):
        if re.fullmatch(" ?[A-Za-z]{3,}", old):
            assert new.strip().lower() != old.strip().lower()


def test_a_key_gives_one_substitute_and_another_key_another() -> None:
    assert texts_replaced(PROSE, key=b"a") == texts_replaced(PROSE, key=b"a")
    assert texts_replaced(PROSE, key=b"a") != texts_replaced(PROSE, key=b"b")


def test_a_word_has_other_substitutes_after_other_words() -> None:
    lines = [f"{first} hides a parcel" for first in ("Ann", "Ben", "Cleo", "Dora")]
    ends = {line.split(" ", 1)[1] for line in texts_replaced(*lines)}
    assert len(ends) == len(lines)


def test_what_repeats_repeats_from_the_fourth_word_on() -> None:
    a, b = texts_replaced(f"First. {PROSE}", f"And then once more: {PROSE}")
    tail = PROSE.split()[3:]
    assert words(a)[-len(tail) :] == words(b)[-len(tail) :]
    assert words(a)[-len(tail) - 1] != words(b)[-len(tail) - 1]


def test_text_and_json_give_a_word_the_same_substitute_from_the_fourth_on() -> None:
    text = 'Say "yes"\nand\twait\nuntil noon.'
    raw, quoted = replaced(Passage(text, Place.TEXT), Passage(text, Place.VALUE))
    assert words(raw)[3:] == words(quoted)[3:]


def test_words_of_one_context_stay_apart_and_none_stays() -> None:
    letters = ascii_letters[:40]
    passages = [Passage(letter, Place.TEXT) for letter in letters]
    substitution = Substitution(bytewise(), passages, b"k")
    swapped = [substitution.replace(passage) for passage in passages]
    assert len(set(swapped)) == len(letters)
    for old, new in zip(letters, swapped, strict=True):
        assert new.lower() != old.lower()


def test_control_tokens_stay_and_none_arises() -> None:
    texts = [f"<{letter}>" for letter in ascii_letters]
    passages = [Passage(text, Place.TEXT) for text in texts]
    substitution = Substitution(bytewise(control="<q>"), passages, b"k")
    control = [text for text in passages if substitution.replace(text) == "<q>"]
    assert control == [Passage("<q>", Place.TEXT)]
    (swapped,) = texts_replaced("Say <think>no</think> to <|im_end|>")
    assert re.fullmatch(r"\w+ <think>\w+</think> \w+ <\|im_end\|>", swapped)


def test_numbers_stay_numbers_of_the_same_length() -> None:
    numbers = ["0", "7", "10", "-120", "99999", "0.5", "12.305", "1e-07"]
    swapped = replaced(*(Passage(number, Place.NUMBER) for number in numbers))
    assert [re.sub("[1-9]", "1", n) for n in swapped] == [
        re.sub("[1-9]", "1", n) for n in numbers
    ]
    assert swapped != numbers
    assert swapped[1][0] != swapped[0]


def test_escapes_in_text_are_replaced_but_control_characters_in_json_stay() -> None:
    raw, quoted = replaced(
        Passage("\\u4f60\\u597d", Place.TEXT), Passage("\x1b\x07", Place.VALUE)
    )
    assert re.fullmatch(r"(\\u[0-9A-Fa-f]{4}){2}", raw)
    assert raw != "\\u4f60\\u597d"
    assert quoted == "\x1b\x07"


def test_long_runs_of_letters_are_replaced() -> None:
    texts = ["abcdefghij" * 500, "一二三四五六七八九十" * 200]
    swapped = texts_replaced(*texts)
    for old, new in zip(texts, swapped, strict=True):
        assert len(tokens(new, Place.TEXT)) == len(tokens(old, Place.TEXT))
    assert not set(swapped[1]) & set(texts[1])


def test_a_vocabulary_too_small_is_said() -> None:
    # After a backslash only letters may stand that make no escape of it.
    texts = [f"\\{letter}" for letter in ascii_letters if letter not in "bfnrt"]
    passages = [Passage(text, Place.TEXT) for text in texts]
    with pytest.raises(TraceError, match="too many different words"):
        Substitution(bytewise(), passages, b"k")
