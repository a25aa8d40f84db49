"""A message survives being streamed, however the stream is cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxlab.web.sse import CompletionAccumulator, MessageAccumulator, frame, frames

MESSAGE: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [
        {"type": "thinking", "thinking": "Hm. " * 50, "signature": "c2ln"},
        {"type": "text", "text": "Größe: 3 m³ 🙂"},
        {
            "type": "tool_use",
            "id": "t1",
            "name": "Bash",
            "input": {"c": "ls", "n": [1]},
        },
        {"type": "tool_use", "id": "t2", "name": "List", "input": {}},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {"input_tokens": 7, "output_tokens": 9},
}


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 200), max_size=50), st.sampled_from([b"\n", b"\r\n"]))
def test_any_cut_gives_the_message_back(cuts: list[int], end: bytes) -> None:
    stream = b"".join(frames(MESSAGE)).replace(b"\n", end)
    accumulator = MessageAccumulator()
    for cut in cuts:
        accumulator.feed(stream[:cut])
        stream = stream[cut:]
    accumulator.feed(stream)
    assert accumulator.message == MESSAGE


def test_every_frame_has_its_event_line() -> None:
    for data in frames(MESSAGE):
        event, value, *rest = data.split(b"\n")
        assert event.startswith(b"event: ")
        assert b'{"type":"' + event[7:] + b'"' in value
        assert rest == [b"", b""]


def test_blocks_open_one_at_a_time_with_rising_index() -> None:
    open_block = None
    seen: list[bool] = []
    for data in frames(MESSAGE):
        kind = data.split(b"\n")[0][7:]
        if kind == b"content_block_start":
            assert open_block is None
            open_block = len(seen)
            seen.append(f'"index":{open_block},'.encode() in data)
        elif kind == b"content_block_stop":
            open_block = None
    assert seen == [True] * 4


def test_a_cut_message_has_no_stop_reason() -> None:
    accumulator = MessageAccumulator()
    for data in list(frames(MESSAGE))[:5]:
        accumulator.feed(data)
    assert accumulator.message is not None
    assert accumulator.message["stop_reason"] is None
    assert accumulator.message["content"][0]["thinking"].startswith("Hm.")


def test_an_error_is_kept() -> None:
    failure = frame("error", error={"type": "api_error", "message": "no"})
    alone, midway = MessageAccumulator(), MessageAccumulator()
    alone.feed(failure)
    midway.feed(next(frames(MESSAGE)) + failure)
    assert alone.message is not None
    assert alone.message["type"] == "error"
    assert midway.message is not None
    assert midway.message["error"]["message"] == "no"


@pytest.mark.parametrize(
    "nonsense",
    [
        b"data: {\n\n",
        b"data: 3\n\n",
        b'data: {"type": "content_block_delta", "index": 9, "delta": {}}\n\n',
        b'data: {"type": "content_block_stop", "index": []}\n\n',
        b'data: {"type": "later_invention"}\n\n: comment\n\n',
    ],
)
def test_nonsense_between_events_is_skipped(nonsense: bytes) -> None:
    accumulator = MessageAccumulator()
    for data in frames(MESSAGE):
        accumulator.feed(nonsense + data)
    assert accumulator.message == MESSAGE


def chunk(**delta: object) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    return f"data: {json.dumps({'choices': [choice]})}\n\n".encode()


def test_a_chat_completion_is_rebuilt_from_its_chunks() -> None:
    call = {"index": 0, "id": "c1", "function": {"name": "Bash", "arguments": '{"a'}}
    rest = {"index": 0, "function": {"arguments": '": 1}'}}
    usage = {"choices": [], "usage": {"prompt_tokens": 3}}
    stream = b"".join(
        [
            chunk(role="assistant", content="Loo"),
            b"data: {\n\n",
            chunk(content="k.", reasoning_content="Hm."),
            chunk(tool_calls=[call]),
            chunk(tool_calls=[rest]),
            f"data: {json.dumps(usage)}\n\ndata: [DONE]\n\n".encode(),
        ]
    )
    for size in (1, 7, len(stream)):
        accumulator = CompletionAccumulator()
        for start in range(0, len(stream), size):
            accumulator.feed(stream[start : start + size])
        assert accumulator.message is not None
        (choice,) = accumulator.message["choices"]
        assert choice["message"] == {
            "role": "assistant",
            "content": "Look.",
            "reasoning_content": "Hm.",
            "tool_calls": [
                {"id": "c1", "function": {"name": "Bash", "arguments": '{"a": 1}'}}
            ],
        }
        assert accumulator.message["usage"] == {"prompt_tokens": 3}
