"""A server with one or both protocols that states what it reuses, for the tests."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from time import sleep
from typing import Any

import numpy as np

from mlxlab.prompt import Tokens, common_prefix

MESSAGES = "/v1/messages"
CHAT = "/v1/chat/completions"


@dataclass
class FakeServer:
    """What the server does, and what it was asked.

    A token is four characters of JSON. It keeps every prompt for ever.

    Attributes:
        paths: the protocols that it has.
        models: model ids that it lists.
        states_reuse: whether answers say how much was reused.
        token: what clients have to send; any if None.
        faults: by number of the request: a status, or how the answer breaks. Its reason
            repeats the token.
        asked: path, headers and body of each request.
        pause_s: seconds before each token.
        most_at_once: answers that ran at the same time.
    """

    paths: tuple[str, ...] = (MESSAGES,)
    models: tuple[str, ...] = ("fake-1",)
    states_reuse: bool = True
    token: str | None = None
    faults: Mapping[int, int | str] = field(default_factory=dict)
    pause_s: float = 0.0
    asked: list[tuple[str, dict[str, str], dict[str, Any]]] = field(
        default_factory=list
    )
    most_at_once: int = 0
    url: str = ""
    _seen: list[Tokens] = field(default_factory=list)
    _running: int = 0
    _lock: Lock = field(default_factory=Lock)

    @contextmanager
    def running(self) -> Iterator[FakeServer]:
        """Serve while the block runs."""
        own = type("Own", (_Handler,), {"fake": self})
        server = ThreadingHTTPServer(("127.0.0.1", 0), own)
        server.daemon_threads = True
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()

    def begin(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> int:
        """Note a request and return its number."""
        with self._lock:
            self.asked.append((path, headers, body))
            self._running += 1
            self.most_at_once = max(self.most_at_once, self._running)
            return len(self.asked) - 1

    def end(self) -> None:
        with self._lock:
            self._running -= 1

    def store(self, body: dict[str, Any]) -> tuple[int, int]:
        """Return the tokens of a prompt and of its longest known prefix."""
        parts = [body.get(key) for key in ("tools", "system", "messages")]
        text = np.frombuffer(json.dumps(parts).encode(), np.uint8).astype(np.int32)
        known = max((common_prefix(text, old) for old in self._seen), default=0)
        self._seen.append(text)
        return len(text) // 4, min(known, len(text) - 4) // 4


class _Handler(BaseHTTPRequestHandler):
    fake: FakeServer

    def do_GET(self) -> None:
        if self._is_refused():
            return
        listed = [{"id": name} for name in self.fake.models]
        self._reply(200, {"data": listed})

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["content-length"]))
        if self._is_refused():
            return
        if self.path not in self.fake.paths:
            self._reply(404, {"error": "no such path"})
            return
        body = json.loads(data)
        if self.fake.models and body.get("model") not in self.fake.models:
            self._reply(404, {"error": "no such model"})
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        number = self.fake.begin(self.path, headers, body)
        with suppress(BrokenPipeError, ConnectionResetError):
            self._answer(body, self.fake.faults.get(number, ""))
        self.fake.end()

    def _is_refused(self) -> bool:
        wanted = self.fake.token
        if wanted is None or self.headers.get("authorization") == f"Bearer {wanted}":
            return False
        self._reply(401, {"error": "who are you?"})
        return True

    def _answer(self, body: dict[str, Any], fault: int | str) -> None:
        if isinstance(fault, int):
            self._reply(fault, {"error": self.headers.get("x-api-key", "no")})
            return
        prompt, reused = self.fake.store(body)
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        events = self._messages if self.path == MESSAGES else self._chat
        for i, event in enumerate(events(prompt, reused, body["max_tokens"])):
            if fault == "garbage":
                self.wfile.write(b"data: [1, {\n\n")
            if fault == "drop" and i == 3:
                return
            sleep(self.fake.pause_s)
            name = f"event: {event['type']}\n" if "type" in event else ""
            self.wfile.write(f"{name}data: {json.dumps(event)}\n\n".encode())
        if self.path == CHAT:
            self.wfile.write(b"data: [DONE]\n\n")

    def _messages(
        self, prompt: int, reused: int, most: int
    ) -> Iterator[dict[str, Any]]:
        usage = {"input_tokens": prompt, "output_tokens": 0}
        if self.fake.states_reuse:
            usage |= {
                "input_tokens": prompt - reused,
                "cache_read_input_tokens": reused,
            }
        start = {"id": "m", "type": "message", "role": "assistant", "content": []}
        yield {"type": "message_start", "message": start | {"usage": usage}}
        block = {"type": "text", "text": ""}
        yield {"type": "content_block_start", "index": 0, "content_block": block}
        for _ in range(most):
            delta = {"type": "text_delta", "text": "so "}
            yield {"type": "content_block_delta", "index": 0, "delta": delta}
        yield {"type": "content_block_stop", "index": 0}
        ending = {"stop_reason": "max_tokens"}
        yield {
            "type": "message_delta",
            "delta": ending,
            "usage": {"output_tokens": most},
        }
        yield {"type": "message_stop"}

    def _chat(self, prompt: int, reused: int, most: int) -> Iterator[dict[str, Any]]:
        for i in range(most):
            last = {"finish_reason": "length"} if i == most - 1 else {}
            yield {"choices": [{"index": 0, "delta": {"content": "so "}, **last}]}
        usage: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": most}
        if self.fake.states_reuse:
            usage["prompt_tokens_details"] = {"cached_tokens": reused}
        yield {"choices": [], "usage": usage}

    def _reply(self, status: int, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass
