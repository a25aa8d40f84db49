"""Moved spans: rotated, computed around, and as good as they can be."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models import gpt2, llama, phi3
from mlx_lm.models.cache import KVCache, make_prompt_cache

from mlxlab.engine import Engine, load_model
from mlxlab.engine.recompute import select
from mlxlab.engine.rope import Rope, kept
from mlxlab.engine.scattered_prefill import ScatteredPrefill
from mlxlab.errors import ModelError
from mlxlab.models.folder import find_model
from mlxlab.prompt import Prompt, Tokens
from mlxlab.strategies import (
    Commit,
    Plan,
    Put,
    Selection,
    Span,
    Strategy,
    make_strategy,
)

SHAPE = {
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "intermediate_size": 64,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-6,
    "vocab_size": 500,
    "rope_theta": 10000.0,
    "max_position_embeddings": 4096,
}


class Scripted(Strategy):
    """Stores the first sequence, then returns the given plans."""

    name = "scripted"
    summary = "for tests"
    exact = False

    def __init__(self, plans: Sequence[Plan] = (), **parameters: Any) -> None:
        super().__init__(**parameters)
        self._plans = list(plans)
        self.committed: list[tuple[int, Plan]] = []

    def _match(self, prompt: Prompt) -> Plan:
        return self._plans.pop(0) if self.committed else Plan(len(prompt))

    def _store(self, prompt: Prompt, plan: Plan) -> Commit:
        self.committed.append((len(prompt), plan))
        first = len(self.committed) == 1
        return Commit(put=(Put(1, 0, len(prompt)),) if first else ())

    @property
    def stored_tokens(self) -> int:
        return 0

    def _check_stored(self) -> None: ...


@dataclass(frozen=True)
class Edit:
    """A sequence, an edited one, and the spans that they share."""

    before: Tokens
    after: Tokens
    spans: tuple[Span, ...]

    def plan(self, **how: Any) -> Plan:
        return Plan(len(self.after), self.spans, **how)


def random_ids(count: int, seed: int) -> Tokens:
    return np.random.default_rng(seed).integers(0, 500, count).astype(np.int32)


def edited() -> Edit:
    """Kept 0-40, 5 new, 45-120 moved by 0, cut 20, 140-260 moved by -17, 12 new."""
    old = random_ids(300, 0)
    new = random_ids(40, 1)
    after = np.concatenate([old[:40], new[:5], old[45:120], new[5:8], old[140:260]])
    after = np.concatenate([after, new[8:20]])
    spans = (
        Span(1, 0, 0, 40),
        Span(1, 45, 45, 30, origin=45),
        Span(1, 75, 75, 45, origin=75),
        Span(1, 140, 123, 120, origin=140),
    )
    return Edit(old, after, spans)


def new_model(module: Any = llama, dtype: mx.Dtype = mx.float32, **more: Any) -> Any:
    mx.random.seed(0)
    kind = module.__name__.rpartition(".")[2]
    config = {**SHAPE, "model_type": kind, **more}
    model = module.Model(module.ModelArgs.from_dict(config))
    model.set_dtype(dtype)
    mx.eval(model.parameters())
    return model


@pytest.fixture(scope="module")
def model() -> Any:
    return new_model()


def full(model: Any, tokens: Tokens) -> tuple[np.ndarray[Any, Any], list[KVCache]]:
    """Logits of the last token after a plain prefill, and the cache."""
    cache = make_prompt_cache(model)
    logits = model(mx.array(tokens)[None], cache=cache)
    mx.eval(logits, [layer.state for layer in cache])
    return np.array(logits[0, -1]), cache


def patched(model: Any, edit: Edit, **how: Any) -> tuple[Any, Any]:
    """Logits of the last token through the engine, and of a full prefill."""
    chunk = how.pop("chunk", 2048)
    engine = Engine(model, Scripted([edit.plan(**how)]), chunk=chunk)
    engine.replay(Prompt.of(edit.before), np.empty(0, np.int32))
    done = engine.replay(Prompt.of(edit.after), np.empty(0, np.int32))
    return done.logits[0], full(model, edit.after)[0]


@pytest.mark.parametrize("selection", Selection)
@pytest.mark.parametrize("chunk", [2048, 7])
def test_all_computed_again_is_a_full_prefill(
    model: Any, selection: Selection, chunk: int
) -> None:
    edit = edited()
    how = {"recompute": edit.plan().moved, "selection": selection, "chunk": chunk}
    got, expected = patched(model, edit, **how)
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_gaps_are_computed_in_order_at_their_true_positions(model: Any) -> None:
    # The steps of the engine by hand, one piece after another.
    edit = edited()
    rope = Rope(model)
    _, stored = full(model, edit.before)
    cache = make_prompt_cache(model)
    position = 0
    for span in (*edit.spans, None):
        stop = span.target if span else len(edit.after)
        if stop > position:
            logits = model(mx.array(edit.after[position:stop])[None], cache=cache)
        if span:
            place = slice(span.source, span.source + span.length)
            for i, layer in enumerate(stored):
                keys, values = (array[..., place, :] for array in kept(layer))
                cache[i].update_and_fetch(rope.move(i, keys, span.shift), values)
            position = span.target + span.length
    got, fresh = patched(model, edit)
    np.testing.assert_allclose(got, np.array(logits[0, -1]), atol=1e-4)
    assert np.abs(got - fresh).max() > 1e-3


def test_keys_of_the_first_layer_are_right_once_rotated(model: Any) -> None:
    edit = edited()
    rope = Rope(model)
    stored, fresh = (full(model, ids)[1] for ids in (edit.before, edit.after))
    span = edit.spans[-1]
    old = kept(stored[0])[0][..., span.source : span.source + span.length, :]
    new = kept(fresh[0])[0][..., span.target : span.target + span.length, :]
    np.testing.assert_allclose(rope.move(0, old, span.shift), new, atol=1e-5)
    assert np.abs(np.array(old - new)).max() > 0.1


def test_rotation_and_computing_more_come_closer_to_a_full_prefill(model: Any) -> None:
    edit = edited()
    third = {"recompute": 80, "selection": Selection.DEVIATION}

    def error(**how: Any) -> float:
        got, expected = patched(model, edit, **how)
        return float(np.abs(got - expected).mean())

    assert error(**third) < error() < error(rotate=False)


def test_grouped_queries_in_half_precision(model: Any) -> None:
    half = new_model(dtype=mx.float16)
    edit = edited()
    got, expected = patched(half, edit, recompute=edit.plan().moved)
    np.testing.assert_allclose(got, expected, atol=2e-2)


def put_in_place(model: Any, edit: Edit) -> ScatteredPrefill:
    """Return the engine's state before it computes after the first moved span."""
    engine = Engine(model, Scripted([]))
    engine.replay(Prompt.of(edit.before), np.empty(0, np.int32))
    spans = edit.spans[1:]
    cache = make_prompt_cache(model)
    model(mx.array(edit.after[: spans[0].target])[None], cache=cache)
    rope = Rope(model)
    engine.store.scatter(spans, cache, len(edit.after), rope.move)
    return ScatteredPrefill.of(edit.plan(), edit.after, cache, rope)


