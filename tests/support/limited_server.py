"""A server in a process of its own, with limited memory, for hostile requests."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from tests.support.credential import TOKEN

if TYPE_CHECKING:  # it loads mlx, which programs that fork must not
    from mlxlab.server.server import Server

__all__ = ["LimitedServer", "limited_server", "state_of"]

#: Address space; the server itself takes some 2 GiB of it.
_ADDRESSES = 6 * 2**30
#: Looks, 20 ms apart, until all requests have to be finished.
_PATIENCE = 1500

_PROGRAM = """
import resource, sys
from mlxlab.server.server import Options, serve
from tests.support.limited_server import give_back, state_of
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
with serve(strategy=sys.argv[3], options=Options(token=sys.argv[2])) as server:
    print(server.url, flush=True)
    for line in sys.stdin:
        state = state_of(server)
        give_back(server)
        print(state, flush=True)
"""


def state_of(server: Server) -> str:
    """Return what is wrong with a server that nobody asks anything; else ``idle``."""
    unfinished = 0
    for _ in range(_PATIENCE):
        unfinished = server._service.scheduler.unfinished
        if not unfinished:
            break
        time.sleep(0.02)
    else:
        return f"{unfinished} requests are unfinished"
    for loaded in server._service.pool._loaded.values():
        for engine in loaded.engines.values():
            try:
                server._worker.call(engine.strategy.check_integrity)
            except Exception as error:
                return f"{engine.strategy.name}: {error!r}"
            if engine.users or engine.store.nbytes != engine.strategy.stored_bytes:
                return f"{engine.strategy.name}: {engine.users} users; other bytes"
    return "idle"


def give_back(server: Server) -> None:
    """Give the system what allocators keep for later, so that leaks can be seen."""
    import mlx.core as mx

    gc.collect()
    server._worker.call(mx.clear_cache)
    ctypes.CDLL(None).malloc_trim(0)


class LimitedServer:
    """The running process and its address."""

    def __init__(self, process: subprocess.Popen[str], url: str, errors: Path) -> None:
        self.process = process
        self.url = url
        self._errors = errors

    @property
    def peak(self) -> int:
        """The most bytes of memory in use so far."""
        return self._memory("VmHWM")

    @property
    def taken(self) -> int:
        """The bytes of memory in use now."""
        return self._memory("VmRSS")

    def _memory(self, name: str) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = [x for x in status.splitlines() if x.startswith(name)]
        return int(line.split()[1]) * 1024

    def state(self) -> str:
        """Return ``idle`` once all requests are finished and all books are right."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    @property
    def printed(self) -> str:
        """Text on standard error."""
        return self._errors.read_text()


@contextmanager
def limited_server(strategy: str = "paged") -> Iterator[LimitedServer]:
    """Run a server of the bundled model whose memory is limited."""
    with TemporaryDirectory() as home:
        errors = Path(home, "stderr")
        with errors.open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(_ADDRESSES), TOKEN, strategy],
                env=os.environ | {"HOME": home},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        assert process.stdout is not None
        try:
            yield LimitedServer(process, process.stdout.readline().strip(), errors)
        finally:
            process.communicate(timeout=60)
