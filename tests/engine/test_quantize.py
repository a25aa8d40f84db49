"""Rounded weights: their error, and that the original model stays unchanged."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.nn.layers.containers import Sequential
from mlx.nn.layers.linear import Linear
from mlx.nn.layers.quantized import quantize
from mlx.utils import tree_flatten

from mlxlab.engine import Worker, load_model
from mlxlab.engine.quantize import quantize_weights, stored_bits
from mlxlab.errors import ModelError
from mlxlab.models.folder import find_model

Weights = dict[str, np.ndarray[Any, np.dtype[np.float32]]]


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as worker:
        yield worker


@pytest.fixture(scope="module")
def model(worker: Worker) -> Any:
    return worker.call(load_model, find_model())


def weights_of(model: Any) -> Weights:
    flat: Any = tree_flatten(model.parameters())
    return {name: np.array(array) for name, array in flat}


def error(model: Any, bits: int) -> dict[str, float]:
    """Return the root mean square error by matrix; 0 for unrounded matrices."""
    before, after = weights_of(model), weights_of(quantize_weights(model, bits))
    assert before.keys() == after.keys()
    return {
        name: float(np.sqrt(np.mean((before[name] - after[name]) ** 2)))
        for name in before
    }


def test_fewer_bits_are_further_off(worker: Worker, model: Any) -> None:
    errors = [worker.call(error, model, bits) for bits in (8, 5, 4, 3)]
    for name, most_bits in errors[0].items():
        own = [by_name[name] for by_name in errors]
        if "norm" in name:
            assert own == [0, 0, 0, 0]
        else:
            assert most_bits > 0
            assert own == sorted(own)
    assert any("embed" in name for name in errors[0])


def test_a_group_has_as_many_values_as_bits_can_tell(
    worker: Worker, model: Any
) -> None:
    rounded = worker.call(lambda: weights_of(quantize_weights(model, 3)))
    groups = rounded["model.embed_tokens.weight"][:200].reshape(-1, 64)
    assert max(len(np.unique(group)) for group in groups) <= 2**3


def test_the_model_stays_as_it_is(worker: Worker, model: Any) -> None:
    before = worker.call(weights_of, model)
    worker.call(quantize_weights, model, 3)
    after = worker.call(weights_of, model)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert worker.call(stored_bits, model) is None


def test_a_quantised_model_can_only_lose_bits(worker: Worker, model: Any) -> None:
    def check() -> None:
        quantised = deepcopy(model)
        quantize(quantised, group_size=64, bits=4)
        before = weights_of(quantised)
        with pytest.raises(ModelError, match="stored with 4 bits; give fewer"):
            quantize_weights(quantised, 4)
        coarser = quantize_weights(quantised, 3)
        assert (stored_bits(quantised), stored_bits(coarser)) == (4, 3)
        ids = mx.arange(16)[None]
        plain, fine, coarse = (np.array(m(ids)) for m in (model, quantised, coarser))
        assert np.abs(fine - plain).mean() < np.abs(coarse - plain).mean()
        assert all(
            np.array_equal(v, weights_of(quantised)[k]) for k, v in before.items()
        )

    worker.call(check)


def test_rows_that_no_group_divides_stay(worker: Worker) -> None:
    def check() -> None:
        layers = Sequential(Linear(96, 8), Linear(40, 8))
        rounded = quantize_weights(layers, 3)
        wide, odd = (
            mx.array_equal(a.weight, b.weight).item()
            for a, b in zip(layers.layers, rounded.layers, strict=True)
        )
        assert (wide, odd) == (False, True)

    worker.call(check)
