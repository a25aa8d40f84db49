"""The compared servers, and how each is started.

All read one model folder and compute chunks of one size. All other settings are the
defaults.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.processes import Server
from mlxlab.client.discovery import TOKEN_VARIABLE
from mlxlab.errors import ServerError
from mlxlab.files import cache_folder
from mlxlab.models.folder import ModelFolder
from mlxlab.replay.endpoints.chat_completions import ChatCompletions
from mlxlab.replay.endpoints.messages import Messages

__all__ = ["CHUNK", "OURS", "PEER", "mlx_lm_server", "our_servers", "vllm_mlx_servers"]

OURS = "mlxlab"
#: Figures are compared with this server's.
PEER = "mlx_lm.server"
#: Prompt tokens that are computed at a time.
CHUNK = 2048
_DISK = "4GiB"

_VERSIONS = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def our_servers(folder: ModelFolder) -> Iterator[Server]:
    """Yield our server with all rules, and with rules that keep the order sent."""
    token = secrets.token_urlsafe()
    command = [sys.executable, "-m", "mlxlab", "serve", "--model", str(folder.path)]
    command += ["--strategy", "paged", "--chunk", str(CHUNK)]
    # Measured at the first start with a model, which would count at every start here.
    record = Path("mlxlab", "layouts", f"{folder.digest}.json")
    known = cache_folder().parent / record
    files = {str(".cache" / record): known} if known.exists() else {}
    keep = ("--disk", _DISK) if _has_disk() else ()
    for suffix, rules in (("", "all"), (", order as sent", "-environment-first")):
        yield Server(
            OURS + suffix,
            (*command, f"--rules={rules}"),
            Messages(),
            model="claude-bench",
            headers={"x-api-key": token},
            environment={TOKEN_VARIABLE: token},
            packages=_versions(sys.executable),
            files=files,
            keep=keep,
        )


def mlx_lm_server(folder: ModelFolder) -> Server:
    """Return mlx-lm's server, behind a proxy that translates literally."""
    command = (sys.executable, "-m", "mlx_lm", "server", "--model", str(folder.path))
    packages = _versions(sys.executable)
    return Server(
        f"{PEER} {packages['mlx-lm']}",
        (*command, "--prefill-step-size", str(CHUNK)),
        ChatCompletions(),
        model=str(folder.path),
        packages=packages,
    )


def vllm_mlx_servers(folder: ModelFolder, python: str) -> Iterator[Server]:
    """Yield vllm-mlx with its default engine, and with the engine that batches.

    It needs another mlx-lm than mlxlab, so it needs its own environment. On Linux:
    ``pip install vllm-mlx 'mlx[cpu]'``.

    Args:
        folder: the model.
        python: an interpreter that can import vllm-mlx.

    Raises:
        ServerError: ``python`` does not run, or lacks vllm-mlx.
    """
    packages = _versions(python)
    if "vllm-mlx" not in packages:
        raise ServerError(f"{python} has no vllm-mlx; name an interpreter that has it")
    command = [python, "-m", "vllm_mlx.cli", "serve", str(folder.path)]
    command += ["--host", "127.0.0.1", "--prefill-step-size", str(CHUNK)]
    for suffix, options in (("", ()), (", batched", ("--continuous-batching",))):
        yield Server(
            f"vllm-mlx {packages['vllm-mlx']}{suffix}",
            (*command, *options),
            Messages(),
            model=str(folder.path),
            packages=packages,
        )


def _versions(python: str) -> dict[str, str]:
    """Return an interpreter's versions of the packages that decide a server's speed."""
    names = ("mlxlab", "mlx", "mlx-lm", "vllm-mlx")
    try:
        output = subprocess.check_output([python, "-c", _VERSIONS, *names])
    except (OSError, subprocess.SubprocessError) as error:
        raise ServerError(f"{python} does not run: {error}; name a Python") from None
    found: dict[str, str] = json.loads(output)
    return found


def _has_disk() -> bool:
    """Return whether this mlxlab can keep a cache on disk."""
    command = [sys.executable, "-m", "mlxlab", "serve", "--help"]
    return "--disk" in subprocess.check_output(command, text=True)
