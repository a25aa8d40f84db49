"""Ctrl-C on the command line: no traceback, and at once the second time."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

__all__ = ["interruptible"]


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGINT end the block by KeyboardInterrupt, then the process.

    The block may clean up; a second SIGINT ends the process at once. It ends by the
    signal, as shells expect. An exit of the interpreter would wait for threads that
    compute, or abort.
    """
    arrived = False

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        nonlocal arrived
        arrived = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise KeyboardInterrupt

    def end_if_interrupted(error: Any) -> None:
        if arrived:  # in a finalizer: Python would print a traceback and go on
            _end()
        hook(error)

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:  # as a shell sets it for what runs behind it
        signal.signal(signal.SIGINT, interrupt)
    hook, sys.unraisablehook = sys.unraisablehook, end_if_interrupted
    try:
        yield
    finally:
        if arrived:
            _end()
        sys.unraisablehook = hook
        signal.signal(signal.SIGINT, before)


def _end() -> None:
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGINT)
