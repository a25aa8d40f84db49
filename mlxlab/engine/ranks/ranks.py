"""The group of processes, and the watch over each other.

A process that waits in mlx for another cannot be interrupted. So when one is lost, each
other process ends itself, with one line from rank 0.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread
from types import TracebackType
from typing import Self

import mlx.core as mx
import numpy as np
from pydantic import TypeAdapter

from mlxlab.content import read_whole
from mlxlab.engine.ranks.channel import Channel, LostError
from mlxlab.engine.ranks.messages import Failed, Hello, Message, Stop
from mlxlab.errors import MlxlabError, ServerError

__all__ = ["Ranks"]

#: Seconds without a sign of life after which a process is lost.
SILENCE_S = 30.0
_BEATS = 10  # in that time
#: Most seconds to wait for the others to connect, or to compute one chunk.
WAIT_S = 600.0
#: An error of mlx comes before the news that a process was lost, which says more.
_NEWS_S = 1.0
#: mlx says in pieces that a process was lost; our line comes after its line.
_PIECES_S = 0.2
#: Most bytes of the address of rank 0.
_ADDRESS = 1024
#: The addresses of each rank, in order.
_ADDRESSES: TypeAdapter[list[list[str]]] = TypeAdapter(list[list[str]])
_PACKAGES = ("mlxlab", "mlx", "mlx-lm")


class Ranks:
    """The processes that share a model, seen from one of them.

    Use it as a context manager: its end ends all ranks.

    Args:
        group: of mlx.
        silence_s: seconds without a sign of life after which a process is lost.
        wait_s: most seconds that one call may wait for the others.

    Attributes:
        rank: of this process.
        size: number of processes.
    """

    def __init__(
        self,
        group: mx.distributed.Group,
        *,
        silence_s: float,
        wait_s: float,
    ) -> None:
        self.group = group
        self.rank: int = group.rank()
        self.size: int = group.size()
        self.silence_s = silence_s
        self.wait_s = wait_s
        self.inbox: SimpleQueue[Message] = SimpleQueue()
        self._channels: dict[int, Channel] = {}
        self._waiting_since: float | None = None
        self._ending = False
        self._failing = Lock()

    @classmethod
    def join(
        cls, *, silence_s: float = SILENCE_S, wait_s: float = WAIT_S
    ) -> Ranks | None:
        """Join the group that ``mlx.launch`` has started; None for a single process.

        Args:
            silence_s: see :class:`Ranks`.
            wait_s: see :class:`Ranks`.

        Raises:
            ServerError: the others cannot be reached, or run other versions.
        """
        try:
            group = mx.distributed.init()
        except (RuntimeError, ValueError) as error:
            why = " ".join(str(error).split())
            raise ServerError(f"mlx.distributed: {why}") from None
        if group.size() > 1:
            ranks = cls(group, silence_s=silence_s, wait_s=wait_s)
            ranks.connect()
            return ranks
        if os.environ.get("MLX_RANK", "0") != "0":
            raise ServerError(
                "started as one of several ranks, but mlx connects to no other; "
                "see mlx.launch --help for --backend and --hostfile"
            )
        return None

    def connect(self) -> None:
        """Connect to rank 0, or wait for all others.

        Raises:
            ServerError: see :meth:`join`.
        """
        Thread(target=self._watch, daemon=True).start()
        with self.waiting():
            if self.rank == 0:
                self._accept()
            else:
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 decides
                self._call()
        for rank, channel in self._channels.items():
            Thread(target=self._listen, args=(rank, channel), daemon=True).start()

    def send(self, message: Message) -> None:
        """Send a message to rank 0, or from rank 0 to all others.

        A process that is lost ends this one.
        """
        for rank, channel in self._channels.items():
            try:
                channel.send(message)
            except LostError as error:
                self._lose(rank, error)

    def sum(self, ids: mx.array) -> mx.array:
        """Add up arrays of all ranks, lazily."""
        total: mx.array = mx.distributed.all_sum(ids, group=self.group)
        return total

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Mark a call that waits for the others; they may be lost without an error."""
        self._waiting_since = time.monotonic()
        try:
            yield
        finally:
            self._waiting_since = None

    def fail(self, reason: str, code: int = 1) -> None:
        """End all processes with one line of rank 0; does not return."""
        if not self._failing.acquire(blocking=False) or self._ending:
            time.sleep(self.silence_s)  # another thread is ending the process
            return
        if self.rank == 0:
            self._stop(code)
            self._end_process(reason, code)
        if 0 in self._channels:
            with suppress(LostError):
                self._channels[0].send(Failed(reason, code))
                time.sleep(2 * _NEWS_S)  # rank 0 stops this process, and says why
                self._end_process(None, code)
        self._end_process(reason, code)

    def fail_by(self, error: Exception) -> None:
        """End all processes because a call of this one failed; does not return."""
        time.sleep(_NEWS_S)
        known = isinstance(error, MlxlabError)
        kind = "" if known else f"{type(error).__name__}: "
        self.fail(" ".join(f"{kind}{error}".split()), 2 if known else 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.rank == 0:
            self._stop(0 if error is None else 2)

    def _stop(self, code: int) -> None:
        self._ending = True
        for channel in self._channels.values():
            with suppress(LostError):
                channel.send(Stop(code))

    def _accept(self) -> None:
        """Take the calls of all other ranks."""
        hosts = _hosts()
        local = all(host.startswith("127.") for host in hosts)
        key = secrets.token_urlsafe(24)
        with socket.create_server(("127.0.0.1" if local else "", 0)) as listening:
            port = listening.getsockname()[1]
            self._agree(json.dumps([hosts, port, key]).encode())
            while len(self._channels) < self.size - 1:
                channel = Channel(listening.accept()[0], self.silence_s)
                hello = _hello(channel)
                if hello is None or not secrets.compare_digest(hello.key, key):
                    channel.close()  # another program's
                    continue
                self._channels[hello.rank] = channel
                self._check(hello)

    def _check(self, hello: Hello) -> None:
        own = _versions()
        for package, found in hello.versions.items():
            if found != own[package]:
                self._stop(2)
                raise ServerError(
                    f"rank {hello.rank} has {package} {found}, rank 0 has "
                    f"{own[package]}; install the same on all machines"
                )

    def _call(self) -> None:
        """Call rank 0 at the first of its addresses that answers."""
        hosts, port, key = json.loads(self._agree(b""))
        for host in hosts:
            with suppress(OSError):
                connection = socket.create_connection((host, port), self.silence_s)
                self._channels[0] = Channel(connection, self.silence_s)
                self.send(Hello(key, self.rank, _versions()))
                return
        raise ServerError(
            f"rank {self.rank} reaches rank 0 neither at {' nor at '.join(hosts)}, "
            f"port {port}"
        )

    def _agree(self, address: bytes) -> bytes:
        """Return what rank 0 gave here."""
        padded = np.zeros(_ADDRESS, dtype=np.int32)
        padded[: len(address)] = np.frombuffer(address, dtype=np.uint8)
        found = np.array(self.sum(mx.array(padded))).astype(np.uint8).tobytes()
        return found.rstrip(b"\0")

    def _watch(self) -> None:
        """Show that this process lives, and end it when a call waits too long."""
        while not self._ending:
            time.sleep(self.silence_s / _BEATS)
            for channel in list(self._channels.values()):
                with suppress(LostError):  # noticed where messages are received
                    channel.beat()
            since = self._waiting_since
            if since is not None and time.monotonic() - since > self.wait_s:
                self.fail(f"the other ranks did not answer for {self.wait_s:.0f} s")

    def _listen(self, rank: int, channel: Channel) -> None:
        """Take the messages of a rank until it is lost."""
        try:
            for message in channel:
                if isinstance(message, Failed):
                    self.fail(f"rank {rank}: {message.reason}", message.code)
                elif isinstance(message, Stop):
                    self._ending = True
                    if message.code:
                        self._end_process(None, message.code)
                    self.inbox.put(message)
                    return
                else:
                    self.inbox.put(message)
        except LostError as error:
            self._lose(rank, error)

    def _lose(self, rank: int, error: LostError) -> None:
        if self._ending:
            return
        time.sleep(_PIECES_S)
        reason = f"rank {rank} was lost: {error}; the server has ended"
        if rank == 0:
            self._end_process(reason, 1)
        self.fail(reason)

    def _end_process(self, reason: str | None, code: int) -> None:
        if reason is not None:
            where = "" if self.rank == 0 else f"rank {self.rank}: "
            print(f"mlxlab: {where}{reason}", file=sys.stderr, flush=True)
        os._exit(code)


def _hello(channel: Channel) -> Hello | None:
    try:
        message = channel.receive()
    except LostError:
        return None
    return message if isinstance(message, Hello) else None


def _hosts() -> list[str]:
    """Return addresses at which other machines may reach this one, rank 0.

    Raises:
        ServerError: the file of addresses cannot be read.
    """
    if (file := os.environ.get("MLX_HOSTFILE")) is not None:
        given = [address.rpartition(":")[0] for address in _addresses(Path(file))]
    else:
        coordinator = os.environ.get("MLX_JACCL_COORDINATOR", "").rpartition(":")[0]
        given = [coordinator or os.environ.get("NCCL_HOST_IP", "")]
    given = [host for host in given if host]
    if given and all(host.startswith("127.") for host in given):
        return given
    return list(dict.fromkeys([*given, socket.gethostname()]))


def _addresses(file: Path) -> list[str]:
    """Return the addresses of rank 0, the first of the lists in mlx.launch's file."""
    try:
        return _ADDRESSES.validate_json(read_whole(file))[0]
    except (OSError, ValueError, IndexError) as error:
        reason = getattr(error, "strerror", None) or "not lists of addresses"
        raise ServerError(f"MLX_HOSTFILE: {file}: {reason}; see mlx.launch") from None


def _versions() -> dict[str, str]:
    return {package: version(package) for package in _PACKAGES}
