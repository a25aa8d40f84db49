"""The recorder answers clients, writes what was said, and nothing of theirs leaks."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from mlxlab.errors import MlxlabError, ScriptError, ServerError, TraceError
from mlxlab.traces import Trace, read_trace
from mlxlab.traces.recording.recorder import Recording, recording
from mlxlab.web.background import BackgroundServer
from mlxlab.web.sse import MessageAccumulator, frames
from tests.support.trace_samples import HEADERS, request

SCRIPT = {
    "conversations": [
        {
            "match": "Fix it",
            "replies": [[{"type": "tool_use", "name": "Bash", "input": {"c": "ls"}}]],
        }
    ],
    "otherwise": [{"type": "text", "text": "Done."}],
}


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.json"
    path.write_text(json.dumps(SCRIPT))
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "trace.jsonl"


@pytest.fixture
def scripted(out: Path, script: Path) -> Iterator[Recording]:
    with recording(out, script=script) as running:
        yield running


def read_when(out: Path, answers: int) -> Trace:
    """The trace once it has that many answers: they are written after the last byte."""
    for _ in range(500):
        trace = read_trace(out)
        if sum(e.response is not None for e in trace) >= answers:
            return trace
        time.sleep(0.01)
    raise AssertionError(f"{answers} answers expected: {trace}")


def accumulated(data: bytes) -> dict[str, Any]:
    accumulator = MessageAccumulator()
    accumulator.feed(data)
    assert accumulator.message is not None
    return accumulator.message


@pytest.mark.parametrize("prefix", ["", "/anthropic"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_script_answers_and_is_recorded(
    scripted: Recording, out: Path, prefix: str, stream: bool
) -> None:
    body = request(0) | {"stream": stream}
    url = f"{scripted.url}{prefix}/v1/messages?beta=true"
    answer = httpx.post(url, json=body, headers=HEADERS)
    message = accumulated(answer.content) if stream else answer.json()
    assert message["content"][0]["input"] == {"c": "ls"}
    (exchange,) = read_when(out, 1)
    assert exchange.body == body
    assert exchange.path == "/v1/messages?beta=true"
    assert exchange.is_inference
    assert exchange.response is not None
    assert exchange.response.message == message
    assert exchange.response.script
    assert 0 < exchange.response.first_byte_s < 5
    assert "sk-dummy" not in out.read_text()


def test_side_requests_get_sensible_answers(scripted: Recording, out: Path) -> None:
    with httpx.Client(base_url=scripted.url) as client:
        count = client.post("/v1/messages/count_tokens", json=request(0))
        assert count.json()["input_tokens"] > 100
        assert client.head("/api/hello").status_code == 200
        assert client.get("/v1/models?limit=1000").json()["data"] == []
        unknown = client.get("/v1/files")
        assert (unknown.status_code, unknown.json()["type"]) == (404, "error")
        for bad in (b"{", b"[]", b"[" * 100_000, b'{"a": NaN}'):
            refused = client.post("/v1/messages", content=bad)
            assert refused.status_code == 400
            assert refused.json()["error"]["type"] == "invalid_request_error"
    trace = read_when(out, 7)
    assert [e.path for e in trace.exchanges[:3]] == [
        "/v1/messages/count_tokens",
        "/v1/models?limit=1000",
        "/v1/files",
    ]
    assert [e.is_inference for e in trace] == [False] * 3 + [True] * 4


def test_requests_that_a_page_may_have_sent_are_refused(
    scripted: Recording, out: Path
) -> None:
    url = f"{scripted.url}/v1/messages"
    for name, value in [
        ("host", "evil.example"),
        ("host", "127.0.0.1.evil.example:80"),
        ("host", "a/?x="),
        ("origin", "http://evil.example"),
        ("origin", "null"),
    ]:
        answer = httpx.post(url, json=request(0), headers={name: value})
        assert answer.status_code == 403
    assert len(read_trace(out)) == 0


def test_a_body_over_the_limit_is_refused(scripted: Recording) -> None:
    answer = httpx.post(f"{scripted.url}/v1/messages", content=b" " * (2**25 + 1))
    assert answer.status_code == 413
    assert answer.json()["error"]["type"] == "request_too_large"


def test_requests_side_by_side_are_all_recorded(scripted: Recording, out: Path) -> None:
    async def post(client: httpx.AsyncClient, number: int) -> None:
        body = request(0) | {"number": number}
        await client.post(f"{scripted.url}/v1/messages", json=body)

    async def post_all() -> None:
        async with httpx.AsyncClient() as client:
            await asyncio.gather(*(post(client, n) for n in range(40)))

    asyncio.run(post_all())
    numbers = [(e.body or {})["number"] for e in read_when(out, 40)]
    assert sorted(numbers) == list(range(40))


MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": "From above."}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 3, "output_tokens": 4},
}


class Upstream:
    """A Messages endpoint that does what a request's ``model`` says."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.go_on = threading.Event()
        self.app = FastAPI()
        self.app.post("/base/v1/messages", response_model=None)(self.messages)

    async def messages(self, request: Request) -> JSONResponse | StreamingResponse:
        self.headers = dict(request.headers)
        body = await request.json()
        if body["model"] == "overloaded":
            error = {"type": "error", "error": {"type": "overloaded_error"}}
            return JSONResponse(error, 529, {"retry-after": "3"})
        kind = "text/event-stream"
        return StreamingResponse(self.events(body["model"]), media_type=kind)

    async def events(self, model: str) -> AsyncIterator[bytes]:
        first, *rest = frames(MESSAGE)
        yield first
        while model == "waits" and not self.go_on.is_set():
            await asyncio.sleep(0.01)
        if model == "breaks":
            raise ConnectionError("on purpose")
        for data in rest:
            yield data


