"""Runs command lines in forked children, within limits, and judges how they end."""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import resource
import select
import shutil
import signal
import sys
import time
import traceback
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory, mkdtemp
from typing import NoReturn

import typer
from tqdm import tqdm

import mlxlab.cli
from mlxlab.errors import OUT_OF_MEMORY
from mlxlab.printable import printable
from tests.hostile.cases.command import Commands, Setting
from tests.hostile.cases.documents import documents
from tests.hostile.cases.files import write_document
from tests.hostile.outcome import Outcome

__all__ = ["judge", "prepare", "run_command"]

#: What a command may have beside what this process has.
_MEMORY = 2 << 30
_CPU_S = 30
#: Seconds until a command counts as hanging, on a busy machine.
WALL_S = 90.0
_FILE = 256 << 20
#: A line that says that the command runs until it is stopped.
_SERVING = b"Stop with Ctrl-C."
_LOOK_S = 0.02


def prepare() -> None:
    """Import and build in this process what commands need, so that children need not.

    Threads and mlx would not survive a fork, so nothing here starts or loads them.
    """
    tqdm.monitor_interval = 0
    # Typer would build it again for each command.
    mlxlab.cli.app = typer.main.get_command(mlxlab.cli.app)  # type: ignore[assignment]
    for form, *line in _WARM:
        with TemporaryDirectory() as name:
            folder = Path(name)
            write_document(documents()[form], folder, Random(0), 0)
            path = folder / documents()[form].path
            words = [word.format(path=path, new=folder / "new") for word in line]
            with (
                Path(os.devnull).open("w") as nowhere,
                redirect_stdout(nowhere),
                redirect_stderr(nowhere),
            ):
                _obey(Commands((tuple(words),)))
    faulthandler.disable()  # the file that it has is closed
    assert "mlx.core" not in sys.modules
    assert len(list(Path("/proc/self/task").iterdir())) == 1
    gc.collect()
    gc.freeze()  # or each child's first collection copies every page


#: A format, and a command that reads it.
_WARM = (
    ("own", "misses", "{path}", "--by-request"),
    ("own", "compare", "{path}", "--simulate", "--strategies", "paged"),
    ("own", "anonymize", "{path}", "--out", "{new}"),
    ("capture", "import-trace", "{path}", "--out", "{new}"),
    ("weka", "sweep", "{path}", "--scheduler", "here", "--strategies", "paged"),
    ("aliases", "agents", "--aliases", "{path}", "--write", "{new}"),
)


def run_command(make: Setting, seed: str) -> Outcome:
    """Run the commands of one case in a folder of their own."""
    folder = Path(mkdtemp(prefix="hostile."))
    try:
        return _judged(*_run(make, seed, folder))
    finally:
        _remove(folder)


def _run(
    make: Setting, seed: str, folder: Path
) -> tuple[int | None, float, int, bytes, bytes]:
    """Return the exit status, seconds, bytes of memory, and both outputs."""
    begun = time.monotonic()
    out, err = folder / "stdout", folder / "stderr"
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _be_command(make, seed, folder)
    status, used = _wait(child, begun + WALL_S, out)
    seconds = time.monotonic() - begun
    return status, seconds, used.ru_maxrss << 10, out.read_bytes(), err.read_bytes()


def _wait(
    child: int, deadline: float, out: Path
) -> tuple[int | None, resource.struct_rusage]:
    handle = os.pidfd_open(child)
    hung = stopped = False
    try:
        while not select.select([handle], [], [], _LOOK_S)[0]:
            if time.monotonic() > deadline:
                hung = True
                os.kill(child, signal.SIGABRT)  # it shows where it is
                select.select([handle], [], [], 5)
                os.kill(child, signal.SIGKILL)
                break
            if not stopped and out.exists() and _SERVING in out.read_bytes():
                os.kill(child, signal.SIGTERM)
                stopped = True
    finally:
        os.close(handle)
    _, status, used = os.wait4(child, 0)
    return None if hung else status, used


def _be_command(make: Setting, seed: str, folder: Path) -> NoReturn:
    code = 1
    try:
        for number, name in ((1, "stdout"), (2, "stderr")):
            file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(file, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        faulthandler.enable(2)
        inner = folder / "in"
        inner.mkdir()
        os.chdir(inner)
        (folder / "home").mkdir()
        os.environ["HOME"] = str(folder / "home")
        os.environ.pop("XDG_CACHE_HOME", None)
        commands = make(Random(seed), inner)
        _limit()
        code = _obey(commands)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
        os._exit(code)


def _obey(commands: Commands) -> int:
    for name, value in commands.environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    code = 0
    for line in commands.lines:
        sys.argv = ["mlxlab", *line]
        try:
            mlxlab.cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        if code:
            break
    return code


def _limit() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S + 5))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE, _FILE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _judged(
    status: int | None, seconds: float, memory: int, out: bytes, err: bytes
) -> Outcome:
    said, complained = out.decode("utf-8", "replace"), err.decode("utf-8", "replace")
    kind, reason = judge(status, said, complained)
    return Outcome(kind, seconds, memory, reason)


def judge(status: int | None, said: str, complained: str) -> tuple[str, str]:
    """Return how a command has ended, and what is wrong with it.

    Args:
        status: as ``os.wait`` returns it; None if it had to be ended.
        said: its standard output.
        complained: its standard error.
    """
    if status is None:
        return "hangs", complained[-2500:]
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        kind = "hangs" if number == signal.SIGXCPU else "deaths"
        return kind, f"{signal.Signals(number).name}: {complained[-500:]}"
    if "Traceback" in complained:
        return "tracebacks", complained[-2500:]
    code = os.WEXITSTATUS(status)
    lines = complained.rstrip("\n").split("\n")
    if said != printable(said) or complained != printable(complained):
        return "wrong", f"raw escapes: {(said + complained)[-1000:]!r}"
    if OUT_OF_MEMORY in complained:
        return "deaths", complained[-1000:]
    if "Warning:" in complained:
        return "wrong", complained[-1000:]
    if code == 0:
        return ("wrong", said[:500]) if _is_bad_json(said) else ("served", "")
    own = [line for line in lines if line.startswith("mlxlab")]
    if code == 2 and own == lines[-1:]:
        return "refused", ""
    return "wrong", f"exit code {code}: {complained[-1000:]}"


def _is_bad_json(said: str) -> bool:
    """Whether it begins like the answer to ``--json -``, and is not JSON."""
    try:
        if said.startswith("{\n"):
            json.JSONDecoder(parse_constant=_refuse).raw_decode(said)
    except ValueError:
        return True
    return False


def _refuse(name: str) -> NoReturn:
    raise ValueError(name)


def _remove(folder: Path) -> None:
    shutil.rmtree(os.fsencode(folder), ignore_errors=True)
