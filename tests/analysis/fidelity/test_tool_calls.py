"""Tool calls read off greedy answers, and when two answers call the same."""

from typing import Any

import pytest

from mlxlab.analysis.fidelity.tool_calls import Agreement, AskedCall, agree, read_calls
from mlxlab.decoding import Grammar
from mlxlab.models.folder import find_model


@pytest.fixture(scope="module")
def grammar() -> Grammar:
    return Grammar.of(find_model())


def ids_of(text: str) -> list[int]:
    tokenizer: Any = find_model().tokenizer
    return list(tokenizer.encode(text, add_special_tokens=False))


CALL = '<tool_call>\n{"name": "Read", "arguments": {"key": [1, "a"]}}\n</tool_call>'


def test_reads_calls_behind_reasoning_and_text(grammar: Grammar) -> None:
    answer = f"<think>\nwhy\n</think>\n\nNow.\n{CALL}\n{CALL.replace('Read', 'Bash')}"
    calls = read_calls(grammar, ids_of(answer), thinking=False)
    arguments = {"key": [1, "a"]}
    assert calls == (AskedCall("Read", arguments), AskedCall("Bash", arguments))


def test_a_call_inside_reasoning_is_none(grammar: Grammar) -> None:
    assert read_calls(grammar, ids_of(CALL), thinking=True) == ()


def test_no_arguments_are_an_empty_object(grammar: Grammar) -> None:
    answer = '<tool_call>\n{"name": "Read"}\n</tool_call>'
    calls = read_calls(grammar, ids_of(answer), thinking=False)
    assert calls == (AskedCall("Read", {}),)


def test_a_call_that_is_cut_off_has_a_name_only(grammar: Grammar) -> None:
    answer = CALL[: CALL.index("[1")]
    calls = read_calls(grammar, ids_of(answer), thinking=False)
    assert calls == (AskedCall("Read", None),)


READ, BASH = AskedCall("Read", {"a": 1}), AskedCall("Bash", {"a": 1})


@pytest.mark.parametrize(
    ("reference", "other", "expected"),
    [
        ([], [READ], Agreement(None, None)),
        ([READ], [READ], Agreement(names=True, arguments=True)),
        ([READ], [AskedCall("Read", {"a": 2})], Agreement(names=True, arguments=False)),
        ([READ], [BASH], Agreement(names=False, arguments=False)),
        ([READ], [], Agreement(names=False, arguments=False)),
        ([READ, BASH], [READ], Agreement(names=False, arguments=False)),
        ([AskedCall("Read", None)], [READ], Agreement(names=True, arguments=None)),
        ([READ, AskedCall("Bash", None)], [READ], Agreement(False, True)),
    ],
)
def test_agreement(
    reference: list[AskedCall], other: list[AskedCall], expected: Agreement
) -> None:
    assert agree(reference, other) == expected
