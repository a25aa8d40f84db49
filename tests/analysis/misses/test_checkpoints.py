"""Tokens behind the last checkpoint: their cause, and the setting that saves them."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxlab.analysis.misses.attribution import (
    CauseSpan,
    RequestAttribution,
    attribute,
)
from mlxlab.analysis.misses.causes import BY_STRATEGY, Cause, remedy_of
from mlxlab.analysis.misses.run import misses
from mlxlab.models.layout import CacheLayout
from mlxlab.prompt import Prompt, Role, Segment
from mlxlab.replay.requests import RenderedRequest
from mlxlab.strategies import STRATEGIES, Limit, Strategy, parse_strategy
from mlxlab.traces.hashed.weka import Weka
from tests.analysis.misses.test_attribution import (
    FEWER,
    check_books,
    rendered,
    sessions,
    words,
)
from tests.strategies.test_contract import RESUMED, TOKEN_BYTES
from tests.support.hashes import write_weka
from tests.support.ledger import Request
from tests.support.traffic import traffic

LAYOUT = CacheLayout.plain(1, 40)
QUIET: dict[str, Any] = {"progress": False}
LAST = np.array([9], np.int32)


def cut_anywhere(policy: type[Strategy]) -> Strategy:
    """The same small strategy, for a model without checkpoints."""
    given = dict(policy.example.parameters)
    if block := policy.limits.get(Limit.BLOCK):
        given[block] = 1
    return policy(token_bytes=TOKEN_BYTES, **given)


@pytest.mark.parametrize("name", RESUMED)
def test_causes_add_up_and_say_what_a_model_without_checkpoints_would_reuse(
    name: str,
) -> None:
    seen: Counter[Cause | None] = Counter()
    row = RESUMED[name]

    @FEWER
    @given(requests=traffic(), sessions=sessions)
    def check(requests: list[Request], sessions: list[int]) -> None:
        asked = rendered(requests, sessions)
        replayed, twin = row.make(), cut_anywhere(row.policy)
        for attribution in attribute(asked, row.make(), words):
            check_books(attribution)
            request = attribution.request
            plan = replayed.plan(request.prompt)
            replayed.commit(request.computed, plan)
            assert attribution.plan == plan
            free = twin.plan(request.prompt)
            twin.commit(request.computed, free)
            for part in attribution.parts:
                seen[part.cause] += len(part)
                by_prompt = part.cause not in {*BY_STRATEGY, Cause.LAST, None}
                assert by_prompt == (part.start >= attribution.known)
                if part.cause is Cause.NO_CHECKPOINT:
                    assert part.stop <= max(free.reused, plan.best_match)
                elif plan.reused <= part.start < free.reused:
                    assert part.cause is Cause.EVICTED
                assert part.cause is not Cause.BLOCK

    check()
    if name != "none-resumed":
        assert seen[Cause.NO_CHECKPOINT]
        assert seen[Cause.EVICTED]
    assert bool(seen[Cause.MINIMUM]) == (name == "block-hash-resumed")


def conversation(*lengths: int, seed: int = 0) -> Prompt:
    """A prompt of messages of these lengths, the user's and tool results in turn."""
    ids = np.arange(sum(lengths), dtype=np.int32) + 1000
    edges = np.cumsum([0, *lengths]).tolist()
    roles = [Role.SYSTEM, *[Role.USER, Role.TOOL_RESULT] * len(lengths)]
    segments = [
        Segment(f"messages[{n}]" if n else "system[0]", roles[n], start, stop)
        for n, (start, stop) in enumerate(pairwise(edges))
    ]
    return Prompt(ids, tuple(segments))


def diverging(prompt: Prompt, at: int, by: int) -> Prompt:
    """The same prompt with other tokens from a position on."""
    tokens = prompt.tokens.copy()
    tokens[at:] += by
    return Prompt(tokens, prompt.segments)


def requests(*prompts: Prompt) -> list[RenderedRequest]:
    return [RenderedRequest("a", n, p, LAST) for n, p in enumerate(prompts)]


def last_of(strategy: Strategy, *prompts: Prompt) -> RequestAttribution:
    *_, attribution = attribute(requests(*prompts), strategy, words)
    return attribution


def behind(attribution: RequestAttribution) -> list[CauseSpan]:
    return [p for p in attribution.parts if p.cause is Cause.NO_CHECKPOINT]


def made(checkpoints: str, **given: int) -> Strategy:
    text = "".join(f",{key}={value}" for key, value in given.items())
    return parse_strategy(f"paged:checkpoints={checkpoints}{text}", layout=LAYOUT)


TALK = conversation(1000, 100, 1500, 100, 1500)