def test_deviation_picks_the_keys_that_differ_from_a_full_prefill(model: Any) -> None:
    edit = edited()
    scattered = put_in_place(model, edit)
    placed = scattered.cache[1].state[0]
    fresh = kept(full(model, edit.after)[1][1])[0]
    difference = np.array(((placed - fresh) ** 2).sum(axis=(0, 1, 3)))
    expected = scattered.moved[np.argsort(-difference[scattered.moved])[:25]]
    for chunk in (2048, 31):
        got = select(scattered, Selection.DEVIATION, 25, chunk)
        assert list(got) == sorted(expected)


def test_attention_picks_what_the_last_tokens_look_at(model: Any) -> None:
    scattered = put_in_place(model, edited())
    before = select(scattered, Selection.ATTENTION, 5, 2048)
    unseen = next(int(p) for p in scattered.moved if p not in before)
    for layer in scattered.cache:
        # A long key gets nearly all the attention of the queries it points along.
        keys = layer.state[0]
        keys[..., unseen, :] = 40 * keys[..., unseen, :]
    assert unseen in select(scattered, Selection.ATTENTION, 5, 2048)


def test_random_is_the_same_every_time(model: Any) -> None:
    scattered = put_in_place(model, edited())
    first, second = (select(scattered, Selection.RANDOM, 9, 64) for _ in range(2))
    assert list(first) == list(second)
    assert len(set(first)) == 9
    assert set(first) <= set(scattered.moved)


