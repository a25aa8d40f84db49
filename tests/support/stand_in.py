"""A server that answers at once, run as a process: ``stand_in.py [FAULT] --port N``."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer


class Handler(BaseHTTPRequestHandler):
    """Streams one token whose text holds a line separator, after a short wait."""

    fault = ""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.fault == "refuse" and len(body["messages"]) > 1:
            self.send_response(422)
            self.end_headers()
            self.wfile.write(b"no such role")
            return
        self.send_response(200)
        self.end_headers()
        usage = {"input_tokens": 0, "cache_read_input_tokens": len(body["messages"])}
        start = {"type": "message_start", "message": {"usage": usage}}
        seen = os.environ.get("LD_PRELOAD", ""), os.environ["HOME"]
        delta = {"type": "content_block_delta", "text": f"\u2028{seen}"}
        self._send(start)
        if self.fault != "silent":
            time.sleep(0.05)
            self._send(delta)

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
    HTTPServer(("127.0.0.1", int(sys.argv[-1])), Handler).serve_forever()
