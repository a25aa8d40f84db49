"""One of two processes that share a model: its folder and a case are arguments.

Prints JSON: what rank 0 has answered, and the state of each rank's strategy and store.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import mlxlab.engine  # noqa: F401  settles the BLAS

# isort: split
import mlx.core as mx
import numpy as np

from mlxlab.engine import Barred, Engine, Request, Runner, Worker
from mlxlab.engine.ranks import Follower, LeadingExecutor, LeadingLoader, Ranks
from mlxlab.engine.ranks.messages import digest_of
from mlxlab.engine.samplers import greedy
from mlxlab.errors import MlxlabError
from mlxlab.models.folder import ModelFolder, find_model
from mlxlab.prompt import Prompt
from mlxlab.strategies import Plan
from mlxlab.strategies.paged import Paged

__all__ = [
    "CANCELLED",
    "LONGEST",
    "SILENCE_S",
    "conversation",
    "prompt",
    "timeless",
]

#: Tokens of the answers: of those that end, and of the one that is cancelled.
LONGEST, CANCELLED = 24, 7
#: Long enough for a busy machine.
SILENCE_S = 5.0


def prompt(seed: int, length: int, head: Sequence[int] = ()) -> Prompt:
    ids = np.random.default_rng(seed).integers(10, 3000, length).tolist()
    return Prompt.of([*head, *ids])


HEAD = prompt(0, 150).tokens.tolist()


def timeless() -> float:
    """A clock under which turns do not depend on how busy the machine is."""
    return 0.0


def odd(tokens: mx.array, logits: mx.array) -> mx.array:
    """Choose other ids than a rank would that sampled by itself."""
    return mx.roll(logits, 1, -1)


def answer(engine: Engine, given: Prompt, n: int = LONGEST, **more: Any) -> Request:
    sampler, processors = more.get("sampler", greedy), more.get("processors", ())
    return Request(
        engine, given, n, sampler, processors, frozenset(), lambda item: None
    )


def conversation(engine: Engine, runner: Runner) -> dict[str, Any]:
    """Run two answers at once, one that is cancelled, and a second turn."""
    first = answer(engine, prompt(1, 90, HEAD), processors=[odd])
    second = answer(engine, prompt(2, 40, HEAD), 15, sampler=Barred([5], greedy))
    left = answer(engine, prompt(3, 70), 1000)
    for request in (first, second, left):
        runner.add(request)
    while runner.step():
        if len(left.answer) == CANCELLED:
            runner.cancel(left)
    turn = Prompt.of([*first.prompt.tokens.tolist(), *first.answer, 17, 18, 19])
    reused = engine.strategy.preview(turn).reused
    again = answer(engine, turn)
    runner.add(again)
    while runner.step():
        pass
    return {
        "answers": [r.answer for r in (first, second, left, again)],
        "stored": [r.stored for r in (first, second, left, again)],
        "errors": [str(r.error) for r in (first, second, left, again) if r.error],
        "reused": reused,
    }


def state(engine: Engine) -> dict[str, Any]:
    """Return what a rank holds, and what its strategy would decide."""
    strategy, store = engine.strategy, engine.store
    strategy.check_integrity()
    prompts = (prompt(1, 90, HEAD), prompt(2, 40, HEAD), prompt(3, 70))
    return {
        "plans": digest_of([strategy.preview(given) for given in prompts]),
        "token_bytes": strategy.token_bytes,
        "stored_bytes": strategy.stored_bytes,
        "nbytes": store.nbytes,
        "handles": len(store),
    }


def lead(ranks: Ranks, folder: ModelFolder, case: str) -> dict[str, Any]:
    loader = LeadingLoader(ranks)
    runner = Runner(clock=timeless, executor=LeadingExecutor(loader))
    engine = loader.open(loader.load(folder), "paged", chunk=64, chunk_s=1.0)
    if case == "conversation":
        return conversation(engine, runner) | {"state": state(engine)}
    runner.add(answer(engine, prompt(1, 90), 10**6))
    print("answering", flush=True)
    while runner.step():
        time.sleep(0.001)
    return {}


def follow(ranks: Ranks, folder: ModelFolder, case: str) -> dict[str, Any]:
    if case == "chance":
        other = Plan(90, best_match=1)
        patch.object(Paged, "_match", lambda self, given: other).start()
    elif case == "files":
        object.__setattr__(folder, "digest", "other")
        patch("mlxlab.engine.ranks.follower.find_model", lambda name: folder).start()
    elif case == "stuck":
        patch.object(Follower, "carry_out", lambda *_: threading.Event().wait()).start()
    follower = Follower(ranks)
    follower.run()
    (engine,) = follower.engines.values()
    return {"state": state(engine)}


def main(path: str, case: str) -> None:
    folder = find_model(path)
    leads = os.environ["MLX_RANK"] == "0"
    if case == "version" and not leads:
        other = {"mlxlab": "0.0.1", "mlx": "0", "mlx-lm": "0"}
        patch("mlxlab.engine.ranks.ranks._versions", lambda: other).start()
    ranks = Ranks.join(silence_s=SILENCE_S, wait_s=2.0 if case == "stuck" else 60.0)
    assert ranks is not None
    with ranks:
        if leads:
            with Worker() as worker:
                found = worker.call(lead, ranks, folder, case)
        else:
            found = follow(ranks, folder, case)
    print(json.dumps(found))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except MlxlabError as error:
        sys.exit(f"mlxlab: {error}")
