"""Replays every configuration of a model through the strategies: is reuse exact?

``python -m bench.models [NAME ...]`` builds each configuration with random weights,
replays a few requests of a coding agent live and simulated, and compares the logits of
each request with those of an uncached run. It prints a line for each configuration, and
a second one where windows can be kept token by token. It exits with 1 if live and
simulated replays differ, or if a model is served inexactly.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np
from tqdm import tqdm

from mlxlab.engine import Engine, load_model  # before mlx: it chooses the BLAS
from mlxlab.engine.loading import outline_layout
from mlxlab.errors import ModelError
from mlxlab.models.folder import find_model
from mlxlab.models.layout import CacheKind, CacheLayout, Windows
from mlxlab.rendering.renderer import Renderer
from mlxlab.replay.requests import RenderedRequest
from mlxlab.replay.simulator import Simulator
from mlxlab.strategies import parse_strategy
from tests.support.architectures import configurations, save_architecture
from tests.support.turns import Turn, turns

__all__ = ["Examination", "Replay", "examine"]

Logits: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]

SPECS = ("none", "prefix", "static-prefix", "block-hash", "paged", "mlx-lm")
#: Those that can keep windows token by token.
CUT = SPECS[1:5]

_BY_TOKEN = f"windows={Windows.TOKENS}"

#: Tokens computed at a time under a strategy.
CHUNK = 96

WIDTH = 120
HEADER = (
    f"{'':20} {'':34} {'bytes a':>6} {'check-':>7} {'resumed at':<11} "
    f"{'reused, % of prompt tokens':<29} {'differ-':>7}\n"
    f"{'configuration':<20} {'layers by kind of cache':<34} {'token':>6} {'point':>7} "
    f"{'':11} {'prefx':>5} {'stat.':>5} {'block':>5} {'paged':>5} {'mlxlm':>5} "
    f"{'ence':>7}"
)

#: Differences below this share of the largest logit are rounding.
ROUNDING = 1e-4

#: Most noise of another chunk size, as a share of the largest logit.
MOST = 1e-3


_NOTHING = CacheLayout(())


@dataclass(frozen=True, slots=True)
class Replay:
    """The requests under one strategy.

    Attributes:
        spec: of the strategy.
        reused: share of the prompt tokens.
        difference: largest difference of a logit from an uncached run, over all
            requests, as a share of the largest logit.
        simulated: whether a simulation reuses, stores and evicts the same.
    """

    spec: str
    reused: float
    difference: float
    simulated: bool


@dataclass(frozen=True, slots=True)
class Examination:
    """One configuration, served or refused.

    Attributes:
        refusal: why it is refused; empty if it is served.
        replays: one per strategy, ``none`` first: its differences are the noise of
            another chunk size.
    """

    name: str
    refusal: str = ""
    layout: CacheLayout = _NOTHING
    replays: tuple[Replay, ...] = ()

    @property
    def faults(self) -> list[str]:
        """What is wrong, one line each."""
        most = max((4 * own.difference for own in self.replays[:1]), default=0)
        most = min(most, MOST) + ROUNDING
        found = []
        for own in self.replays:
            if not own.difference <= most:
                found.append(f"{own.spec}: logits {own.difference:.1e} off")
            if not own.simulated:
                found.append(f"{own.spec}: simulated otherwise")
        return found


def examine(name: str, config: Mapping[str, Any]) -> Examination:
    """Build a model of a configuration and replay it under every exact strategy."""
    with TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        try:
            save_architecture(Path(folder), config)
            found = find_model(folder)
            model = load_model(found)
            # As a simulation gets it, without the weights.
            layout = outline_layout(found)
        except ModelError as error:
            return Examination(name, str(error).removeprefix(f"model {folder}: "))
        except (Exception, SystemExit) as error:
            return Examination(name, f"cannot be built: {error!r}")
    asked = [own for own in _turns() if len(own[0]) + len(own[1]) <= found.window]
    engine = Engine(model, parse_strategy("none"))
    uncached = [engine.replay(*own, score=len(own[1])).logits for own in asked]
    replays = tuple(
        _replay(model, layout, spec, asked, uncached) for spec in _specs(layout)
    )
    return Examination(name, "", layout, replays)


def _specs(layout: CacheLayout) -> Iterator[str]:
    """Yield the specs to run; the last evicts."""
    for name in SPECS:
        yield _spec(name, layout, Windows.CHECKPOINTS)
    if layout.windows:
        yield from (_spec(name, layout, Windows.TOKENS) for name in CUT)
    room = 4 * layout.checkpoint_bytes() + 700 * layout.token_bytes()
    yield f"paged:capacity={room}"


def _spec(name: str, layout: CacheLayout, windows: Windows) -> str:
    """Return a spec whose limits suit short prompts."""
    given = [_BY_TOKEN] if windows is Windows.TOKENS else []
    if name == "block-hash":
        given.append("minimum=64")
        if not layout.checkpoint_bytes(windows):
            given.append("block=32")
    return f"{name}:{','.join(given)}" if given else name


def _replay(
    model: Any,
    layout: CacheLayout,
    spec: str,
    asked: Sequence[Turn],
    uncached: Sequence[Logits],
) -> Replay:
    engine = Engine(model, parse_strategy(spec, layout=layout), chunk=CHUNK)
    simulator = Simulator(parse_strategy(spec, layout=layout))
    logits, reused, same = [], [], True
    for i, (prompt, answer) in enumerate(asked):
        done = engine.replay(prompt, answer, score=len(answer), greedy=1)
        engine.strategy.check_integrity()
        outcome = simulator.replay(RenderedRequest("session", i, prompt, answer))
        logits.append(done.logits)
        reused.append(done.plan.reused)
        live = (done.plan.reused, engine.store.nbytes, done.commit.evicted)
        same &= live == (outcome.reused_tokens, outcome.stored_bytes, outcome.evicted)
    share = sum(reused) / sum(len(prompt) for prompt, _ in asked)
    return Replay(spec, share, _difference(uncached, logits), same)


def _difference(expected: Iterable[Logits], found: Iterable[Logits]) -> float:
    """Return the largest difference, as a share of the largest logit."""
    pairs = list(zip(expected, found, strict=True))
    # Some models mask tokens out with infinite logits.
    finite = (np.where(np.isinf(a), 0, a) for a, _ in pairs)
    largest = max(float(np.abs(a).max()) for a in finite)
    with np.errstate(invalid="ignore"):
        return max(
            float(np.where(a == b, 0, np.abs(a - b)).max()) / largest for a, b in pairs
        )


@cache
def _turns() -> list[Turn]:
    return turns(Renderer(find_model()))


def _lines(found: Examination) -> Iterator[str]:
    """Yield what is printed of a configuration."""
    if found.refusal:
        why = f"{found.name:<20} refused: {found.refusal}"
        yield why if len(why) <= WIDTH else f"{why[: WIDTH - 1]}…"
        return
    yield _line(found, found.name, _kept(found.layout), Windows.CHECKPOINTS)
    if found.layout.windows:
        yield _line(found, "", f"  {_BY_TOKEN}", Windows.TOKENS)
    for fault in found.faults:
        yield f"{'':<20} FAULT: {fault}"


def _line(found: Examination, name: str, kept: str, windows: Windows) -> str:
    size = found.layout.checkpoint_bytes(windows)
    by_spec = {own.spec: own for own in found.replays}
    specs = [_spec(name, found.layout, windows) for name in SPECS[1:]]
    shown = [by_spec.get(spec) for spec in specs]
    columns = [f"{100 * own.reused:5.1f}" if own else " " * 5 for own in shown]
    worst = max(own.difference for own in shown if own)
    return (
        f"{name:<20} {kept:<34} {found.layout.token_bytes(windows):>6,} "
        f"{size or '':>7} {'checkpoints' if size else 'any token':<11} "
        f"{' '.join(columns)} {worst:7.0e}"
    )


def _kept(layout: CacheLayout) -> str:
    counts: dict[str, int] = {}
    for part in layout.layers:
        window = f" of {part.window}" if part.kind is CacheKind.WINDOW else ""
        kind = f"{part.kind}{window}"
        counts[kind] = counts.get(kind, 0) + part.count
    return ", ".join(f"{count} {kind}" for kind, count in counts.items())


def _examine_all(
    chosen: Mapping[str, Mapping[str, Any]], processes: int
) -> Iterator[Examination]:
    """Yield examinations in the order of the configurations."""
    # A model this small gains nothing from threads.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    context = get_context("spawn")
    with TemporaryDirectory() as caches:
        os.environ["XDG_CACHE_HOME"] = caches  # loading keeps layouts in there
        with ProcessPoolExecutor(processes, mp_context=context) as pool:
            yield from pool.map(examine, chosen, chosen.values())


def main() -> int:
    """Print the matrix; return 1 if a replay differs."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="all by default")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    known = configurations()
    if not known:
        print("make models: needs shared/models/configs.json beside the checkout")
        return 0
    if unknown := [name for name in given.names if name not in known]:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    chosen = {name: known[name] for name in given.names or known}
    found = []
    print(HEADER)
    with tqdm(total=len(chosen), leave=False, disable=None) as bar:
        for own in _examine_all(chosen, given.processes):
            found.append(own)
            bar.update()
            for line in _lines(own):
                bar.write(line)
    print(_summary(found))
    return 1 if any(own.faults for own in found) else 0


def _summary(found: Sequence[Examination]) -> str:
    served = [own for own in found if not own.refusal]
    cut = sum(1 for own in served if not own.layout.checkpoint_bytes())
    faults = sum(1 for own in served if own.faults)
    return (
        f"{len(found)} configurations: {len(found) - len(served)} refused, "
        f"{len(served)} served ({cut} cut at any token, {len(served) - cut} at "
        f"checkpoints),\n{len(served) - faults} of them exact, with live = simulated; "
        f"{faults} with faults"
    )


if __name__ == "__main__":
    sys.exit(main())
