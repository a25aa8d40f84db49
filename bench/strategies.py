"""Measures the speed ratios that mlxlab promises, on this machine.

``python -m bench.strategies [--json FILE]`` prints one table and exits with 1 if a
target is missed. Every row compares mlxlab with the code that it replaces: mlx-lm's
LRUPromptCache and prefill, the tokenizer, numpy's matrix product.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from itertools import count, pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mlxlab import blas
from mlxlab.engine import Engine, load_model  # before mlx: it chooses the BLAS
from mlxlab.engine.layout import measure_layout
from mlxlab.models.encoder import Encoder
from mlxlab.models.folder import find_model
from mlxlab.prompt import Prompt, Role, Segment
from mlxlab.rendering.renderer import Renderer
from mlxlab.replay.requests import render_trace
from mlxlab.strategies import make_strategy
from mlxlab.strategies.use import Use
from mlxlab.traces import load_trace

import mlx.core as mx  # isort: skip
from mlx_lm.generate import generate_step  # isort: skip
from mlx_lm.models import qwen3_5  # isort: skip
from mlx_lm.models.cache import KVCache, LRUPromptCache  # isort: skip

LENGTH = 60_000
SHARED = 1_000
SIDE = 2_048
PROMPT = 16_000
OTHERS = 300

#: A small model of recurrent states, which is resumed at checkpoints.
RESUMED: dict[str, Any] = {
    "model_type": "qwen3_5",
    "vocab_size": 8704,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
}

STRATEGIES = ("prefix", "static-prefix", "block-hash", "paged")


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison; ``ours`` and ``theirs`` are seconds, best of several runs."""

    name: str
    ours: float
    theirs: float
    target: float

    @property
    def ratio(self) -> float:
        """The factor by which mlxlab is faster."""
        return self.theirs / self.ours

    @property
    def ok(self) -> bool:
        """Whether the target is met."""
        return self.ratio >= self.target


def plan_commit(name: str, theirs: float) -> Row:
    """Measure a request that diverges early from a cached one of 60,000 tokens."""
    cached, request = _diverging()

    def measure() -> float:
        strategy = make_strategy(name)
        strategy.commit(cached, strategy.plan(cached))
        started = perf_counter()
        strategy.commit(request, strategy.plan(request))
        return perf_counter() - started

    return Row(
        f"plan + commit {LENGTH // 1000}K, {name}",
        _best(measure, 10),
        theirs,
        target=100,
    )


def fetch_insert() -> float:
    """Return the seconds of mlx-lm's LRUPromptCache for two such requests."""
    cached, request = (prompt.tokens.tolist() for prompt in _diverging())

    def measure() -> float:
        lru = LRUPromptCache()
        lru.insert_cache("model", cached, [KVCache()])
        started = perf_counter()
        lru.fetch_nearest_cache("model", request)
        lru.insert_cache("model", request, [KVCache()])
        return perf_counter() - started

    return _best(measure, 2)


def evicting_turns() -> Row:
    """Measure turns at 60,000 tokens that evict, under ``residual`` against ``lru``.

    Other sessions hold the rest of the memory, each 1,000 tokens.
    """
    ids = np.random.default_rng(0).integers(50_000, size=LENGTH + 20_000)
    tokens = ids.astype(np.int32)
    capacity = LENGTH + OTHERS * SHARED  # bytes; a token takes one

    def turns(policy: str) -> float:
        strategy = make_strategy("paged", capacity=capacity, evict=policy)
        clock = count(step=3)

        def turn(agent: str, prompt: Prompt) -> None:
            t = float(next(clock))
            use = Use(agent, t, t + 1, "tool_use", ("Bash",))
            strategy.commit(prompt, strategy.plan(prompt), use)

        for n in range(OTHERS):
            turn(f"other {n}", Prompt(np.roll(tokens, n + 1)[:SHARED]))
        turn("own", Prompt(tokens[:LENGTH]))
        prompts = [Prompt(tokens[: LENGTH + 1_000 * n]) for n in range(1, 20)]
        return median(_seconds(partial(turn, "own", prompt)) for prompt in prompts)

    ours, theirs = _alternately(lambda: turns("residual"), lambda: turns("lru"), 4)
    name = f"plan + commit {LENGTH // 1000}K, evict=residual, lru"
    return Row(name, ours, theirs, target=1 / 1.5)


def encode_turn() -> Row:
    """Measure a turn's text after that of the previous turn, against the tokenizer."""
    folder = find_model()
    *_, earlier, later = render_trace(load_trace("loop"), Renderer(folder))
    before, text = (
        str(folder.tokenizer.decode(step.prompt.tokens)) for step in (earlier, later)
    )

    def ours() -> float:
        encoder = Encoder(folder.tokenizer)
        encoder.encode(before)
        return _seconds(lambda: encoder.encode(text))

    def theirs() -> float:
        options = {"add_special_tokens": False, "return_offsets_mapping": True}
        return _seconds(lambda: folder.tokenizer(text, **options))

    return Row("encode a turn's prompt", _best(ours, 10), _best(theirs, 10), target=5)