@pytest.fixture
def upstream() -> Iterator[tuple[Upstream, str]]:
    endpoint = Upstream()
    with BackgroundServer(endpoint.app) as server:
        yield endpoint, f"{server.url}/base/"
        endpoint.go_on.set()


def test_an_upstream_gets_the_credentials_and_the_file_does_not(
    out: Path, upstream: tuple[Upstream, str]
) -> None:
    endpoint, url = upstream
    with recording(out, upstream=url) as to:
        answer = httpx.post(
            f"{to.url}/anthropic/v1/messages?beta=true",
            json=request(1) | {"model": "m"},
            headers=HEADERS,
        )
        assert answer.content == b"".join(frames(MESSAGE))
        (exchange,) = read_when(out, 1)
    assert endpoint.headers["x-api-key"] == "sk-dummy"
    assert endpoint.headers["authorization"] == HEADERS["Authorization"]
    assert exchange.body == request(1) | {"model": "m"}
    assert exchange.response is not None
    assert exchange.response.message == MESSAGE
    assert not exchange.response.script
    for secret in ("sk-dummy", "abc123def456ghi789", "a=b"):
        assert secret not in out.read_text()


def test_an_upstreams_error_is_passed_on(
    out: Path, upstream: tuple[Upstream, str]
) -> None:
    with recording(out, upstream=upstream[1]) as to:
        body = {"model": "overloaded", "messages": []}
        answer = httpx.post(f"{to.url}/v1/messages", json=body)
        assert (answer.status_code, answer.headers["retry-after"]) == (529, "3")
        (exchange,) = read_when(out, 1)
    assert exchange.response is not None
    assert exchange.response.status == 529
    assert exchange.response.message == answer.json()


def test_bytes_are_passed_on_as_they_arrive(
    out: Path, upstream: tuple[Upstream, str]
) -> None:
    endpoint, url = upstream
    body = {"model": "waits", "messages": []}
    with (
        recording(out, upstream=url) as to,
        httpx.stream("POST", f"{to.url}/v1/messages", json=body) as answer,
    ):
        chunks = answer.iter_raw()
        assert next(chunks) == next(frames(MESSAGE))
        endpoint.go_on.set()
        assert b"".join(chunks).endswith(b'message_stop"}\n\n')


