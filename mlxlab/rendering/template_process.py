"""The process in which chat templates run, with limits.

Its program is template_program.py. There is one process for all templates, started
early and in the background. It ends with this process, or when a template exceeds a
limit of time; then the next text starts another.
"""

from __future__ import annotations

import atexit
import json
import os
import pickle
import re
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from mlxlab.errors import ModelError
from mlxlab.limits import (
    TEMPLATE_CPU_S,
    TEMPLATE_MEMORY,
    TEMPLATE_TEXT,
    TEMPLATE_WALL_S,
)

__all__ = [
    "TEMPLATE_PROCESS",
    "TemplateLimits",
    "TemplateProcess",
    "TemplateRefusedError",
]

_PROGRAM = Path(__file__).with_name("template_program.py")
_PASSED = re.compile("PATH|HOME|TMPDIR|TZ|LANG|(LC_|PYTHON|LD_|DYLD_).*")
#: Seconds until a process that has closed its pipe is gone.
_GONE_S = 5.0


class TemplateRefusedError(ModelError):
    """A template that does not render one conversation; it may render another."""


@dataclass(frozen=True, slots=True)
class TemplateLimits:
    """Limits of one text of a template.

    Attributes:
        cpu_s: seconds of the processor.
        wall_s: seconds in all, on a machine that is busy.
        text: bytes of the text in UTF-8.
        memory: bytes of the process. macOS does not hold it.
    """

    cpu_s: float = TEMPLATE_CPU_S
    wall_s: float = TEMPLATE_WALL_S
    text: int = TEMPLATE_TEXT
    memory: int = TEMPLATE_MEMORY


class TemplateProcess:
    """A process that renders chat templates. Threads may share it.

    Args:
        limits: of each text.
    """

    def __init__(self, limits: TemplateLimits | None = None) -> None:
        self._limits = limits or TemplateLimits()
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process, unless it runs; do not wait until it is ready."""
        with self._lock:
            self._started()

    def render(self, **arguments: Any) -> str:
        """Return the text of a template.

        Args:
            arguments: JSON values for transformers' ``render_jinja_template``.

        Raises:
            TemplateRefusedError: it raises any error; the message is the reason.
            ModelError: it takes too long, needs too much memory, or prints too much.
        """
        try:
            data = pickle.dumps(arguments, pickle.HIGHEST_PROTOCOL)
        except RecursionError:
            raise TemplateRefusedError("lists and objects nested too deep") from None
        with self._lock:
            process = self._started()
            try:
                kind, text = _exchange(process, data, self._limits.text)
            except OSError:
                raise ModelError(self._ended(process)) from None
            except BaseException:  # half an answer may still be on its way
                self._kill()
                raise
        if kind == b"T":
            return text
        raise (TemplateRefusedError if kind == b"R" else ModelError)(text)

    def stop(self) -> None:
        """End the process, if it runs."""
        with self._lock:
            self._kill()

    def forget(self) -> None:
        """Leave the process to the parent of this one, which was forked."""
        self._lock = Lock()
        if self._process is not None:
            self._process.returncode = 0  # the parent waits for it
            self._close()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._kill()
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(_PROGRAM), json.dumps(asdict(self._limits))],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=_environment(),
                start_new_session=True,  # Ctrl-C is for this process alone
            )
        return self._process

    def _ended(self, process: subprocess.Popen[bytes]) -> str:
        """Return why the process has ended."""
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GONE_S)
        self._kill()
        status = process.returncode
        if -status in (signal.SIGPROF, signal.SIGALRM):
            return f"it takes more than {self._limits.cpu_s:g} s"
        ending = signal.Signals(-status).name if status < 0 else f"status {status}"
        return f"it ends its process with {ending}"

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._close()

    def _close(self) -> None:
        assert self._process is not None
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process = None


def _environment() -> dict[str, str]:
    """Return what Python needs; tokens are nothing for a stranger's program."""
    kept = {k: v for k, v in os.environ.items() if _PASSED.fullmatch(k)}
    return {**kept, "OPENBLAS_NUM_THREADS": "1"}  # threads take memory


def _exchange(
    process: subprocess.Popen[bytes], data: bytes, most: int
) -> tuple[bytes, str]:
    """Send a request, and return the kind and the text of the answer.

    Raises:
        OSError: the process has ended, or has sent anything else.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    _write(process.stdin.fileno(), len(data).to_bytes(8) + data)
    header = _read(process.stdout.fileno(), 9)
    kind, length = header[:1], int.from_bytes(header[1:])
    if kind not in (b"T", b"R", b"L") or length > most:
        raise ConnectionError("not an answer")
    try:
        text = _read(process.stdout.fileno(), length)
        return kind, text.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise ConnectionError("not a text") from None


def _write(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _read(descriptor: int, length: int) -> bytes:
    """Return that many bytes.

    Raises:
        OSError: there are fewer.
    """
    data = bytearray(length)
    rest = memoryview(data)
    while rest:
        got = os.readv(descriptor, [rest])
        if not got:
            raise ConnectionError("ended")
        rest = rest[got:]
    return bytes(data)


TEMPLATE_PROCESS = TemplateProcess()
"""The process of all renderers."""

atexit.register(TEMPLATE_PROCESS.stop)
os.register_at_fork(after_in_child=TEMPLATE_PROCESS.forget)
