"""Explanations come after answers, and are those of a replay of the same requests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mlxlab import compare, misses
from mlxlab.engine import Stored
from mlxlab.errors import StrategyError
from mlxlab.limits import EXPLAINED_SEQUENCES
from mlxlab.models.folder import find_model
from mlxlab.prompt import Prompt, Role, Segment
from mlxlab.server.event_log import Asker, EventLog, Stage
from mlxlab.server.explainer import _NOTE, Asked, Explainer
from mlxlab.server.lanes import Setting
from mlxlab.server.metrics import Metrics, Served
from mlxlab.server.server import Options, Server
from mlxlab.server.side_requests import SideRequests
from mlxlab.strategies import Commit, Plan
from mlxlab.strategies.use import Use
from tests.server.test_order import traffic
from tests.support.architectures import save_architecture
from tests.support.endpoint import Client, ask, served, until, words
from tests.support.hybrids import HYBRIDS

SMALL = "paged:capacity=2MiB"
TURN = "What is two and two?"
SECRET = "sk-ant-api03-" + "Zq7Rk2Vw9Xp4Lm8Nt3Ys6" * 3


def body(system: str, *texts: str, session: str = "aaaaaaaa") -> dict[str, Any]:
    messages = [
        {"role": "user" if i % 2 == 0 else "assistant", "content": text}
        for i, text in enumerate(texts)
    ]
    user = {"user_id": f'{{"session_id": "{session}"}}'}
    return ask(system=system, messages=messages, metadata=user)


def talk(client: Client) -> None:
    """A session that grows, changes its system text, and is evicted by two others."""
    system = words(150)
    client.ask(body(system, TURN))
    client.ask(body(system, TURN, "Four.", "And three?"))
    client.ask(body(f"{SECRET} {system}", TURN, "Four.", "And three?"))
    client.ask(body(words(300, 5000), TURN, session="bbbbbbbb"))
    client.ask(body(words(300, 7000), TURN, session="cccccccc"))
    client.ask(body(system, TURN, "Four.", "And three?"))


def explained(server: Server) -> dict[int, dict[str, Any]]:
    """Return the facts of all explanations, by request."""
    until(lambda: bool(server.requests.cause.all()))
    events = server.events.since()
    return {e.request: dict(e.facts) for e in events if e.stage is Stage.EXPLAINED}


def simulated(trace: Path, strategies: str) -> pd.DataFrame:
    return compare(
        [str(trace)], strategies, capacity="2MiB", simulate=True, progress=False
    ).requests.set_index(["strategy", "request"])


def test_causes_evictions_and_shadow_are_those_of_a_replay(tmp_path: Path) -> None:
    trace, timeline = tmp_path / "t.jsonl", tmp_path / "timeline.json"
    with served(strategy=SMALL) as server, Client(server.url) as client:
        server.record(trace)
        talk(client)
        facts, rows, status = explained(server), server.requests, server.status()
        events = server.events.since()
        server.timeline(timeline)
        text = client.get("/metrics").text
    replayed = misses(str(trace), progress=False)
    own = rows.set_index("request")
    assert own.lost_tokens.tolist() == replayed.requests.lost_tokens.tolist()
    kinds = [facts[request]["kind"] for request in own.index]
    assert kinds == replayed.requests.cause.tolist()
    assert kinds[2:] == ["system text changed", "new session", "new session", "evicted"]
    # The session's tokens made room for request 4, and no others.
    assert own.cause[6] == facts[6]["cause"] == "evicted by #4"
    assert facts[6]["by"] == 4
    assert facts[6]["remedy"] == "capacity"
    assert 0 < own.lost_s[6] <= own.prefill_s[6]
    gone = [(e.request, dict(e.facts)) for e in events if e.stage is Stage.EVICTED]
    of = [(by, fact["of"]) for by, fact in gone]
    assert (4, 1) in of
    assert (5, 4) in of
    # What others would have reused.
    found = simulated(trace, "prefix,block-hash")
    for spec in ("prefix", "block-hash"):
        counts = [facts[request]["shadow"][spec] for request in own.index]
        assert counts == found.reused_tokens[spec].tolist()
    assert facts[2]["shadow"]["prefix"] > own.reused_tokens[2] > 0
    # Text is shown without secrets, and in the timeline not at all.
    assert "system[0]" in facts[3]["detail"]
    assert SECRET not in str(facts)
    assert "w7 " in facts[3]["detail"]
    assert "w7 " not in timeline.read_text()
    # Totals.
    assert 0 < status.stored <= status.capacity == 2 << 20
    assert (status.on_disk, status.disk) == (0, 0)
    computed = (own.prompt_tokens - own.reused_tokens).sum()
    assert total(text, "mlxlab_missed_tokens_total") == computed
    assert total(text, "mlxlab_lost_seconds_total") == pytest.approx(own.lost_s.sum())
    evicted = sum(fact["tokens"] for _, fact in gone)
    assert total(text, "mlxlab_evicted_tokens_total") == evicted
    assert total(text, "mlxlab_capacity_bytes") == 2 << 20


def total(text: str, name: str) -> float:
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    )


@pytest.mark.slow
def test_requests_that_run_at_once_are_followed_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    with served(strategy=SMALL, chunk=64, shadow=("prefix", "none")) as server:
        server.record(path)
        traffic(server, seed=5)
        planned = {e.request for e in server.events.since() if e.stage is Stage.PLANNED}
        until(lambda: planned <= set(explained_now(server)))
        facts, rows = explained_now(server), server.requests
    asked = rows[rows.request.isin(planned)]
    found = simulated(path, "prefix")
    shadow = [facts[request]["shadow"] for request in asked.request]
    assert all(own["none"] == 0 for own in shadow)
    # The recording counts requests by itself, so they are matched by their sizes.
    assert sorted(
        zip(asked.prompt_tokens, (own["prefix"] for own in shadow), strict=True)
    ) == sorted(zip(found.prompt_tokens, found.reused_tokens, strict=True))
    causes = misses(str(path), progress=False).requests
    lost = sorted(zip(causes.prompt_tokens, causes.lost_tokens, strict=True))
    assert sorted(zip(asked.prompt_tokens, asked.lost_tokens, strict=True)) == lost


@pytest.mark.slow
def test_models_with_checkpoints_are_explained_alike(tmp_path: Path) -> None:
    model, trace = tmp_path / "model", tmp_path / "t.jsonl"
    save_architecture(model, HYBRIDS["qwen3_5"])
    with served(str(model), "paged") as server, Client(server.url) as client:
        server.record(trace)
        talk(client)
        facts, rows = explained(server), server.requests
    replayed = misses(str(trace), model=str(model), progress=False).requests
    kinds = [facts[request]["kind"] for request in rows.request]
    assert kinds == replayed.cause.tolist()
    assert rows.lost_tokens.tolist() == replayed.lost_tokens.tolist()
    assert rows.reused_tokens.sum() > 0


def explained_now(server: Server) -> dict[int, dict[str, Any]]:
    events = server.events.since()
    return {e.request: dict(e.facts) for e in events if e.stage is Stage.EXPLAINED}


def test_what_a_dropped_cache_held_was_not_kept() -> None:
    with served(strategy=SMALL) as server, Client(server.url) as client:
        asked = body(words(150), TURN)
        client.ask(asked)
        assert server._worker.submit(server._pool.release).result()
        client.ask(asked)
        server.configure(strategy="prefix")
        client.ask(asked)
        client.ask(asked)
        causes = [facts["cause"] for facts in explained(server).values()]
    assert causes == ["new session", "not kept", "not kept", "last token"]


def test_both_can_be_turned_off() -> None:
    with served(shadow=()) as server, Client(server.url) as client:
        client.ask(ask())
        assert explained(server)[1]["shadow"] == {}
    with served(explain=False) as server, Client(server.url) as client:
        client.ask(ask())
        until(lambda: len(server.requests) == 1)
        assert server.requests.cause.tolist() == [""]
        assert server._service.explainer is None
    with pytest.raises(StrategyError, match="no strategy 'pagde'"):
        Options(shadow=("pagde",))


class Cache:
    """Stands for an engine."""


class Desk:
    """An explainer, and requests that are planned and stored by hand."""

    def __init__(self, **options: Any) -> None:
        self.log = EventLog()
        self.explainer = Explainer(self.log, Metrics(), (), **options)
        self.engine: Any = Cache()

    def arrive(self) -> int:
        return self.log.arrive(Asker(), "m")

    def answer(self, text: str, credential: str = "own", session: str = "s") -> int:
        """Let a request come and go; return its number."""
        number = self.arrive()
        self.plan(number, text, credential, session)
        self.end(number, text)
        return number

    def plan(
        self, number: int, text: str, credential: str = "own", session: str = "s"
    ) -> None:
        folder = find_model("tiny")
        ids = np.array(folder.encode(text), np.int32)
        segments = (Segment("system[0]", Role.SYSTEM, 0, len(ids)),)
        setting = Setting(folder, SMALL, "all", credential, 2048)
        asked = Asked(number, Prompt(ids, segments), setting, Use(session))
        self.length = len(ids)
        self.explainer.plan(asked, self.engine, Plan(len(ids)))

    def end(self, number: int, text: str) -> None:
        self.explainer.store(number, Stored(self.length, Commit(), Use()), [1, 2])
        self.log.add(number, Stage.ENDED)
        row = Served(0, "default", "tiny", SMALL, self.length, 0, 2, 1, 1, "end_turn")
        row = Served(
            **{key: getattr(row, key) for key in row.__slots__} | {"request": number}
        )
        self.explainer.end(row)

    def facts(self, number: int) -> dict[str, Any]:
        return next(
            (
                dict(e.facts)
                for e in self.log.since()
                if e.request == number and e.stage is Stage.EXPLAINED
            ),
            {},
        )

    def wait(self, number: int) -> dict[str, Any]:
        until(lambda: bool(self.facts(number)))
        return self.facts(number)


@pytest.fixture
def desk(request: pytest.FixtureRequest) -> Callable[..., Desk]:
    def make(**options: Any) -> Desk:
        made = Desk(**options)
        request.addfinalizer(made.explainer.close)
        return made

    return make


def test_nothing_is_explained_before_a_first_token(desk: Callable[..., Desk]) -> None:
    own = desk()
    first = own.answer("one two three")
    own.wait(first)
    waits = own.arrive()
    second = own.answer("one two three four")
    assert not own.log.wait_for_quiet(0.3)
    assert own.facts(second) == {}
    own.log.add(waits, Stage.FIRST_TOKEN)
    assert own.log.wait_for_quiet(0)
    assert own.wait(second)["kind"] == "fresh content"


def test_what_comes_too_fast_is_not_explained_and_that_is_said(
    desk: Callable[..., Desk],
) -> None:
    own = desk(waiting=1500)
    own.wait(own.answer("zero"))
    waits = own.arrive()
    asked = [own.answer(words(60, 100 * i), session=str(i)) for i in range(12)]
    own.log.add(waits, Stage.FIRST_TOKEN)
    kinds = [own.wait(number)["kind"] for number in asked]
    assert "not explained" in kinds
    found = [own.facts(number) for number in asked]
    skipped = [facts for facts in found if facts["kind"] == "not explained"]
    assert all(not facts["lost_tokens"] + facts["lost_s"] for facts in skipped)
    # Later requests are explained again.
    assert own.wait(own.answer("one two three"))["kind"] != "not explained"


def test_many_short_requests_do_not_wait_in_more_memory(
    desk: Callable[..., Desk],
) -> None:
    own = desk(waiting=50 * _NOTE)
    own.arrive()  # nothing is quiet until its first token
    for _ in range(100):
        own.answer("one")
    until(lambda: len(own.explainer._backlog) <= 25)
    assert not own.log.wait_for_quiet(0)


def test_credentials_know_nothing_of_each_other(desk: Callable[..., Desk]) -> None:
    own = desk()
    own.wait(own.answer(f"A red {words(50)}", "one"))
    first = own.engine
    own.engine = Cache()  # a cache of its own, as in a server
    other = own.wait(own.answer(f"A blue {words(50)}", "two"))
    assert (other["cause"], other["by"]) == ("new session", None)
    assert "red" not in other["detail"]
    own.engine = first
    again = own.wait(own.answer(f"A blue {words(50)}", "one"))
    assert "red" in again["detail"]


def test_a_request_without_the_tools_of_its_session_is_aside() -> None:
    take = SideRequests().take

    def side(session: str, *, tools: bool, json: bool = False) -> bool:
        return take("own", session, has_tools=tools, wants_json=json)

    assert not side("a", tools=False)
    assert not side("a", tools=True)
    assert side("a", tools=False)
    assert not take("other", "a", has_tools=False, wants_json=False)
    assert not side("b", tools=False)
    assert side("b", tools=True, json=True)


@pytest.mark.slow
def test_what_is_followed_is_bounded() -> None:
    with served(strategy=SMALL) as server, Client(server.url) as client:
        for number in range(300):
            session = f"{number:08}"
            client.ask(body(words(6, 10 * number), TURN, session=session), max_tokens=1)
        explained(server)
        explainer = server._service.explainer
        assert explainer is not None
        (history,) = explainer._histories.values()
        (lane,) = explainer._lanes.values()
    assert len(history.predecessors._sessions) == EXPLAINED_SEQUENCES
    assert len(lane._attributor.evictions._sequences) == EXPLAINED_SEQUENCES
    assert (explainer._open, explainer._waiting) == ({}, 0)
    assert not explainer._backlog
