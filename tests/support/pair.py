"""Two processes that share a model, on this machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import mlx.core as mx
import pytest

from tests.support.models import save_model

__all__ = ["Pair", "free_ports", "needs_ring", "save_two_heads"]

#: No case takes this long, even on a busy machine.
PATIENCE_S = 120.0

needs_ring = pytest.mark.skipif(
    not mx.distributed.is_available("ring"), reason="mlx has no ring backend here"
)


class Pair:
    """Runs a module twice, rank 0 first. Its end kills what is left.

    Args:
        module: with its arguments.
        scratch: a folder.
        environment: further variables.
    """

    def __init__(self, module: list[str], scratch: Path, **environment: str) -> None:
        hosts = scratch / "hosts.json"
        hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(2)]))
        environment |= {"MLX_HOSTFILE": str(hosts)}
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", *module],
                env=os.environ | environment | {"MLX_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]

    def wait_for(self, text: str) -> None:
        """Read rank 0's output up to the line that contains a text."""
        out = self.processes[0].stdout
        assert out is not None
        for line in out:
            if text in line:
                return
        raise AssertionError(self.processes[0].communicate()[1])

    def result(self, rank: int) -> tuple[int, str, list[str]]:
        """Return exit code, rest of the output, and errors but those of mlx's ring."""
        process = self.processes[rank]
        out, err = process.communicate(timeout=PATIENCE_S)
        # mlx's ring writes its line in pieces, between which ours may stand.
        own = err.replace("mlxlab: ", "\nmlxlab: ", 1).splitlines()
        lines = [line for line in own if line.strip() and not line.startswith("[ring]")]
        return process.returncode, out, lines

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()


def free_ports(number: int) -> list[int]:
    """Return ports that nothing listens on."""
    with ExitStack() as stack:
        bound = [stack.enter_context(socket.socket()) for _ in range(number)]
        for own in bound:
            own.bind(("127.0.0.1", 0))
        return [own.getsockname()[1] for own in bound]


def save_two_heads(folder: Path) -> Path:
    """Save a model that two processes can share."""
    return save_model(folder, num_attention_heads=4, num_key_value_heads=2)
