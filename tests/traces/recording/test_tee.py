"""What passes a tee is in the trace as it was, and passes as it was."""

from __future__ import annotations

import errno
import json
import os
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest
from starlette.types import Message, Receive, Scope, Send

from mlxlab.traces import Exchange, Response, Trace, TraceWriter, read_trace
from mlxlab.traces.recording.tee import Tee
from mlxlab.web.sse import frames
from tests.support.asgi import HOST, drive, http_scope, requests
from tests.support.trace_samples import request

MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": "Done. " * 40}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 3, "output_tokens": 4},
}
JSON, EVENTS = b"application/json", b"text/event-stream"


@dataclass
class App:
    """Answers in chunks; may then fail, or wait for the client to leave."""

    kind: bytes = JSON
    chunks: tuple[bytes, ...] = (b"{}",)
    status: int = 200
    then: Exception | None = None
    waits: bool = False
    script: bool = False
    asked: list[Message] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked.append(await receive())
        if self.script:
            scope["state"]["script"] = True
        headers = [(b"content-type", self.kind)]
        await send(
            {"type": "http.response.start", "status": self.status, "headers": headers}
        )
        for chunk in self.chunks:
            body = {"type": "http.response.body", "body": chunk, "more_body": True}
            await send(body)
        if self.waits:
            self.asked.append(await receive())
            return
        if self.then:
            raise self.then
        await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[TraceWriter]:
    with TraceWriter(tmp_path / "trace.jsonl") as writer:
        yield writer


def sent(body: Any = None) -> list[Message]:
    return requests(json.dumps(request(0) if body is None else body).encode())


def answer(trace: Trace) -> Response:
    (exchange,) = trace.exchanges
    assert exchange.response is not None
    return exchange.response


def test_a_request_is_recorded_as_it_was_sent(writer: TraceWriter) -> None:
    app = App()
    headers = [HOST, (b"x-api-key", b"sk-1"), (b"anthropic-version", b"2023-06-01")]
    scope = http_scope(
        raw_path=b"/anthropic/v1/messages", query_string=b"beta=true", headers=headers
    )
    plain = drive(App(), scope, sent())
    assert drive(Tee(app, writer), scope, sent()) == plain
    assert app.asked == sent()
    (exchange,) = read_trace(writer.path)
    assert exchange.path == "/v1/messages?beta=true"
    assert exchange.method == "POST"
    assert exchange.body == request(0)
    assert exchange.headers == {"anthropic-version": "2023-06-01"}


def test_a_request_is_in_the_file_before_the_application_sees_it(
    writer: TraceWriter,
) -> None:
    seen: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(len(read_trace(writer.path)))

    drive(Tee(app, writer))
    assert seen == [1]
    assert read_trace(writer.path).exchanges[0].response is None


@pytest.mark.parametrize("cut", [1, 7, 1000])
def test_a_stream_is_put_together_again(writer: TraceWriter, cut: int) -> None:
    stream = b"".join(frames(MESSAGE))
    chunks = tuple(stream[i : i + cut] for i in range(0, len(stream), cut))
    drive(Tee(App(EVENTS, chunks), writer), received=sent())
    response = answer(read_trace(writer.path))
    assert response.message == MESSAGE
    assert response.status == 200
    assert 0 < response.first_byte_s < 5
    assert not response.script


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ((json.dumps(MESSAGE)[:9].encode(), json.dumps(MESSAGE)[9:].encode()), MESSAGE),
        ((), None),
        ((b"[1]",), None),
        ((b"no JSON",), None),
        ((b'{"a": NaN}',), None),
        ((b"[" * 100_000,), None),
    ],
)
def test_an_answer_in_one_piece_is_kept_if_it_is_an_object(
    writer: TraceWriter, chunks: tuple[bytes, ...], message: Any
) -> None:
    drive(Tee(App(JSON, chunks, status=529), writer), received=sent())
    response = answer(read_trace(writer.path))
    assert (response.status, response.message) == (529, message)
    assert response.first_byte_s > 0


def test_an_answer_from_a_script_is_marked(writer: TraceWriter) -> None:
    drive(Tee(App(script=True), writer), http_scope(state={}), sent())
    assert answer(read_trace(writer.path)).script


def test_a_client_that_leaves_is_recorded_with_what_it_heard(
    writer: TraceWriter,
) -> None:
    app = App(EVENTS, tuple(frames(MESSAGE))[:3], waits=True)
    gone: Message = {"type": "http.disconnect"}
    drive(Tee(app, writer), received=[*sent(), gone])
    assert app.asked == [*sent(), gone]
    message = answer(read_trace(writer.path)).message
    assert message is not None
    assert message["content"][0]["text"] == MESSAGE["content"][0]["text"][:80]  # type: ignore[index]
    assert message["stop_reason"] is None


def test_an_answer_that_is_cancelled_is_recorded(writer: TraceWriter) -> None:
    tee = Tee(App(EVENTS, tuple(frames(MESSAGE))[:3], waits=True), writer)

    async def send(message: Message) -> None:
        """Nobody listens."""

    async def run() -> None:
        messages = iter(sent())

        async def receive() -> Message:
            for message in messages:
                return message
            tasks.cancel_scope.cancel()
            await anyio.sleep_forever()
            raise AssertionError

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tee, http_scope(), receive, send)

    anyio.run(run)
    message = answer(read_trace(writer.path)).message
    assert message is not None
    assert message["stop_reason"] is None


