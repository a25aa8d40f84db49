"""Commands in a process group and a home of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.credential import TOKEN

__all__ = ["started"]


@contextmanager
def started(program: str, line: str, home: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a command in a group of its own, as a terminal does, and kill what is left.

    Args:
        program: Python that prints ``up`` and takes the arguments of mlxlab.
        line: the arguments.
        home: an existing folder.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", program, *line.split()],
        cwd=home,
        env={
            **os.environ,
            "HOME": str(home),
            "XDG_CACHE_HOME": str(home / "cache"),
            "MLXLAB_TOKEN": TOKEN,
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "up\n"
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
