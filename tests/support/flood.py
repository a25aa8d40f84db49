"""Floods a server of this machine from a process of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

HALF = b"POST /v1/messages HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Pad: "

_ATTACK = """
import resource, socket, sys, time
port, number, half = int(sys.argv[1]), int(sys.argv[2]), bytes.fromhex(sys.argv[3])
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
most = 100_000 if hard == resource.RLIM_INFINITY else hard
resource.setrlimit(resource.RLIMIT_NOFILE, (min(number + 100, most), hard))
held = []
number = min(number, most - 50)  # as many as this process may hold
for _ in range(number):
    try:
        held.append(socket.create_connection(("127.0.0.1", port), 10))
        held[-1].sendall(half)
    except OSError:
        pass  # dropped already
print(len(held), number, flush=True)
sys.stdin.read()
"""


@contextmanager
def flooding(port: int, number: int, half: bytes = HALF) -> Iterator[Flood]:
    """Half-sent requests from a second process, as long as the block runs."""
    command = [sys.executable, "-c", _ATTACK, str(port), str(number), half.hex()]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            yield Flood(process)
        finally:
            process.kill()


class Flood:
    """An attack that runs."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def wait(self) -> tuple[int, int]:
        """The connections that were made and tried, once all are."""
        assert self._process.stdout is not None
        made, tried = map(int, self._process.stdout.readline().split())
        return made, tried


def connect(port: int, data: bytes = b"", seconds: float = 10.0) -> socket.socket:
    """A connection on which something was sent."""
    connection = socket.create_connection(("127.0.0.1", port), seconds)
    connection.sendall(data)
    return connection
