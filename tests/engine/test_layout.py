"""A model's layout is that of its filled caches, and nothing is evaluated for it."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache

from mlxlab.engine.layout import measure_layout
from mlxlab.errors import ModelError
from mlxlab.models.layout import CacheKind, CacheLayout, LayerCache
from tests.support.architectures import (
    FAMILIES,
    NOT_HERE,
    configurations,
    save_architecture,
)

CONFIGURATIONS = configurations()
TOKENS, CHUNK = 200, 50
REFUSED = {"deepseek_v41"}

pytestmark = pytest.mark.skipif(
    not CONFIGURATIONS, reason="shared/models/configs.json is not beside the checkout"
)


def filled(model: Any) -> list[Any]:
    """Prefill 200 tokens in chunks, as the engine does."""
    cache: list[Any] = make_prompt_cache(model)
    tokens = mx.random.randint(0, 8000, (1, TOKENS))
    for start in range(0, TOKENS, CHUNK):
        model(tokens[:, start : start + CHUNK], cache=cache)
        mx.eval([layer.state for layer in cache])
    return cache


def leaves(caches: Sequence[Any]) -> Iterator[Any]:
    for cache in caches:
        yield from leaves(cache.caches) if hasattr(cache, "caches") else (cache,)


def nbytes(arrays: Sequence[mx.array | None]) -> int:
    return sum(array.nbytes for array in arrays if array is not None)


def sizes(cache: Any) -> tuple[CacheKind, float, int]:
    """Return kind, size and window, from the bytes of a filled cache."""
    if hasattr(cache, "cache"):
        return CacheKind.STATE, nbytes(cache.cache), 0
    if cache.keys is None:
        return CacheKind.TOKENS, 0, 0
    keys, values = cache.keys, cache.values
    per_row = nbytes([keys, values]) / keys.shape[2]
    # llama4 attends within chunks, so an earlier chunk is never needed.
    if window := getattr(cache, "max_size", getattr(cache, "chunk_size", 0)):
        return CacheKind.WINDOW, per_row, window
    assert cache.offset == TOKENS
    return CacheKind.TOKENS, per_row, 0


def totals(layout: CacheLayout) -> Mapping[tuple[CacheKind, int], int]:
    found: dict[tuple[CacheKind, int], int] = {}
    for part in layout.layers:
        key = (part.kind, part.window)
        found[key] = found.get(key, 0) + part.count * part.size
    return found


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, mx.float32) for name in FAMILIES),
        # Experts run in single precision only on a CPU.
        *((name, mx.bfloat16) for name in ("qwen3", "gemma3", "qwen3_5", "mamba")),
        *(
            pytest.param(name, mx.float32, marks=pytest.mark.slow)
            for name in CONFIGURATIONS
            if name not in {*FAMILIES, *NOT_HERE, *REFUSED}
        ),
    ],
    ids=lambda value: str(value).removeprefix("mlx.core."),
)
def test_bytes_are_those_of_filled_caches(
    name: str, dtype: mx.Dtype, tmp_path: Path
) -> None:
    model = save_architecture(tmp_path, CONFIGURATIONS[name], dtype)
    layout = measure_layout(model)
    expected: dict[tuple[CacheKind, int], float] = {}
    for cache in leaves(filled(model)):
        kind, size, window = sizes(cache)
        expected[kind, window] = expected.get((kind, window), 0) + size
    assert totals(layout) == {key: size for key, size in expected.items() if size}


def test_layers_that_keep_the_same_are_counted(tmp_path: Path) -> None:
    model = save_architecture(tmp_path, CONFIGURATIONS["qwen3_5"], mx.bfloat16)
    # A convolution's last 3 inputs in half precision, a state in single precision.
    state = 3 * 128 * 2 + 4 * 16 * 16 * 4
    assert measure_layout(model) == CacheLayout(
        (
            LayerCache(3, CacheKind.STATE, state),
            LayerCache(1, CacheKind.TOKENS, 2 * 2 * 16 * 2, keys=32, values=32),
        )
    )


@pytest.mark.parametrize("name", REFUSED)
def test_unknown_caches_are_refused(name: str, tmp_path: Path) -> None:
    model = save_architecture(tmp_path, CONFIGURATIONS[name])
    with pytest.raises(ModelError, match="keeps a LayerCache, which mlxlab cannot"):
        measure_layout(model)


def test_layers_without_a_cache_keep_nothing(tmp_path: Path) -> None:
    replaced = save_architecture(tmp_path, CONFIGURATIONS["nemotron-nas+linear"])
    assert len(make_prompt_cache(replaced)) == 4
    assert sum(part.count for part in measure_layout(replaced).layers) == 3
