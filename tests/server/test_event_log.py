"""Events say what happens to each request, when, and where its time goes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from threading import Thread

import pytest

from mlxlab.server.event_log import Asker, Event, EventLog, Stage
from mlxlab.server.server import Server
from mlxlab.traces import read_trace
from tests.support.endpoint import Client, ask, served, until, words

LEVEL = list(Stage)


def test_the_log_holds_the_latest_events() -> None:
    log = EventLog(kept=4)
    for model in "ab":
        request = log.arrive(Asker("one", "two"), model)
        log.add(request, Stage.QUEUED, prompt_tokens=7)
        log.add(request, Stage.ENDED)
    assert [(e.number, e.request, e.stage) for e in log.since()] == [
        (3, 1, Stage.ENDED),
        (4, 2, Stage.ARRIVED),
        (5, 2, Stage.QUEUED),
        (6, 2, Stage.ENDED),
    ]
    assert log.since(4) == log.since()[-2:]
    assert log.since(6) == log.since(9) == []
    assert log.since()[1].facts == {"session": "one", "agent": "two", "model": "b"}


def test_a_request_waits_for_the_one_in_front() -> None:
    log = EventLog()
    assert log.ahead(full=False) is log.ahead(full=True) is None
    first, second, third = (log.arrive(Asker(), "m") for _ in range(3))
    assert log.ahead(full=False) is None  # none is in the queue yet
    log.add(first, Stage.QUEUED)
    log.add(second, Stage.QUEUED)
    assert log.ahead(full=False) == second
    log.add(second, Stage.PROGRESS)
    log.add(second, Stage.FIRST_TOKEN)
    assert log.ahead(full=False) == first
    log.add(first, Stage.FIRST_TOKEN)
    assert log.ahead(full=False) is None
    assert log.ahead(full=True) == first  # the one that has run for longest
    log.add(first, Stage.EVICTED)
    log.add(first, Stage.ENDED)
    log.add(first, Stage.EXPLAINED)
    assert log.ahead(full=True) == second
    assert not log.wait_for_quiet(0)  # the third is still to be rendered
    log.add(third, Stage.ENDED)
    assert log.wait_for_quiet(0)
    assert not log.wait_for_quiet(0, settled=60)
    assert log.wait_for_quiet(60, settled=0.01)


@pytest.mark.parametrize(
    ("headers", "body", "asker"),
    [
        ({}, {}, Asker("session", "")),
        (
            {
                "x-claude-code-session-id": "0123456789",
                "x-claude-code-agent-id": "abcdefghij",
            },
            {"metadata": {"user_id": '{"session_id": "other"}'}},
            Asker("01234567", "abcdefgh"),
        ),
        (
            {},
            {"metadata": {"user_id": '{"session_id": "0123456789"}'}},
            Asker("01234567"),
        ),
        ({}, {"metadata": [1]}, Asker()),
    ],
)
def test_who_asks_is_what_the_client_says(
    headers: dict[str, str], body: dict[str, object], asker: Asker
) -> None:
    assert Asker.of(headers, body) == asker


def of(server: Server, request: int) -> list[Event]:
    return [e for e in server.events.since() if e.request == request]


def test_a_request_passes_all_stages_in_order() -> None:
    with served(chunk=128) as server, Client(server.url) as client:
        first = ask(words(300), max_tokens=4)
        client.ask(first)
        client.ask(first, stream=True)
        until(lambda: all(server.requests.cause))
        for number, reused in ((1, 0), (2, 1000)):
            events = of(server, number)
            levels = [LEVEL.index(e.stage) for e in events]
            assert levels == sorted(levels)
            # Nothing has to make room here.
            assert {LEVEL[n] for n in levels} == {*Stage} - {Stage.EVICTED}
            assert all(a.t <= b.t for a, b in pairwise(events))
            facts = {e.stage: e.facts for e in events}
            assert facts[Stage.PLANNED]["reused_tokens"] >= reused
            prompt = facts[Stage.QUEUED]["prompt_tokens"]
            assert facts[Stage.PROGRESS]["done_tokens"] == prompt - 1
            assert facts[Stage.ENDED]["outcome"] == "max_tokens"
            assert facts[Stage.ENDED]["request"] == number
        # A chunk is an event, and reused tokens are none of them.
        steps = [sum(e.stage is Stage.PROGRESS for e in of(server, n)) for n in (1, 2)]
        assert steps[0] > 5 > 3 > steps[1]


def test_the_seconds_of_a_request_add_up(tmp_path: Path) -> None:
    with served(chunk=64) as server:
        server.record(tmp_path / "t.jsonl")
        with Client(server.url) as client:
            slow = ask(words(1200), max_tokens=1)
            threads = [Thread(target=client.ask, args=(slow,)) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        rows = server.requests
    total = rows.queue_s + rows.restore_s + rows.prefill_s + rows.decode_s
    assert total.to_numpy() == pytest.approx(rows.total_s.to_numpy(), abs=1e-6)
    assert (rows.prefill_s > 0).any()
    facts = [e.facts for e in server.events.since() if e.stage is Stage.QUEUED]
    assert [own["behind"] for own in facts] == [None, 1]
    # The second waited for the first, and that is not its prefill.
    late = rows.sort_values("reused_tokens").to_dict("records")[-1]
    assert late["queue_s"] + late["restore_s"] > 5 * late["prefill_s"]
    recorded = [
        e.response.timing for e in read_trace(tmp_path / "t.jsonl") if e.response
    ]
    assert sorted(s.queue for s in recorded if s) == sorted(rows.queue_s)


def test_a_request_that_fails_before_the_queue_ends_as_refused() -> None:
    with served() as server, Client(server.url) as client:
        assert client.refusal(ask(words(100_000)))[0] == 400
        stages = [(e.stage, e.facts.get("outcome")) for e in of(server, 1)]
        assert stages == [(Stage.ARRIVED, None), (Stage.ENDED, "refused")]
        assert server.requests.empty


def test_metrics_have_the_parts() -> None:
    with served() as server, Client(server.url) as client:
        client.ask(ask())
        until(lambda: len(server.requests) == 1)
        lines = client.get("/metrics").text.splitlines()
    for part in ("queue", "restore", "prefill", "decode"):
        (line,) = [
            x
            for x in lines
            if x.startswith("mlxlab_part_seconds_count") and f'"{part}"' in x
        ]
        assert line.endswith(" 1.0")
