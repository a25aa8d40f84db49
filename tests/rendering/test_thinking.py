"""Signed thinking comes back id for id; the rest of the prompt is untouched."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxlab.models.folder import find_model
from mlxlab.prompt import Prompt, common_prefix
from mlxlab.rendering.renderer import Renderer
from mlxlab.rendering.thinking import read_signature, sign
from tests.support import wire

MODEL = find_model()
TOKENIZER: Any = MODEL.tokenizer
#: One id a character: not how the tokenizer cuts this text by itself.
SPELT = [i for c in "let me see" for i in TOKENIZER.encode(c)]
OPEN, CLOSE = (TOKENIZER.convert_tokens_to_ids(t) for t in ("<think>", "</think>"))
NEWLINE = TOKENIZER.encode("\n")
IDS = [OPEN, *NEWLINE, *SPELT, *NEWLINE, CLOSE]
ANY_IDS = st.lists(st.integers(0, 2**31 - 1), max_size=200)


@given(ANY_IDS)
def test_ids_come_back(ids: list[int]) -> None:
    read = read_signature(sign(ids, "abc"), "abc")
    assert read is not None
    assert read.dtype == np.int32
    assert read.tolist() == ids


@given(ANY_IDS)
def test_another_tokenizer_reads_nothing(ids: list[int]) -> None:
    assert read_signature(sign(ids, "abc"), "abd") is None


@given(ANY_IDS, st.integers(0), st.integers(1, 255))
def test_damage_is_noticed(ids: list[int], at: int, change: int) -> None:
    head, _, tail = sign(ids, "abc").partition(".")
    data = bytearray(urlsafe_b64decode(tail))
    data[at % len(data)] ^= change
    read = read_signature(f"{head}.{urlsafe_b64encode(bytes(data)).decode()}", "abc")
    assert read is None or read.tolist() == ids


@pytest.mark.parametrize("foreign", ["", "EqQBCkYI", "mlxlab1.", "mlxlab1.%%%", "é"])
def test_foreign_signatures_are_left_alone(foreign: str) -> None:
    assert read_signature(foreign, "abc") is None


def test_a_bomb_is_not_unpacked() -> None:
    bomb = sign([0] * 50_000_000, "abc")
    assert len(bomb) < 10**6
    assert read_signature(bomb, "abc") is None


def asked() -> dict[str, Any]:
    return wire.first_body() | {"thinking": {"type": "adaptive"}}


def followed_up(thinking: dict[str, Any], text: str = "Done.") -> dict[str, Any]:
    answer = [{"type": "thinking", **thinking}, {"type": "text", "text": text}]
    body = asked()
    body["messages"] += [
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "Go on."},
    ]
    return body


def render(body: dict[str, Any]) -> Prompt:
    return Renderer(MODEL).render(body)


@pytest.mark.parametrize("text", ["let me see", ""])
def test_the_next_prompt_extends_what_was_generated(text: str) -> None:
    signature = sign(IDS, MODEL.tokenizer_digest)
    prompt = render(followed_up({"thinking": text, "signature": signature}))
    generated = [*render(asked()).tokens.tolist(), *IDS, *TOKENIZER.encode("\n\nDone.")]
    assert prompt.tokens.tolist()[: len(generated)] == generated
    unsigned = render(followed_up({"thinking": "let me see", "signature": ""}))
    assert TOKENIZER.decode(prompt.tokens) == TOKENIZER.decode(unsigned.tokens)
    assert len(prompt) > len(unsigned)


def test_segments_still_tell_where_tokens_are_from() -> None:
    signature = sign(IDS, MODEL.tokenizer_digest)
    prompt = render(followed_up({"thinking": "", "signature": signature}))
    assert prompt.segments[0].start == 0
    assert prompt.segments[-1].stop == len(prompt)
    texts = {
        s.label.split("].")[-1]: TOKENIZER.decode(prompt.tokens[s.start : s.stop])
        for s in prompt.segments
    }
    assert "let me see" in texts["thinking[0]"]
    assert "Done." in texts["text[1]"]


@pytest.mark.parametrize(
    "signature",
    [
        sign(IDS, "another tokenizer"),
        sign([OPEN, 10**6, CLOSE], MODEL.tokenizer_digest),
        sign([OPEN, -1, CLOSE], MODEL.tokenizer_digest),
        sign([OPEN], MODEL.tokenizer_digest),
        sign([], MODEL.tokenizer_digest),
        "EqQBCkYI",
        "mlxlab1.AAAA",
    ],
)
def test_a_signature_that_does_not_fit_changes_nothing(signature: str) -> None:
    block = {"thinking": "let me see"}
    prompt = render(followed_up(block | {"signature": signature}))
    unsigned = render(followed_up(block | {"signature": ""}))
    assert np.array_equal(prompt.tokens, unsigned.tokens)


def test_edited_thinking_is_rendered_as_edited() -> None:
    signature = sign(IDS, MODEL.tokenizer_digest)
    edited = render(followed_up({"thinking": "let me be", "signature": signature}))
    unsigned = render(followed_up({"thinking": "let me be", "signature": ""}))
    assert np.array_equal(edited.tokens, unsigned.tokens)


def test_an_exchange_is_rendered_with_the_ids_of_its_answer() -> None:
    signature = sign(IDS, MODEL.tokenizer_digest)
    body = followed_up({"thinking": "", "signature": signature})
    message = {"content": body["messages"][-2]["content"]}
    prompt, answer = Renderer(MODEL).render_exchange(asked(), message)
    later = render(body)
    extended = prompt.extended(answer)
    assert answer.tolist()[: len(IDS)] == IDS
    assert common_prefix(extended.tokens, later.tokens) == len(extended)


def test_a_last_assistant_message_is_gone_on_from() -> None:
    body = wire.first_body()
    body["messages"].append({"role": "assistant", "content": "It is"})
    prompt = render(body)
    base = render(wire.first_body() | {"thinking": {"type": "disabled"}})
    assert prompt.tokens.tolist() == [*base.tokens.tolist(), *TOKENIZER.encode("It is")]
    assert prompt.segments[-1].label == f"messages[{len(body['messages']) - 1}].text[0]"
    assert prompt.segments[-1].stop == len(prompt)
