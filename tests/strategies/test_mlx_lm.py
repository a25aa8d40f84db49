from __future__ import annotations

import copy
import sys

import pytest
from hypothesis import given
from mlx_lm.models.cache import KVCache, LRUPromptCache

from mlxlab.errors import IntegrityError, StrategyError
from mlxlab.strategies import Commit, Plan, Put, Span
from mlxlab.strategies.mlx_lm import MlxLmLru, _Entry
from tests.support.ledger import Ledger, Request
from tests.support.traffic import DETERMINISTIC, traffic


def test_reuses_as_much_as_mlx_lm_does_hit_for_hit() -> None:
    @DETERMINISTIC
    @given(requests=traffic())
    def check(requests: list[Request]) -> None:
        strategy, ledger = MlxLmLru(max_size=2), Ledger()
        reference = LRUPromptCache(max_size=2)
        for request in requests:
            cache, rest = reference.fetch_nearest_cache("model", request.ids)
            plan, _ = ledger.exchange(strategy, request)
            assert plan.reused == len(request.ids) - max(len(rest), 1)
            assert (cache is None) == (plan.reused == 0) or len(request.ids) == 1
            sequence = request.ids + request.answer
            layer = KVCache()
            reference.insert_cache("model", sequence, [layer])
            assert len(reference) == len(ledger.held)

    check()


def test_a_fetch_does_not_save_an_entry_from_going_first() -> None:
    strategy, ledger = MlxLmLru(max_size=2), Ledger()
    ledger.exchange(strategy, Request([1, 1, 1]))
    ledger.exchange(strategy, Request([2, 2, 2]))
    plan, commit = ledger.exchange(strategy, Request([1, 1, 3]))
    assert plan.spans == (Span(1, 0, 0, 2),)
    assert commit == Commit(drop=(1,), put=(Put(3, 0, 3),), evicted=1)


def test_a_longer_entry_replaces_its_prefixes() -> None:
    strategy, ledger = MlxLmLru(), Ledger()
    ledger.exchange(strategy, Request([1, 1, 1]))
    _, commit = ledger.exchange(strategy, Request([1, 1, 1, 2]))
    assert commit == Commit(drop=(1,), put=(Put(2, 0, 4),))


def test_an_exact_hit_leaves_one_token_to_compute() -> None:
    strategy, ledger = MlxLmLru(), Ledger()
    ledger.exchange(strategy, Request([1, 2, 3]))
    plan, _ = ledger.exchange(strategy, Request([1, 2, 3]))
    assert plan == Plan(3, (Span(1, 0, 0, 2),), 2)


def test_a_sequence_beyond_the_capacity_is_never_stored() -> None:
    strategy, ledger = MlxLmLru(capacity=10, token_bytes=3), Ledger()
    ledger.exchange(strategy, Request([1, 1]))
    _, commit = ledger.exchange(strategy, Request([2, 2, 2, 2]))
    assert commit == Commit(drop=(1,), evicted=2)


def test_a_copied_entry_is_trimmed_alone_and_keeps_its_handle() -> None:
    entry = _Entry(handle=7, length=9, token_bytes=2, checkpoint_bytes=0)
    other = copy.deepcopy(entry)
    assert other.is_trimmable()
    assert other.trim(4) == 4
    assert (other.handle, other.nbytes, entry.nbytes) == (7, 10, 18)


def test_without_mlx_lm_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "mlx_lm.models.cache", None)
    with pytest.raises(StrategyError, match="mlx-lm: needs the mlx-lm package"):
        MlxLmLru()


def test_integrity_notices_an_entry_that_the_cache_lost() -> None:
    strategy, ledger = MlxLmLru(), Ledger()
    ledger.exchange(strategy, Request([1, 2, 3]))
    strategy._cache.trim_to(n_sequences=0)
    with pytest.raises(IntegrityError, match=r"books hold \[1\], alive are \[\]"):
        strategy.check_integrity()