@pytest.mark.parametrize("stop_after", range(1, 9))
def test_an_abandoned_prefill_commits_what_has_no_hole(
    model: Any, stop_after: int
) -> None:
    edit = edited()
    strategy = Scripted([edit.plan(recompute=60, selection=Selection.RANDOM)])
    engine = Engine(model, strategy, chunk=9)
    engine.replay(Prompt.of(edit.before), np.empty(0, np.int32))
    with contextlib.closing(engine.stream(Prompt.of(edit.after))) as stream:
        for _ in range(1 + stop_after):
            next(stream)
    length, plan = strategy.committed[-1]
    assert plan == edit.plan(recompute=60, selection=Selection.RANDOM).head(length)
    assert 40 <= length < len(edit.after)


def test_progress_adds_up_to_the_prompt(model: Any) -> None:
    edit = edited()
    engine = Engine(model, Scripted([edit.plan(recompute=33)]), chunk=16)
    engine.replay(Prompt.of(edit.before), np.empty(0, np.int32))
    seen: list[int] = []
    engine.replay(Prompt.of(edit.after), random_ids(4, 2), seen.append)
    assert sum(seen) == len(edit.after)


def scaled(kind: str) -> dict[str, Any]:
    scaling = {"rope_type": kind, "factor": 4.0, "low_freq_factor": 1.0}
    scaling |= {"original_max_position_embeddings": 1024}
    return {"rope_scaling": scaling}


@pytest.mark.parametrize(
    "make",
    [
        new_model,
        lambda: new_model(dtype=mx.bfloat16),
        lambda: new_model(**scaled("llama3")),
        lambda: new_model(**scaled("linear")),
        lambda: load_model(find_model()),
    ],
    ids=["llama", "bfloat16", "llama3", "linear", "bundled"],
)
def test_serves_models_whose_rotation_composes(make: Callable[[], Any]) -> None:
    Rope(make())


def long_rope() -> Any:
    scaling = {"type": "longrope", "factor": 4.0}
    scaling |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    return new_model(phi3, rope_scaling=scaling, original_max_position_embeddings=1024)


def absolute() -> Any:
    shape: dict[str, Any] = {
        "n_ctx": 512,
        "n_embd": 48,
        "n_head": 6,
        "n_layer": 2,
        "n_positions": 512,
    }
    return new_model(gpt2, **shape, layer_norm_epsilon=1e-5)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            lambda: new_model(**scaled("yarn")),
            r"does not compose \(YarnRoPE, layer 0\)",
        ),
        (long_rope, "SuScaledRoPE"),
        (absolute, "no rotary embeddings"),
    ],
    ids=["yarn", "longrope", "absolute"],
)
def test_refuses_models_that_it_cannot_move(
    make: Callable[[], Any], reason: str
) -> None:
    model = make()
    with pytest.raises(ModelError, match=reason):
        Engine(model, Scripted([]))
    Engine(model, make_strategy("paged"))


def test_a_pass_leaves_the_model_as_it_was() -> None:
    model = new_model()
    before = full(model, random_ids(50, 3))[0]
    ropes = [layer.self_attn.rope for layer in model.layers]
    Rope(model)
    assert [layer.self_attn.rope for layer in model.layers] == ropes
    np.testing.assert_array_equal(full(model, random_ids(50, 3))[0], before)
