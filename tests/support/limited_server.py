"""A server in a process of its own, with limited memory, for hostile requests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.endpoint import TOKEN

__all__ = ["LimitedServer", "limited_server"]

#: Address space; the server itself takes some 2 GiB of it.
_ADDRESSES = 6 * 2**30

_PROGRAM = """
import resource, sys
from mlxlab.server.server import Options, serve
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
with serve(strategy=sys.argv[3], options=Options(token=sys.argv[2])) as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""


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
