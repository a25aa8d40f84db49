"""What each of several machines holds of a model, and what travels between them.

``python -m bench.ranks`` prints a table of the models in data/geometries, each divided
by mlx-lm's own rules, without weights. ``mlx.launch ... python -m bench.ranks link``
measures what one sum over the machines takes.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any
from unittest.mock import patch

import mlxlab.engine  # noqa: F401  settles the BLAS

# isort: split
import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import quantize_model

from data.geometries.make import CONFIGS
from mlxlab.engine.layout import measure_layout
from mlxlab.engine.loading import outline_model
from mlxlab.engine.sharding import shard, weight_bytes
from mlxlab.errors import ModelError
from mlxlab.models.folder import find_model

__all__ = ["Part", "divide", "measure_link", "table"]

_TOKENS = 64
#: Nominal bytes a second of links between machines.
LINKS = {"1 GbE": 0.125e9, "10 GbE": 1.25e9, "40 Gb/s": 5e9, "80 Gb/s": 10e9}


@dataclass(frozen=True)
class Parts:
    """A group of machines that are not there."""

    number: int

    def size(self) -> int:
        return self.number

    def rank(self) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class Part:
    """What one machine of several holds and sends.

    Attributes:
        machines: their number.
        weights: bytes, at 4 bits a weight in groups of 64, or of 32 where the groups
            have to be divided.
        token: bytes of keys and values for each token.
        checkpoint: bytes of a checkpoint; 0 for a model that needs none.
        exchanges: times that all machines wait for each other in one pass.
        prefilled: bytes that it sends for a token of a prompt, in a ring.
        decoded: the same for a token of an answer; some models divide its logits too.
    """

    machines: int
    weights: int
    token: int
    checkpoint: int
    exchanges: int
    prefilled: int
    decoded: int


def divide(config: Mapping[str, Any], machines: int) -> Part:
    """Divide a model of this configuration, whose weights take no memory.

    Raises:
        ModelError: mlx-lm cannot divide it among this many machines.
    """
    try:
        return _divided(config, machines, 64)
    except ModelError:
        return _divided(config, machines, 32)


def _divided(config: Mapping[str, Any], machines: int, packed_by: int) -> Part:
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        model = outline_model(find_model(folder))
    with redirect_stdout(sys.stderr):
        packed, _ = quantize_model(model, dict(config), packed_by, 4)
    group: Any = Parts(machines)
    with _exchanging(machines) as (sums, gathers):
        if machines > 1:
            shard(packed, group)
        layout = measure_layout(packed)
        sums.clear()
        gathers.clear()
        packed(mx.zeros((1, _TOKENS), dtype=mx.int32), cache=make_prompt_cache(packed))
    prefilled = sum(sums) // _TOKENS
    return Part(
        machines,
        weight_bytes(packed),
        layout.token_bytes(),
        layout.checkpoint_bytes(),
        len(sums) + len(gathers),
        prefilled,
        prefilled + sum(gathers) // _TOKENS,
    )


@contextmanager
def _exchanging(machines: int) -> Iterator[tuple[list[int], list[int]]]:
    """Count the bytes that a machine would send, in place of sending them.

    In a ring, a sum goes round twice, less one machine each time, in equal pieces.
    mlx-lm gathers logits only, which a prompt's tokens do not need.
    """
    sums: list[int] = []
    gathers: list[int] = []

    def all_sum(array: mx.array, **_: Any) -> mx.array:
        sums.append(2 * (machines - 1) * array.nbytes // machines)
        return array

    def all_gather(array: mx.array, **_: Any) -> mx.array:
        gathers.append((machines - 1) * array.nbytes)
        return mx.concatenate([array] * machines)

    with (
        patch.object(mx.distributed, "all_sum", all_sum),
        patch.object(mx.distributed, "all_gather", all_gather),
    ):
        yield sums, gathers


def table(models: Sequence[str], machines: Sequence[int]) -> Iterator[str]:
    """Yield the lines of a Markdown table; why a model is left out goes to stderr.

    The last columns are seconds to exchange 1,000 tokens of a prompt, for each of
    :data:`LINKS`.
    """
    heads = ["model", "machines", "weights, GiB", "KV a token, KiB", "checkpoint, MiB"]
    heads += ["exchanges", "sent a prompt token, KiB", "sent a decoded token, KiB"]
    yield "| " + " | ".join([*heads, *LINKS]) + " |"
    yield "|---|" + "---:|" * (len(heads) + len(LINKS) - 1)
    configs = json.loads(CONFIGS.read_text())
    for name in models or configs:
        for number in machines:
            try:
                cells = _cells(divide(configs[name]["config"], number))
            except ModelError as error:
                print(f"{name}: {error}", file=sys.stderr)
                continue
            yield "| " + " | ".join([name, str(number), *cells]) + " |"


def _cells(part: Part) -> list[str]:
    seconds = [f"{1000 * part.prefilled / rate:.2f}" for rate in LINKS.values()]
    return [
        f"{part.weights / 2**30:.1f}",
        f"{part.token / 2**10:g}",
        f"{part.checkpoint / 2**20:.1f}" if part.checkpoint else "",
        str(part.exchanges),
        f"{part.prefilled / 2**10:,.0f}",
        f"{part.decoded / 2**10:,.0f}",
        *(seconds if part.machines > 1 else ["" for _ in LINKS]),
    ]


def measure_link(width: int = 4096) -> Iterator[str]:
    """Yield the median time of one sum over all machines, of few and of many tokens.

    Args:
        width: numbers of two bytes for each token.
    """
    group = mx.distributed.init()
    for tokens in (1, 8, 2048):
        array = mx.zeros((tokens, width), dtype=mx.bfloat16)
        mx.eval(array)
        taken = []
        for _ in range(20):
            started = perf_counter()
            mx.eval(mx.distributed.all_sum(array, group=group))
            taken.append(perf_counter() - started)
        if group.rank() == 0:
            yield f"{tokens} tokens, {array.nbytes} bytes: {median(taken) * 1e6:.0f} us"


def main() -> None:
    parser = ArgumentParser(prog="python -m bench.ranks", description=__doc__)
    parser.add_argument("what", nargs="?", choices=["table", "link"], default="table")
    parser.add_argument("--models", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--machines", type=int, nargs="+", default=[1, 2, 4])
    given = parser.parse_args()
    lines = table(given.models, given.machines)
    for line in measure_link() if given.what == "link" else lines:
        print(line, flush=True)


if __name__ == "__main__":
    main()