@pytest.mark.parametrize(
    ("kept", "at", "start", "word"),
    [
        ("answer", 1050, 0, "system"),
        ("system+answer", 2700, 1000, "users"),
        ("system+users+answer", 2650, 1100, "messages"),
        ("system+users+answer", 2200, 1100, "every512"),
        ("every2048+answer", 3000, 2048, "users"),
    ],
)
def test_the_placement_that_would_have_saved_them_is_named(
    kept: str, at: int, start: int, word: str
) -> None:
    strategy = made(kept)
    found = last_of(strategy, TALK, diverging(TALK, at, 5000))
    assert found.plan.reused == start
    assert next((p.start, p.nearer) for p in behind(found)) == (start, word)
    assert sum(map(len, behind(found))) == at - start
    assert remedy_of(Cause.NO_CHECKPOINT, strategy, (), nearer=word) == (
        f"add {word} to checkpoints"
    )
    # The setting does save them.
    mended = last_of(made(f"{kept}+{word}"), TALK, diverging(TALK, at, 5000))
    assert mended.plan.reused > start
    assert sum(map(len, behind(mended))) < (at - start) / 2 + 400


def test_a_third_prompt_names_the_branch_that_two_have_shown() -> None:
    one, two, three = (diverging(TALK, 2000, by) for by in (0, 5000, 9000))
    found = last_of(made("system+answer"), one, two, three)
    assert {p.nearer for p in behind(found)} == {"branches"}
    mended = last_of(made("system+answer+branches"), one, two, three)
    assert (mended.plan.reused, behind(mended)) == (2000, [])


def test_a_checkpoint_that_went_needs_room_and_no_other_place() -> None:
    """Five checkpoints fit, and other prompts have taken more since."""
    strategy = made("system+users+answer", capacity=20_000, share=1)
    assert strategy.capacity * 1 // 100 // LAYOUT.checkpoint_bytes() == 5
    others = [diverging(TALK, 1000, by * 9000) for by in range(1, 6)]
    found = last_of(strategy, TALK, *others, diverging(TALK, 2790, 90_000))
    own = strategy.parameters["checkpoints"]
    gone = [part for part in behind(found) if part.nearer == own]
    assert gone, "the place was in force, the checkpoint is gone"
    assert any(part.evictor is not None for part in gone)
    assert remedy_of(Cause.NO_CHECKPOINT, strategy, (), nearer=str(own)) == (
        "a larger share"
    )


def test_a_strategy_with_places_of_its_own_names_another() -> None:
    pytest.importorskip("mlx_lm")
    strategy = parse_strategy("mlx-lm", layout=LAYOUT)
    found = last_of(strategy, TALK, diverging(TALK, 2690, 5000))
    assert {p.nearer for p in behind(found)} == {"messages"}
    says = remedy_of(Cause.NO_CHECKPOINT, strategy, (), nearer="messages")
    assert says == "paged:checkpoints=messages"


@pytest.mark.parametrize(
    "name", [n for n, s in STRATEGIES.items() if s.exact and n != "none"]
)
def test_the_report_adds_up_on_recorded_traffic(name: str) -> None:
    found = misses("loop", name, layout="24KiB+74MiB", **QUIET)
    tokens = found.causes.groupby("request").tokens.sum()
    missed = found.requests.set_index("request").missed_tokens
    assert tokens.to_dict() == missed[missed > 0].to_dict()
    assert "block granularity" not in set(found.causes.cause)
    own = found.causes[found.causes.cause == "no checkpoint here"]
    assert len(own)
    assert set(own.kind) == {"granularity"}
    assert (own.remedy != "").all()


def test_no_cause_changes_where_a_model_can_be_cut_anywhere() -> None:
    plain = misses("loop", "paged", layout="24KiB", **QUIET)
    assert "no checkpoint here" not in set(plain.causes.cause)
    assert (plain.causes.remedy != "").all()


@given(st.data())
@FEWER
def test_a_place_below_the_minimum_is_no_remedy(data: st.DataObject) -> None:
    at = data.draw(st.integers(1100, 2000))
    strategy = parse_strategy(
        "block-hash:checkpoints=answer,minimum=1050", layout=LAYOUT
    )
    found = last_of(strategy, TALK, diverging(TALK, at, 5000))
    assert {p.nearer for p in behind(found)} <= {"users", "messages", "every512", ""}


def test_hashed_traces_name_places_too(tmp_path: Path) -> None:
    trace = Weka().open(write_weka(tmp_path / "w.json"))
    found = misses(trace, "paged:checkpoints=every4096", layout="1KiB+16KiB", **QUIET)
    tokens = found.causes.groupby(["session", "request"]).tokens.sum()
    missed = found.requests.set_index(["session", "request"]).missed_tokens
    assert tokens.to_dict() == missed[missed > 0].to_dict()
    lost = found.causes[found.causes.cause == "no checkpoint here"]
    assert set(lost.remedy) <= {
        *("add answer to checkpoints", "add prompt to checkpoints"),
        "add system to checkpoints",
        *("add branches to checkpoints", "add every512 to checkpoints"),
        "nothing: no placement puts one nearer",
    }
    assert len(lost)