def test_an_application_that_fails_is_recorded_and_fails(writer: TraceWriter) -> None:
    tee = Tee(App(EVENTS, tuple(frames(MESSAGE))[:1], then=OSError("no")), writer)
    with pytest.raises(OSError, match="no"):
        drive(tee, received=sent())
    assert answer(read_trace(writer.path)).message is not None


@pytest.mark.parametrize(
    "path", [b"/", b"/health", b"/v1", b"/v10/messages", b"/anthropic/metrics"]
)
def test_what_is_not_the_api_is_not_recorded(writer: TraceWriter, path: bytes) -> None:
    app = App()
    assert drive(Tee(app, writer), http_scope(raw_path=path), sent()).status == 200
    assert app.asked == sent()
    assert not len(read_trace(writer.path))


def test_the_writer_may_change_between_and_within_requests(
    tmp_path: Path, writer: TraceWriter
) -> None:
    tee = Tee(App(), None)
    drive(tee, received=sent({"number": 0}))
    tee.writer = writer
    drive(tee, received=sent({"number": 1}))

    with TraceWriter(tmp_path / "second.jsonl") as second:

        async def switching(scope: Scope, receive: Receive, send: Send) -> None:
            tee.writer = second
            await App()(scope, receive, send)

        tee.app = switching
        drive(tee, received=sent({"number": 2}))
        drive(tee, received=sent({"number": 3}))
    tee.writer = None
    drive(tee, received=sent({"number": 4}))
    first, later = read_trace(writer.path), read_trace(tmp_path / "second.jsonl")
    assert [e.body for e in first] == [{"number": 1}, {"number": 2}]
    assert [e.body for e in later] == [{"number": 3}]
    assert all(e.response is not None for e in [*first, *later])


@pytest.mark.parametrize("lines", [0, 2, 3, 5])
def test_a_full_disk_stops_the_recording_and_nothing_else(
    writer: TraceWriter,
    lines: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The disk takes some lines more, then half of one."""
    left = iter(range(lines))

    def write(descriptor: int, data: bytes) -> None:
        if next(left, None) is None:
            os.write(descriptor, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.write(descriptor, data)

    monkeypatch.setattr("mlxlab.traces.writer._write", write)
    app = App()
    tee = Tee(app, writer)
    for number in range(4):
        assert drive(tee, received=sent({"number": number})).json == {}
    assert app.asked[-1]["body"] == sent({"number": 3})[0]["body"]
    whole = read_trace(writer.path)
    assert len(whole) == -(-lines // 2)
    assert tee.writer is None
    assert tee.failure.endswith(
        f"No space left on device; {len(whole)} requests are in it"
    )
    assert caplog.messages == [f"the recording has stopped: {tee.failure}"]


def test_an_answer_that_cannot_be_written_stops_nothing(
    writer: TraceWriter, caplog: pytest.LogCaptureFixture
) -> None:
    deep: Any = 1
    for _ in range(900):
        deep = [deep]
    call = {"type": "tool_use", "id": "t", "name": "n", "input": {"a": deep}}
    tee = Tee(App(EVENTS, tuple(frames({**MESSAGE, "content": [call]}))), writer)
    drive(tee, received=sent())
    assert [e.body for e in read_trace(writer.path)] == [request(0)]
    assert (tee.writer, tee.failure) == (writer, "")
    (message,) = caplog.messages
    assert message.startswith("an answer is not in the trace")


@pytest.mark.parametrize(
    "data",
    [
        b'{"system": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"messages": [' + b"1," * 2_000_000 + b"1]}",
    ],
    ids=["deep", "long"],
)
def test_a_body_beyond_the_limits_passes_and_is_not_parsed(
    data: bytes, writer: TraceWriter
) -> None:
    app = App()
    tracemalloc.start()
    assert drive(Tee(app, writer), received=requests(data)).json == {}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert app.asked == requests(data)
    assert [e.body for e in read_trace(writer.path)] == [None]
    assert peak < 10 * len(data) + 2**20


def test_a_client_that_left_before_is_not_recorded(writer: TraceWriter) -> None:
    app = App()
    assert not drive(Tee(app, writer), received=[{"type": "http.disconnect"}]).messages
    assert not app.asked
    assert not len(read_trace(writer.path))


def test_the_lifespan_passes(writer: TraceWriter) -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    drive(Tee(app, writer), {"type": "lifespan"})
    assert seen == ["lifespan"]


def test_a_listener_hears_each_exchange_once_also_without_an_answer(
    tmp_path: Path,
) -> None:
    heard: list[Exchange] = []

    async def gone(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()

    with TraceWriter(tmp_path / "trace.jsonl") as writer:
        drive(Tee(App(JSON), writer, heard.append), received=sent())
        drive(Tee(gone, writer, heard.append), received=sent())
    assert [own.id for own in heard] == [0, 1]
    first, second = heard
    assert first.response is not None
    assert first.body == second.body == read_trace(writer.path).exchanges[0].body
    assert second.response is None
