"""A process with limited memory that serves and simulates the models it is given."""

from __future__ import annotations

import json
import os
import resource
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from mlxlab.errors import MlxlabError
from mlxlab.models.folder import find_model
from mlxlab.rendering.renderer import Renderer
from mlxlab.server.server import Options, serve
from tests.support.endpoint import TOKEN, Client, ask

__all__ = ["SERVED", "ModelVisitor", "main", "simulate"]

SERVED = "served"
#: Address space; the server itself takes some 2 GiB of it.
_ADDRESSES = 8 * 2**30
#: Seconds for a model, on a busy machine.
_PATIENCE_S = 120.0


class ModelVisitor:
    """Starts the process, and again after a death.

    Attributes:
        home: of the process.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self._process = self._started()

    def visit(self, folder: Path) -> list[str]:
        """Return how the server and a simulation ended.

        Either is :data:`SERVED`, the type and text of an error, or begins with ``!``.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{folder}\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], _PATIENCE_S)
        line = self._process.stdout.readline() if ready else ""
        if line:
            return [str(outcome) for outcome in json.loads(line)]
        end = "death" if ready else "hang"
        self.close()
        self._process = self._started()
        return [f"! {end}"]

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _started(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", __name__, str(_ADDRESSES)],
            env=os.environ | {"HOME": str(self.home), "HF_HUB_OFFLINE": "1"},
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )


def simulate(path: str) -> str:
    """Do with a model what a simulation does first."""
    folder = find_model(path)
    Renderer(folder).render(ask())
    assert folder.layout.token_bytes() > 0
    return SERVED


def _serve(path: str) -> str:
    with (
        serve(path, options=Options(token=TOKEN)) as server,
        Client(server.url) as client,
    ):
        done = client.post("/v1/messages", json=ask(thinking={"type": "adaptive"}))
        return SERVED if done.status_code == 200 else f"{done.status_code} {done.text}"


def _outcome(visit: Callable[[str], str], path: str) -> str:
    try:
        return visit(path)
    except MlxlabError as error:
        return f"{type(error).__name__}: {error}"
    except BaseException as error:
        return f"! {type(error).__name__}: {error}"


def main() -> None:
    """Visit each folder that standard input names."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # some models print
    limit = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for line in sys.stdin:
        path = line.removesuffix("\n")
        outcomes = [_outcome(visit, path) for visit in (_serve, simulate)]
        print(json.dumps(outcomes), file=answers)


if __name__ == "__main__":
    main()
