"""Pinned prompts stay while others come and go."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from hypothesis import given

from mlxlab.models.layout import CacheLayout
from mlxlab.replay.specs import StrategySpec
from mlxlab.strategies import STRATEGIES, Disk, Limit, Strategy
from tests.support.ledger import Ledger, Request
from tests.support.traffic import DETERMINISTIC, traffic

TOKEN_BYTES = 2
#: These hold one sequence or none, or leave eviction to mlx-lm.
WITHOUT = {"none", "prefix", "mlx-lm"}


def make(name: str, checkpoint_bytes: int = 0, **given: int) -> Strategy:
    policy = STRATEGIES[name]
    parameters = {**policy.example.parameters, **given}
    if checkpoint_bytes:
        parameters.pop(policy.limits.get(Limit.BLOCK, ""), None)
    layout = CacheLayout.plain(TOKEN_BYTES, checkpoint_bytes)
    return StrategySpec(policy, parameters).make(layout)


def rows() -> Iterator[tuple[str, int]]:
    for name, policy in STRATEGIES.items():
        yield name, 0
        if policy.exact:
            yield name, 6


every_model = pytest.mark.parametrize(("name", "checkpoint_bytes"), list(rows()))


def ledger_of(strategy: Strategy) -> Ledger:
    block = type(strategy).limits.get(Limit.BLOCK)
    return Ledger(block=int(strategy.parameters[block]) if block else 1)


@every_model
def test_pinned_traffic_keeps_the_contract(name: str, checkpoint_bytes: int) -> None:
    @DETERMINISTIC
    @given(requests=traffic(pins=True))
    def check(requests: list[Request]) -> None:
        strategy = make(name, checkpoint_bytes)
        ledger = ledger_of(strategy)
        for request in requests:
            ledger.exchange(strategy, request)

    check()


@pytest.mark.parametrize("pinned", [True, False])
@every_model
def test_a_pinned_prompt_stays(name: str, checkpoint_bytes: int, pinned: bool) -> None:
    if name in WITHOUT:
        pytest.skip("pins have no meaning for it")
    strategy = make(name, checkpoint_bytes)
    ledger = ledger_of(strategy)
    begins = list(range(100, 116))
    ledger.exchange(strategy, Request(begins, static=12, pinned=pinned))
    # Other sessions have the system text in common with it.
    later = Request([*begins[:12], 7, 8, 9]).prompt
    assert strategy.preview(later).reused == 12
    for start in range(200, 1000, 50):
        ids = list(range(start, start + 16))
        ledger.exchange(strategy, Request(ids, static=4))
    assert strategy.preview(later).reused == (12 if pinned else 0)
    assert (strategy.pinned_tokens >= 12) == pinned
    strategy.check_integrity()


@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("checkpoint_bytes", [0, 6])
def test_a_pinned_prompt_stays_on_disk(checkpoint_bytes: int, pinned: bool) -> None:
    strategy = make("none", checkpoint_bytes)  # nothing in memory
    strategy.tier = Disk(
        400, TOKEN_BYTES, checkpoint_bytes, segment=4, least=1, overhead=3, index=10
    )
    ledger = ledger_of(strategy)
    begins = list(range(100, 116))
    ledger.exchange(strategy, Request(begins, pinned=pinned))
    later = Request([*begins, 7, 8, 9]).prompt
    assert strategy.preview(later).disk_tokens == 16
    for start in range(200, 1000, 50):
        ledger.exchange(strategy, Request(list(range(start, start + 16))))
    assert strategy.preview(later).disk_tokens == (16 if pinned else 0)
    strategy.check_integrity()


def test_the_oldest_pins_make_room(caplog: pytest.LogCaptureFixture) -> None:
    strategy = make("paged", capacity=160)  # pins may take 40 tokens
    ledger = ledger_of(strategy)
    first, second, third = (list(range(at, at + 16)) for at in (100, 200, 300))
    for ids in (first, second, third):
        ledger.exchange(strategy, Request(ids, pinned=True))
    assert strategy.pinned_tokens == 32
    for start in range(400, 1000, 50):
        ledger.exchange(strategy, Request(list(range(start, start + 16))))
    found = [strategy.preview(Request([*x, 1]).prompt).reused for x in (first, third)]
    assert found == [0, 16]
    with caplog.at_level(logging.WARNING):
        ledger.exchange(strategy, Request(list(range(2000, 2041)), pinned=True))
    assert caplog.messages == [
        "41 tokens are not pinned: pins take 40 at most, half of the capacity"
    ]


def test_a_longer_pin_replaces_what_it_begins_with() -> None:
    strategy = make("paged", capacity=160)
    ledger = ledger_of(strategy)
    for length in (16, 24, 32):
        ledger.exchange(strategy, Request(list(range(100, 100 + length)), pinned=True))
    assert strategy.pinned_tokens == 32