def matrix_product() -> Row:
    """Measure a float32 product on the CPU, against numpy's."""
    a, b = np.random.default_rng(0).random((2, SIDE, SIDE), dtype=np.float32)
    with mx.stream(mx.cpu):
        x, y = mx.array(a), mx.array(b)
        ours = _best(lambda: _seconds(lambda: mx.eval(x @ y)), 6)
    theirs = _best(lambda: _seconds(lambda: a @ b), 6)
    return Row(f"float32 product {SIDE}^2", ours, theirs, target=0.6)


def engine_prefill() -> Row:
    """Measure a cold prompt of 16,000 tokens to its first token, against mlx-lm."""
    folder = find_model()
    model = load_model(folder)
    ids = np.random.default_rng(0).integers(256, 8_000, size=PROMPT, dtype=np.int32)

    def ours() -> float:
        engine = Engine(model, make_strategy("none"))
        return engine.replay(Prompt(ids), ids[:0]).ttft_s

    def theirs() -> float:
        steps = generate_step(mx.array(ids), model, max_tokens=1)
        return _seconds(lambda: next(steps))

    mine, other = _alternately(ours, theirs, 5)
    return Row(f"cold prefill of {PROMPT // 1000}K", mine, other, target=1 / 1.05)


def capturing_prefill() -> Row:
    """Measure a cold prompt of 16,000 tokens with checkpoints, against one without."""
    model = qwen3_5.Model(qwen3_5.ModelArgs.from_dict(RESUMED))
    mx.eval(model.parameters())
    layout, prompt = measure_layout(model), _conversation()

    def seconds(strategy: str) -> float:
        engine = Engine(model, make_strategy(strategy, layout=layout))
        return _seconds(lambda: engine.prefill(prompt))

    ours, theirs = _alternately(lambda: seconds("paged"), lambda: seconds("none"), 4)
    name = f"{PROMPT // 1000}K with checkpoints, without"
    return Row(name, ours, theirs, target=1 / 1.03)


def _conversation() -> Prompt:
    """Return a prompt of system text, tools, and messages of 100 to 900 tokens."""
    random = np.random.default_rng(0)
    roles = {6_000: Role.TOOLS, 1_500: Role.SYSTEM}
    ends = [*sorted(roles), *np.cumsum(random.integers(100, 900, size=17)) + 6_000]
    ends = [int(end) for end in ends if end < PROMPT] + [PROMPT]
    segments = tuple(
        Segment(f"messages[{i}].text[0]", roles.get(stop, Role.USER), start, stop)
        for i, (start, stop) in enumerate(pairwise([0, *ends]))
    )
    return Prompt(random.integers(256, 8_000, PROMPT, dtype=np.int32), segments)


def _alternately(
    ours: Callable[[], float], theirs: Callable[[], float], times: int
) -> tuple[float, float]:
    """Return the least of both, run equally often and in one state of the machine."""
    runs = [(ours(), theirs()) for _ in range(times)]
    runs += [(ours(), other) for other in (theirs() for _ in range(times))]
    mine, other = (min(seconds) for seconds in zip(*runs, strict=True))
    return mine, other


def _diverging() -> tuple[Prompt, Prompt]:
    ids = np.random.default_rng(0)
    first, second = (ids.integers(50_000, size=LENGTH, dtype=np.int32) for _ in "12")
    second[:SHARED] = first[:SHARED]
    segments = (
        Segment("system[0]", Role.SYSTEM, 0, SHARED),
        Segment("messages[0]", Role.USER, SHARED, LENGTH),
    )
    return Prompt(first, segments), Prompt(second, segments)


def _best(measure: Callable[[], float], runs: int) -> float:
    return min(measure() for _ in range(runs))


def _seconds(work: Callable[[], object]) -> float:
    started = perf_counter()
    work()
    return perf_counter() - started


def _rows() -> Iterator[Row]:
    theirs = fetch_insert()
    for name in STRATEGIES:
        yield plan_commit(name, theirs)
    yield evicting_turns()
    yield encode_turn()
    yield engine_prefill()
    yield capturing_prefill()
    if mx.default_device() == mx.Device(mx.cpu):  # elsewhere the BLAS has no effect
        yield matrix_product()


def _table(rows: list[Row]) -> Table:
    table = Table(
        "name",
        box=SIMPLE_HEAD,
        title=f"mlxlab against the code it replaces; BLAS: {blas.preload()}",
    )
    for column in ("ours ms", "theirs ms", "times as fast", "target", "ok"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row.name,
            f"{row.ours * 1e3:.2f}",
            f"{row.theirs * 1e3:.2f}",
            f"{row.ratio:,.2f}",
            f">= {row.target:.3g}",
            "yes" if row.ok else "NO",
        )
    return table


def _report(rows: list[Row]) -> str:
    return json.dumps(
        {
            "machine": f"{platform.platform()}, {os.cpu_count()} CPUs",
            "blas": str(blas.preload()),
            "python": platform.python_version(),
            "mlx": version("mlx"),
            "mlx-lm": version("mlx-lm"),
            "rows": [asdict(row) | {"ratio": row.ratio, "ok": row.ok} for row in rows],
        },
        indent=2,
    )


def main() -> int:
    """Measure, print, and return 1 if a target is missed."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the rows to this file"
    )
    target: Path | None = parser.parse_args().json
    rows = list(_rows())
    Console().print(_table(rows))
    if target is not None:
        target.write_text(_report(rows) + "\n", encoding="utf-8")
    return 0 if all(row.ok for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
