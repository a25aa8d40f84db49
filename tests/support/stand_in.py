"""A server that answers at once, run as a process: ``stand_in.py [FAULT] --port N``."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Semaphore
from typing import Any


class Handler(BaseHTTPRequestHandler):
    """Streams tokens whose text holds a line separator, after a short wait.

    A server that is ``busy`` refuses all requests but one at a time.
    """

    answering = Semaphore()

    fault = ""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.fault == "refuse" and len(body["messages"]) > 1:
            self._refuse(422, b"no such role")
        elif self.fault != "busy":
            self._answer(body)
        elif self.answering.acquire(blocking=False):
            with suppress(BrokenPipeError):
                self._answer(body)
            self.answering.release()
        else:
            self._refuse(503, b"one at a time")

    def _refuse(self, status: int, reason: bytes) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(reason)

    def _answer(self, body: Mapping[str, Any]) -> None:
        self.send_response(200)
        self.end_headers()
        usage = {"input_tokens": 0, "cache_read_input_tokens": len(body["messages"])}
        start = {"type": "message_start", "message": {"usage": usage}}
        seen = os.environ.get("LD_PRELOAD", ""), os.environ["HOME"]
        delta = {"type": "content_block_delta", "text": f"\u2028{seen}"}
        self._send(start)
        if self.fault == "fail":
            self._send({"type": "error", "error": {"message": "out of memory"}})
            self._send({"type": "message_stop"})
        elif self.fault != "silent":
            time.sleep(0.05)
            tokens = body.get("max_tokens", 1)
            for _ in range(tokens):
                self._send(delta)
            self._send({"type": "message_delta", "usage": {"output_tokens": tokens}})

    def _send(self, event: Mapping[str, object]) -> None:
        data = json.dumps(event, ensure_ascii=False)
        self.wfile.write(f"event: {event['type']}\ndata: {data}\n\n".encode())

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    Handler.fault = sys.argv[1] if len(sys.argv) == 4 else ""
    if Handler.fault == "crash":
        sys.exit("cannot find the model")
    if Handler.fault == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[-1])), Handler).serve_forever()
