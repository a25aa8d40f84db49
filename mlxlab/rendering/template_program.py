"""Renders chat templates: a program for a process of its own, with limits.

A template is a stranger's program. No list of forbidden operations keeps it from
looping for ever or from building gigabytes, but the limits of a process do. It imports
nothing of mlxlab, so that it starts while a tokenizer is read.

Its argument is a JSON object of limits: the fields of ``TemplateLimits``. It reads
frames from standard input: eight bytes of length, and pickled arguments of
``render_jinja_template``. It answers each on standard output with a byte, eight bytes
of length, and UTF-8: ``T`` and a text, or ``R`` and why the template refuses, or ``L``
and which limit it exceeds. Time that is up ends the process by a signal.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, TypeAlias

from jinja2 import TemplateError

Render: TypeAlias = Callable[..., Any]

_RENDERER = "transformers.utils.chat_template_utils"
#: Characters of a reason.
_REASON = 300


def load_renderer() -> Render:
    """Return ``render_jinja_template`` of transformers.

    Its module is imported without the packages around it, which take four times as
    long. A version in which it needs them is imported whole.
    """
    try:
        _stand_in("transformers")
        _stand_in("transformers.utils")
        found: Render = import_module(_RENDERER).render_jinja_template
    except (ImportError, AttributeError):
        for name in [n for n in sys.modules if n.partition(".")[0] == "transformers"]:
            del sys.modules[name]
        found = import_module(_RENDERER).render_jinja_template
    return found


def _stand_in(package: str) -> None:
    """Put an empty module in the place of a package, for imports from its folder."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ImportError(package)
    sys.modules[package] = module = ModuleType(package)
    module.__path__ = [str(Path(spec.origin).parent)]


def answer(
    render: Render, arguments: dict[str, Any], limits: dict[str, Any]
) -> tuple[bytes, bytes]:
    """Return the kind of an answer, and its text."""
    try:
        texts, _ = render(**arguments)
        # Half surrogate pairs are for the renderer to find.
        text = texts[0].encode("utf-8", "surrogatepass")
    except MemoryError:
        return b"L", f"it needs more than {limits['memory'] >> 20:,} MiB".encode()
    except Exception as error:  # a template may raise any type
        return b"R", _reason(error).encode("utf-8", "replace")
    if len(text) > limits["text"]:
        return b"L", f"it prints more than {limits['text'] >> 20:,} MiB".encode()
    return b"T", text


def _reason(error: Exception) -> str:
    """Return one line, whatever the template raises."""
    said = str(error)[:_REASON]
    if type(error) is not TemplateError:  # that is what its raise_exception raises
        said = f"{type(error).__name__}: {said}"
    return " ".join(said.split())


def _limit_memory(most: int) -> None:
    with suppress(ValueError, OSError):  # not every system can
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _limit_time(cpu_s: float, wall_s: float) -> None:
    """End the process after some seconds; never, for 0."""
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    signal.setitimer(signal.ITIMER_REAL, wall_s)


def main(limits: dict[str, Any], requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until their end."""
    render = load_renderer()
    _limit_memory(limits["memory"])
    timers = (signal.SIGPROF, signal.SIGALRM)  # the parent may ignore or block them
    for timer in timers:
        signal.signal(timer, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, timers)
    while len(length := requests.read(8)) == 8:
        # Only the parent writes here, so what is unpickled is its own.
        arguments = pickle.loads(requests.read(int.from_bytes(length)))
        _limit_time(limits["cpu_s"], limits["wall_s"])
        kind, text = answer(render, arguments, limits)
        _limit_time(0, 0)
        answers.write(kind + len(text).to_bytes(8) + text)
        answers.flush()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.stdin.buffer, sys.stdout.buffer)
    os._exit(0)
