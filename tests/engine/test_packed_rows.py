"""Packed rows come back in their shape and type, within a step of the packing."""

import mlx.core as mx
import pytest

from mlxlab.engine import Engine, load_model
from mlxlab.engine.layer_caches import TokenRows
from mlxlab.engine.layout import measure_layout
from mlxlab.engine.packed_rows import (
    PackedRows,
    StoredRows,
    pack,
    pack_rest,
    unpack,
)
from mlxlab.engine.working_cache import WorkingCache
from mlxlab.models.folder import find_model
from mlxlab.models.kv_bits import KVBits
from mlxlab.prompt import Prompt
from mlxlab.strategies import make_strategy

HEADS, TOKENS, WIDTH = 4, 50, 16


def rows(dtype: mx.Dtype = mx.float32, values: int = WIDTH) -> TokenRows:
    keys = mx.random.normal((1, HEADS, TOKENS, WIDTH), key=mx.random.key(0))
    other = mx.random.normal((1, HEADS, TOKENS, values), key=mx.random.key(1))
    return TokenRows(keys.astype(dtype), other.astype(dtype))


def nbytes(stored: StoredRows) -> int:
    return sum(array.nbytes for array in stored.arrays())


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("bits", [8, 4])
def test_what_comes_back_is_near(dtype: mx.Dtype, bits: int) -> None:
    before = rows(dtype)
    after = unpack(pack(before, KVBits(bits, bits)))
    for a, b in ((before.keys, after.keys), (before.values, after.values)):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        # A group is a token here. mlx puts its end on a step, so that a whole step may
        # be lost; the type that it comes back in rounds once more.
        flat = a.astype(mx.float32).swapaxes(1, 2).reshape(TOKENS, -1)
        step = (flat.max(axis=1) - flat.min(axis=1)) / (2**bits - 1)
        lost = mx.abs(a - b).astype(mx.float32).swapaxes(1, 2).reshape(TOKENS, -1)
        rounding = {mx.float32: 1e-5, mx.float16: 1e-2, mx.bfloat16: 5e-2}[dtype]
        assert mx.all(lost.max(axis=1) <= step + rounding)
        assert lost.max() > 0


def test_keys_and_values_apart() -> None:
    before = rows()
    after = unpack(pack(before, KVBits(16, 4)))
    assert mx.array_equal(after.keys, before.keys)
    assert not mx.array_equal(after.values, before.values)


def test_nothing_is_unpacked_at_16_bits() -> None:
    before = rows()
    assert unpack(before) is before


def test_latents_without_values() -> None:
    before = rows(values=0)
    after = unpack(pack(before, KVBits(8, 8)))
    assert after.values.shape == before.values.shape


def test_parts_are_those_of_the_whole() -> None:
    packed = pack(rows(), KVBits(8, 4))
    assert isinstance(packed, PackedRows)
    whole, part = unpack(packed), unpack(packed.part(7, 31).copy())
    assert mx.array_equal(part.keys, whole.keys[..., 7:31, :])
    assert mx.array_equal(part.values, whole.values[..., 7:31, :])


def test_what_is_packed_stays_as_it_is() -> None:
    bits, source = KVBits(8, 4), rows(mx.bfloat16)
    whole = pack(source, bits)
    known = [(5, whole.part(5, 20)), (20, whole.part(20, 25)), (30, whole.part(30, 50))]
    found = pack_rest(source, known, 8, 40, bits)
    assert found.positions == 32
    for a, b in zip(found.arrays(), whole.part(8, 40).arrays(), strict=True):
        assert mx.array_equal(a, b)
    # Known rows win: those that are computed from them are not packed anew.
    other = TokenRows(mx.zeros_like(source.keys), mx.zeros_like(source.values))
    kept = unpack(pack_rest(other, known, 8, 40, bits))
    assert mx.array_equal(kept.keys[..., :17, :], unpack(whole).keys[..., 8:25, :])
    assert not kept.keys[..., 17:22, :].any()


@pytest.mark.parametrize("strategy", ["prefix", "block-hash", "static-prefix", "paged"])
def test_turns_do_not_drift(strategy: str) -> None:
    """A conversation stores its head again and again, in some strategies."""
    model = load_model(find_model())
    layout = measure_layout(model)
    given = {"minimum": 1, "block": 16} if strategy == "block-hash" else {}
    made = make_strategy(strategy, layout=layout, kv=8, **given)
    engine = Engine(model, made)
    heads = []
    for turn in range(1, 8):
        prompt = Prompt.of([i % 60 for i in range(200 * turn)])
        engine.replay(prompt, prompt.tokens[:0])
        plan = made.plan(prompt)
        caches = WorkingCache.of(model)
        engine.store.restore(plan.spans, caches)
        row = caches.rows()[1]
        assert row is not None
        heads.append(row.part(0, 128))
    for head in heads[1:]:
        assert mx.array_equal(head.keys, heads[0].keys)
        assert mx.array_equal(head.values, heads[0].values)


@pytest.mark.parametrize("text", ["16", "8", "4", "k8v4", "k16v8"])
@pytest.mark.parametrize("group", [32, 64])
def test_a_store_holds_what_the_layout_says(text: str, group: int) -> None:
    model = load_model(find_model())
    layout = measure_layout(model)
    strategy = make_strategy("paged", layout=layout, kv=text, kv_group=group)
    engine = Engine(model, strategy)
    prompt = Prompt.of([i % 60 for i in range(1000)])
    engine.replay(prompt, prompt.tokens[:0])
    assert strategy.stored_tokens >= 896
    assert engine.store.nbytes == strategy.stored_bytes
    assert strategy.stored_bytes == strategy.stored_tokens * strategy.token_bytes


def test_memory_is_what_the_store_says() -> None:
    model = load_model(find_model())
    layout = measure_layout(model)
    prompt = Prompt.of([i % 60 for i in range(4096)])
    taken = {}
    for text in ("16", "8"):
        engine = Engine(model, make_strategy("paged", layout=layout, kv=text))
        mx.clear_cache()
        before = mx.get_active_memory()
        engine.replay(prompt, prompt.tokens[:0])
        mx.clear_cache()
        taken[text] = mx.get_active_memory() - before
        assert taken[text] == pytest.approx(engine.store.nbytes, rel=0.05)
    # The bundled model computes in 32 bits.
    assert taken["8"] / taken["16"] == pytest.approx(1 / 4 + 2 / 64, rel=0.05)
