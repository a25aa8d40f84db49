"""A connection between two ranks that notices when the other side is lost.

mlx's own messages are for arrays: a process that waits for one uses a whole core, and
some backends wait for ever. So decisions travel over a connection of their own.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from threading import Lock

from mlxlab.engine.ranks.messages import Message, read_message, write_message

__all__ = ["Channel", "LostError"]


class LostError(Exception):
    """The other side has gone; the message says how that was noticed."""


class Channel:
    """Messages over TCP, one a line; an empty line is a sign of life.

    Args:
        connection: a connected socket.
        silence_s: seconds without a line, or without progress in sending one, after
            which the other side is lost.
    """

    def __init__(self, connection: socket.socket, silence_s: float) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(silence_s)
        self.silence_s = silence_s
        self._connection = connection
        self._lines = connection.makefile("rb")
        self._sending = Lock()

    def send(self, message: Message) -> None:
        """Send a message.

        Raises:
            LostError: the other side is lost.
        """
        with self._sending:
            self._send(write_message(message))

    def beat(self) -> None:
        """Send a sign of life, unless a message is just being sent.

        Raises:
            LostError: the other side is lost.
        """
        if self._sending.acquire(blocking=False):
            try:
                self._send(b"")
            finally:
                self._sending.release()

    def receive(self) -> Message:
        """Wait for the next message.

        Raises:
            LostError: the other side is lost.
        """
        try:
            while line := self._lines.readline():
                if line != b"\n":
                    return read_message(line)
        except TimeoutError:
            raise LostError(f"no sign of life for {self.silence_s:.0f} s") from None
        except (OSError, ValueError) as error:
            raise LostError(" ".join(str(error).split())) from None
        raise LostError("its connection was closed")

    def __iter__(self) -> Iterator[Message]:
        """Yield messages for ever; see :meth:`receive`."""
        while True:
            yield self.receive()

    def close(self) -> None:
        """Close the connection."""
        self._lines.close()
        self._connection.close()

    def _send(self, line: bytes) -> None:
        try:
            self._connection.sendall(line + b"\n")
        except OSError as error:
            raise LostError(" ".join(str(error).split())) from None
