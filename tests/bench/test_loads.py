from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench import loads
from bench.loads import Load, Loaded, LoadSample, Part, Refused, Visit, put_on
from bench.processes import Server, running
from bench.prompts import Prompts, Sizes
from mlxlab.models.folder import find_model
from tests.support.bench_samples import stand_in

SIZES = Sizes(agents=(1, 3), answer=20, long=500)


@pytest.fixture(autouse=True)
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loads, "_IDLE_S", 0.0)
    monkeypatch.setattr(loads, "_UNDER_WAY_S", 0.01)


def samples_of(fault: str = "") -> list[LoadSample]:
    prompts = Prompts(find_model(), SIZES)
    samples, failed = put_on([stand_in(fault)], prompts, rounds=1, library=None)
    assert not failed
    return samples


def test_all_parts_of_all_loads_are_measured() -> None:
    samples = samples_of()
    parts = [(s.load, s.agents, s.part) for s in samples if isinstance(s, Loaded)]
    assert parts == [
        (Load.AGENTS, 1, Part.AGENT),
        *3 * [(Load.AGENTS, 3, Part.AGENT)],
        (Load.LONG, 3, Part.RUNNING),
        (Load.LONG, 3, Part.SHORT),
        (Load.LONG, 3, Part.LONG),
        (Load.RESTART, 1, Part.WARM),
        (Load.RESTART, 1, Part.RESTARTED),
        (Load.RESTART, 1, Part.STARTED),
    ]
    for sample in samples:
        if isinstance(sample, Loaded) and sample.part is Part.AGENT:
            tokens = 80 if sample.agents == 1 else 20
            assert sample.answer.generated == len(sample.answer.tokens_s) == tokens


def test_agents_ask_at_once() -> None:
    answers = [
        s.answer for s in samples_of() if isinstance(s, Loaded) and s.agents == 3
    ]
    own = answers[:3]
    assert max(a.sent_s for a in own) < min(a.tokens_s[0] for a in own)


def test_memory_and_the_client_are_watched() -> None:
    (visit,) = [s for s in samples_of() if isinstance(s, Visit)]
    assert visit.peak_bytes > 5_000_000  # an interpreter
    assert visit.samples >= 2
    assert 0 < visit.client < 1


def test_the_start_of_the_process_counts_from_before_the_request() -> None:
    own = {s.part: s.answer for s in samples_of() if isinstance(s, Loaded)}
    assert own[Part.STARTED].tokens_s == own[Part.RESTARTED].tokens_s
    assert own[Part.STARTED].sent_s < own[Part.RESTARTED].sent_s


def test_a_load_that_a_server_refuses_leaves_the_others() -> None:
    samples = samples_of("busy")
    refused = [(s.load, s.agents) for s in samples if isinstance(s, Refused)]
    assert refused == [(Load.AGENTS, 3), (Load.LONG, 3)]
    measured = {(s.load, s.agents) for s in samples if isinstance(s, Loaded)}
    assert (Load.AGENTS, 1) in measured
    assert (Load.RESTART, 1) in measured


def test_a_restart_keeps_the_home_and_uses_the_options_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[tuple[str, Path | None]] = []

    @contextmanager
    def noted(
        server: Server, library: Path | None, *, home: Path | None = None, **others: Any
    ) -> Iterator[httpx.Client]:
        started.append((server.command[-1], home))
        with running(server, library, home=home, **others) as client:
            yield client

    monkeypatch.setattr(loads, "running", noted)
    prompts = Prompts(find_model(), SIZES)
    server = replace(stand_in(), keep=("busy",))
    put_on([server], prompts, rounds=1, library=None)
    (first, _), (before, home), (after, same), *_ = started
    assert first != "busy"
    assert before == after == "busy"
    assert home is not None
    assert home == same


def test_a_server_with_a_disk_answers_a_session_with_and_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[str] = []

    @contextmanager
    def noted(server: Server, *others: Any, **named: Any) -> Iterator[httpx.Client]:
        started.append(server.command[-1])
        with running(server, *others, **named) as client:
            yield client

    monkeypatch.setattr(loads, "running", noted)
    server = replace(stand_in(), keep=("busy",))
    prompts = Prompts(find_model(), SIZES)
    samples, _ = put_on([server], prompts, rounds=2, library=None)
    plain = server.command[-1]
    assert started[3:5] == [plain, "busy"]
    assert started[8:10] == ["busy", plain]
    for part in (Part.WRITING, Part.NOT_WRITING):
        own = [s for s in samples if isinstance(s, Loaded) and s.part is part]
        assert [s.round for s in own] == 7 * [0] + 7 * [1]
        assert {s.answer.generated for s in own} == {SIZES.answer}
        assert {s.load for s in own} == {Load.WRITING}
