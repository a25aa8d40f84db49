"""A server as a child process, from its start to its certain end.

All servers get one BLAS through ``LD_PRELOAD``, in whatever interpreter they run. With
mlx's reference BLAS a server is about 30 times slower, and the comparison would be one
of BLAS libraries. Each start also gets an empty home, because vllm-mlx keeps its cache
between starts.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from bench.memory import Memory
from mlxlab import blas
from mlxlab.errors import ServerError
from mlxlab.replay.endpoints.dialect import Dialect

__all__ = ["Server", "common_blas", "running"]

_READY_S = 120.0
_ANSWER_S = 300.0
_END_S = 10.0
_LOOK_S = 0.1


@dataclass(frozen=True, slots=True)
class Server:
    """A server that can be started.

    Attributes:
        name: unique among the compared servers.
        command: starts the server on loopback; ``--port N`` is appended.
        dialect: the protocol of its requests.
        model: the model id that requests name.
        headers: sent with every request.
        environment: variables that it is started with, besides ours.
        packages: versions of its packages.
        files: files that its home has from the beginning, by their path in it.
        keep: options with which it keeps its cache across a restart.
    """

    name: str
    command: tuple[str, ...]
    dialect: Dialect
    model: str
    headers: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    keep: tuple[str, ...] = ()

    @property
    def keeping(self) -> Server:
        """The same server, told to keep its cache across a restart."""
        return replace(self, command=(*self.command, *self.keep))


@contextmanager
def running(
    server: Server,
    library: Path | None,
    *,
    home: Path | None = None,
    memory: Memory | None = None,
) -> Iterator[httpx.Client]:
    """Start a server, wait until it is ready, and end it however the block ends.

    Args:
        server: the server to start.
        library: the server's BLAS; None for the one that comes with its mlx.
        home: its home folder; None for a new one that is removed afterwards.
        memory: samples the server's memory.

    Yields:
        A client of the server.

    Raises:
        ServerError: the server ended at once, or was not ready in time. The message
            has the last line that it wrote.
    """
    port = _free_port()
    with ExitStack() as stack:
        home = home or Path(stack.enter_context(TemporaryDirectory()))
        for place, file in server.files.items():
            target = home / place
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                shutil.copyfile(file, target)
        output = home / "output"
        process = stack.enter_context(_started(server, port, library, home, output))
        if memory is not None:
            stack.enter_context(memory.watching(process.pid))
        client = stack.enter_context(
            httpx.Client(
                base_url=f"http://127.0.0.1:{port}",
                headers=dict(server.headers),
                timeout=_ANSWER_S,
                trust_env=False,
            )
        )
        _wait_until_ready(server, process, client, output)
        yield client


@contextmanager
def _started(
    server: Server, port: int, library: Path | None, home: Path, output: Path
) -> Iterator[subprocess.Popen[bytes]]:
    with output.open("wb") as stream:
        process = subprocess.Popen(
            [*server.command, "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**_environment(home, library), **server.environment},
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _end(process)


def common_blas() -> Path | None:
    """Return the BLAS of all servers; None where mlx needs none.

    Raises:
        ServerError: the BLAS is not in a file that other processes can load.
    """
    path = blas.preload().path
    if path is not None and not path.exists():
        raise ServerError(
            f"BLAS: {path} is gone, so not all servers can have it; "
            "make the folder for caches (HOME or XDG_CACHE_HOME) writable"
        )
    return path


def _environment(home: Path, library: Path | None) -> dict[str, str]:
    environment = {
        **os.environ,
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / ".cache"),
        # All files are local; an unreachable hub must not cost time.
        "HF_HUB_OFFLINE": "1",
    }
    if library is not None:
        environment["LD_PRELOAD"] = str(library)
    return environment


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port: int = bound.getsockname()[1]
        return port


def _wait_until_ready(
    server: Server,
    process: subprocess.Popen[bytes],
    client: httpx.Client,
    output: Path,
) -> None:
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        if (code := process.poll()) is not None:
            raise ServerError(
                f"{server.name} ended with code {code}: {_last_line(output)}"
            )
        with suppress(httpx.TransportError):
            if client.get("/health").is_success:
                return
        time.sleep(_LOOK_S)
    raise ServerError(
        f"{server.name} was not ready after {_READY_S:.0f} s: {_last_line(output)}"
    )


def _last_line(output: Path) -> str:
    lines = output.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "silent")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the whole process group: a server may have started other processes."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        os.killpg(process.pid, kind)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_END_S)