def test_a_client_that_leaves_is_recorded_with_what_it_heard(
    out: Path, upstream: tuple[Upstream, str]
) -> None:
    _, url = upstream
    body = {"model": "waits", "messages": []}
    with recording(out, upstream=url) as to:
        with httpx.stream("POST", f"{to.url}/v1/messages", json=body) as answer:
            next(answer.iter_raw())
        (exchange,) = read_when(out, 1)
    assert exchange.response is not None
    assert exchange.response.message is not None
    assert exchange.response.message["stop_reason"] is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_broken_stream_ends_with_an_error_event(
    out: Path, upstream: tuple[Upstream, str]
) -> None:
    with recording(out, upstream=upstream[1]) as to:
        body = {"model": "breaks", "messages": []}
        answer = httpx.post(f"{to.url}/v1/messages", json=body)
        assert answer.content.startswith(next(frames(MESSAGE)))
        assert b"event: error\n" in answer.content
        (exchange,) = read_when(out, 1)
    assert exchange.response is not None
    assert exchange.response.message is not None
    assert exchange.response.message["error"]["type"] == "api_error"


def test_an_upstream_that_is_down_is_a_502(out: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with recording(out, upstream=f"http://127.0.0.1:{port}") as to:
        answer = httpx.post(f"{to.url}/v1/messages", json=request(0))
    assert answer.status_code == 502
    assert answer.json()["error"]["type"] == "api_error"
    assert str(port) in answer.json()["error"]["message"]


def test_an_answer_is_recorded_when_the_recorder_stops_first(
    out: Path, upstream: tuple[Upstream, str]
) -> None:
    _, url = upstream
    body = {"model": "waits", "messages": []}
    with recording(out, upstream=url) as to:
        client = httpx.Client()
        answer = client.send(
            client.build_request("POST", f"{to.url}/v1/messages", json=body),
            stream=True,
        )
        next(answer.iter_raw())
    client.close()
    (exchange,) = read_trace(out)
    assert exchange.response is not None


def test_bad_arguments_leave_no_file(out: Path, script: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text("{")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        cases: list[tuple[type[MlxlabError], str, dict[str, Any]]] = [
            (TraceError, "either a script or an upstream", {}),
            (TraceError, "either", {"script": script, "upstream": "http://a"}),
            (TraceError, "not a URL", {"upstream": "localhost:80"}),
            (TraceError, "not a URL", {"upstream": "http://[::1"}),
            (ScriptError, "not JSON", {"script": bad}),
            (ServerError, "give a free port", {"script": script, "port": port}),
            (ServerError, "give a free port", {"script": script, "port": 70000}),
        ]
        for error, match, arguments in cases:
            with pytest.raises(error, match=match), recording(out, **arguments):
                pass
            assert not out.exists()


def test_an_existing_trace_is_not_recorded_over(out: Path, script: Path) -> None:
    out.write_text("mine")
    with pytest.raises(TraceError, match="exists"), recording(out, script=script):
        pass
    assert out.read_text() == "mine"


COMMAND = """
import sys
from mlxlab.traces.recording.recorder import record
record(sys.argv[1], script=sys.argv[2], ready=lambda url: print(url, flush=True))
"""


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_recording_ends_cleanly_on_a_signal(
    out: Path, script: Path, kind: signal.Signals
) -> None:
    command = [sys.executable, "-c", COMMAND, str(out), str(script)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as recorder:
        assert recorder.stdout is not None
        url = recorder.stdout.readline().strip()
        httpx.post(f"{url}/v1/messages", json=request(0))
        recorder.send_signal(kind)
        _, errors = recorder.communicate(timeout=20)
    assert (recorder.returncode, errors) == (0, "")
    assert read_trace(out).exchanges[0].response is not None


def test_reading_traces_loads_no_web_framework() -> None:
    script = (
        "import sys, mlxlab.traces, mlxlab.traces.importers\n"
        "assert list(mlxlab.traces.importers.IMPORTERS)\n"
        "import mlxlab.traces.recording.script\n"
        "heavy = {'fastapi', 'uvicorn', 'httpx', 'mlx', 'IPython'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
