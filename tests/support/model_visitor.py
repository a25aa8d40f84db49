"""A process with limited memory that simulates and serves the models it is given.

Its lines of input are folders. It answers each with a JSON array of outcomes, one for
the simulation and one for the server: ``served``, or the type and text of the error.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable

from mlxlab.errors import MlxlabError
from mlxlab.models.folder import find_model
from mlxlab.rendering.renderer import Renderer
from mlxlab.server.server import Options, serve
from tests.support.endpoint import TOKEN, Client, ask

__all__ = ["main"]

SERVED = "served"


def _simulate(path: str) -> str:
    folder = find_model(path)
    prompt = Renderer(folder).render(ask() | {"max_tokens": 4})
    assert len(prompt) <= folder.window
    assert folder.layout.token_bytes() > 0
    return SERVED


def _serve(path: str) -> str:
    with (
        serve(path, options=Options(token=TOKEN)) as server,
        Client(server.url) as client,
    ):
        done = client.post("/v1/messages", json=ask())
        return SERVED if done.status_code == 200 else f"{done.status_code} {done.text}"


def _outcome(visit: Callable[[str], str], path: str) -> str:
    try:
        return visit(path)
    except (MlxlabError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    except BaseException as error:
        return f"! {type(error).__name__}: {error}"


def main() -> None:
    """Visit folder after folder."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # some models print
    limit = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for line in sys.stdin:
        path = line.rstrip("\n")
        outcomes = [_outcome(visit, path) for visit in (_serve, _simulate)]
        print(json.dumps(outcomes), file=answers)


if __name__ == "__main__":
    main()
