"""Watching an answer: a row per token, and the input of a call while it grows."""

import json

import pytest

from mlxlab.decoding import (
    CallEnd,
    CallInput,
    CallStart,
    Decoder,
    Grammar,
    Stopped,
    Text,
    Thinking,
    ThinkingEnd,
    join_pieces,
    watch,
)
from mlxlab.models.folder import find_model

INPUT = '{"command": "echo \\"é\\" <b>", "timeout": 1500, "background": false}'
ANSWER = f"""<think>
Look.
</think>

Two files 😀:
<tool_call>
{{"name": "Bash", "arguments": {INPUT}}}
</tool_call>"""


def test_events_are_those_of_a_decoder_and_tokens_those_of_the_tokenizer() -> None:
    watched = watch(ANSWER)
    ids = find_model().tokenizer.encode(ANSWER)
    assert watched.tokens == ids
    decoder = Decoder(Grammar.of(find_model()), thinking=False)
    events = [event for token in ids for event in decoder.feed(token)]
    assert watched.events == join_pieces(events + decoder.finish())
    kinds = [type(event) for event in watched.events]
    assert kinds == [Thinking, ThinkingEnd, Text, CallStart, CallInput, CallEnd]


def test_there_is_a_step_for_each_token_and_for_the_end() -> None:
    watched = watch("Hi 😀\n")
    assert [step.token for step in watched.steps] == [*watched.tokens, None]
    assert "".join(step.written for step in watched.steps) == "Hi 😀\n"
    tokenizer = find_model().tokenizer
    assert [s.text for s in watched.steps[:-1]] == [
        tokenizer.decode([token]) for token in watched.tokens
    ]


def test_ids_and_another_models_folder_are_taken_too() -> None:
    ids = find_model().tokenizer.encode(ANSWER)
    assert watch(ids, find_model()).events == watch(ANSWER).events


def test_thinking_and_stop_sequences_reach_the_decoder() -> None:
    assert watch("No tag", thinking=True).events[0] == Thinking("No tag")
    stopped = watch("The END of it", stop=["END"])
    assert stopped.events == [Text("The "), Stopped("END")]


def test_both_tables_have_a_row_for_each_step() -> None:
    watched = watch("<think>a</think>Is 1 < 2?")
    lines = repr(watched).splitlines()
    assert lines[0].split() == ["token", "events"]
    assert sum(not line.startswith(" ") for line in lines[1:]) == len(watched.steps)
    assert "Thinking(text='a')" in repr(watched)
    html = watched._repr_html_()
    assert html.count("<tr>") == 1 + len(watched.steps)
    assert "1 < 2" not in html
    assert "&lt;" in html


def test_what_is_sent_of_a_call_and_what_waits_is_what_was_written() -> None:
    steps = watch(ANSWER).call.steps
    assert steps[-1] == (INPUT, "")
    for sent, waiting in steps:
        assert INPUT.startswith(sent + waiting)
    sent_lengths = [len(sent) for sent, _ in steps]
    assert sent_lengths == sorted(sent_lengths)
    # Something waits most of the time, and a part of a number is never sent.
    assert any(waiting for _, waiting in steps)
    assert not any(sent.endswith(("15", "150")) for sent, _ in steps)


def test_the_growth_of_a_call_is_shown_a_line_per_token() -> None:
    call = watch(ANSWER).call
    assert len(repr(call).splitlines()) == len(call.steps)
    html = call._repr_html_()
    assert html.count("<mark>") == len(call.steps)
    assert "<b>" not in html


@pytest.mark.parametrize("answer", ["", "No call.", "<tool_call>\n{bad"])
def test_without_a_call_nothing_grows(answer: str) -> None:
    assert watch(answer).call.steps == ()


def test_a_call_that_breaks_has_no_input_that_waits() -> None:
    watched = watch('<tool_call>\n{"name": "Bash", "arguments": {"command": "rm')
    sent, waiting = watched.call.steps[-1]
    assert json.loads(sent)["mlxlab_malformed_call"] is True
    assert not waiting


def test_only_the_first_call_grows() -> None:
    two = watch(f"{ANSWER}\n{ANSWER.partition('😀:')[2]}")
    assert two.call.steps == watch(ANSWER).call.steps
