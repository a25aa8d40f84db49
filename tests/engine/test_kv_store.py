"""The store keeps the committed positions, and copies them."""

import mlx.core as mx
import pytest
from mlx_lm.models.cache import KVCache

from mlxlab.engine import KVStore
from mlxlab.engine.working_cache import WorkingCache
from mlxlab.errors import IntegrityError
from mlxlab.strategies import Commit, Cut, Put, Span

LAYERS, HEADS, DIM = 2, 3, 4
TOKEN_BYTES = LAYERS * 2 * HEADS * DIM * 4


def filled(tokens: int) -> WorkingCache:
    caches = [KVCache() for _ in range(LAYERS)]
    for i, cache in enumerate(caches):
        shape = (1, HEADS, tokens, DIM)
        cache.update_and_fetch(
            mx.random.normal(shape, key=mx.random.key(i)),
            mx.random.normal(shape, key=mx.random.key(10 + i)),
        )
    return WorkingCache(caches)


def restored(store: KVStore, *spans: Span) -> WorkingCache:
    caches = WorkingCache([KVCache() for _ in range(LAYERS)])
    store.restore(spans, caches)
    return caches


def equal_heads(a: WorkingCache, b: WorkingCache, tokens: int) -> bool:
    """Whether keys and values of the first tokens are the same in every layer."""
    pairs = [
        (x, y)
        for one, other in zip(a.layers, b.layers, strict=True)
        for x, y in zip(one.state[:2], other.state[:2], strict=True)
    ]
    return all(mx.array_equal(x[..., :tokens, :], y[..., :tokens, :]) for x, y in pairs)


def test_restores_parts_of_several_handles_in_order() -> None:
    store, source = KVStore(), filled(20)
    store.apply(Commit(put=(Put(1, 0, 8), Put(2, 8, 20))), source)
    found = restored(store, Span(1, 0, 0, 8), Span(2, 0, 8, 5))
    assert {cache.offset for cache in found.layers} == {13}
    assert equal_heads(found, source, 13)


def test_what_is_restored_can_grow_without_changing_the_store() -> None:
    store, source = KVStore(), filled(300)
    store.apply(Commit(put=(Put(1, 0, 300),)), source)
    for _ in range(2):
        cache = restored(store, Span(1, 0, 0, 300))
        for layer in cache.layers:
            layer.update_and_fetch(*(mx.ones((1, HEADS, 1, DIM)),) * 2)
        assert equal_heads(cache, source, 300)


def test_bytes_are_those_of_the_stored_tokens() -> None:
    store, source = KVStore(), filled(20)
    store.apply(Commit(put=(Put(1, 0, 8), Put(2, 8, 20))), source)
    assert store.nbytes == 20 * TOKEN_BYTES
    store.apply(Commit(drop=(1,)), source)
    assert store.nbytes == 12 * TOKEN_BYTES
    assert len(store) == 1


def test_stored_parts_do_not_keep_the_working_cache_alive() -> None:
    store, source = KVStore(), filled(4096)
    source.evaluate()
    before = mx.get_active_memory()
    store.apply(Commit(put=(Put(1, 0, 16),)), source)
    del source
    assert mx.get_active_memory() <= before - 4000 * TOKEN_BYTES


def test_a_cut_leaves_a_part_and_frees_the_rest() -> None:
    store, source = KVStore(), filled(4096)
    store.apply(Commit(put=(Put(1, 8, 4096),)), source)
    before = mx.get_active_memory()
    store.apply(Commit(cut=(Cut(1, 4, 20),)), source)
    assert store.nbytes == 16 * TOKEN_BYTES
    assert mx.get_active_memory() <= before - 4000 * TOKEN_BYTES
    store.apply(Commit(put=(Put(2, 0, 12),)), source)
    found = restored(store, Span(2, 0, 0, 12), Span(1, 0, 12, 16))
    assert equal_heads(found, source, 28)


@pytest.mark.parametrize(
    "commit",
    [
        Commit(drop=(7,)),
        Commit(cut=(Cut(7, 0, 1),)),
        Commit(cut=(Cut(1, 0, 9),)),
        Commit(cut=(Cut(1, 3, 3),)),
        Commit(put=(Put(1, 0, 4),)),
        Commit(put=(Put(3, 2, 21),)),
    ],
)
def test_refuses_what_does_not_fit_its_books(commit: Commit) -> None:
    store, source = KVStore(), filled(20)
    store.apply(Commit(put=(Put(1, 0, 8),)), source)
    with pytest.raises(IntegrityError, match="store:"):
        store.apply(commit, source)


@pytest.mark.parametrize("span", [Span(9, 0, 0, 4), Span(1, 0, 3, 4)])
def test_refuses_unknown_handles_and_holes(span: Span) -> None:
    store = KVStore()
    store.apply(Commit(put=(Put(1, 0, 8),)), filled(8))
    with pytest.raises(IntegrityError, match="store:"):
        restored(store, span)
