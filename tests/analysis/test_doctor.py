"""The doctor: what it finds, what it says of it, and what it recommends."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import mlxlab as ml
from mlxlab.analysis.doctor.evidence import Evidence, find_evidence
from mlxlab.analysis.misses.causes import CauseKind
from mlxlab.analysis.result import read_result
from mlxlab.cli.screen import STDOUT, Answer, Terminal
from mlxlab.client.discovery import Endpoint, publish
from mlxlab.errors import TraceError
from mlxlab.prompt import Prompt, Tokens
from mlxlab.replay.bounds import PositionIndependent
from mlxlab.replay.requests import RenderedRequest
from mlxlab.traces import Trace, load_trace, write_trace
from mlxlab.traces.recording.latest import note_latest
from mlxlab.traces.schema import Configuration, Timing
from tests.support.exchanges import small_trace
from tests.support.git_status import with_git_status
from tests.support.histories import SessionLog


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder in which nothing was recorded."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME")
    return tmp_path


def record(path: Path, times: int) -> None:
    exchanges = small_trace().exchanges * times
    numbered = [replace(e, id=i, t=1.7e9 + i) for i, e in enumerate(exchanges)]
    write_trace(Trace(path.stem, tuple(numbered)), path)
    note_latest(path)


def requests(found: Evidence) -> list[int]:
    (trace,) = found.traces
    assert isinstance(trace, Trace)
    return [exchange.id for exchange in trace.inference]


def chat(home: Path) -> None:
    log = SessionLog(home / ".claude/projects/p/s.jsonl")
    log.say("user", "hello")
    log.answer("m1", {"type": "text", "text": "hi"})


def test_a_recording_goes_before_history_unless_it_is_small(home: Path) -> None:
    with pytest.raises(TraceError, match=r"no requests found .*no recording") as none:
        find_evidence(progress=False)
    assert "\n" not in str(none.value)
    record(home / "few.jsonl", 1)
    assert find_evidence(progress=False).source == f"recording {home}/few.jsonl"
    chat(home)
    found = find_evidence(progress=False)
    assert found.source == f"history {home}/.claude/projects"
    assert found.days == "2025-10-09"
    record(home / "many.jsonl", 2)
    assert find_evidence(progress=False).source == f"recording {home}/many.jsonl"
    assert find_evidence("sessions", progress=False).source == "sessions"
    imported = find_evidence(home / ".claude/projects", progress=False)
    assert len(requests(imported)) == 1


def test_only_the_newest_requests_are_explained(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlxlab.analysis.doctor.evidence.LIMIT", 25)
    record(home / "many.jsonl", 3)
    found = find_evidence(progress=False)
    assert found.source.endswith("many.jsonl, the newest 25 requests")
    assert requests(found) == list(range(5, 30))


def test_the_running_server_says_what_is_in_use(home: Path) -> None:
    endpoint = Endpoint(
        *("http://127.0.0.1:9", "secret", 100, ("default",)),
        model="tiny",
        strategy="prefix",
        rules="none",
    )
    publish(endpoint)
    found = ml.doctor("sessions", progress=False)
    assert found.manifest["served"] == "tiny"
    assert "today: as the running server, prefix, rules none" in repr(found)
    assert "secret" not in json.dumps(found.to_dict())
    assert found.serve_line.startswith("mlxlab serve --model tiny --strategy ")
    usual = ml.misses("sessions", "prefix@none", users=1, progress=False)
    assert found.requests.reused_tokens.equals(usual.requests.reused_tokens)


def test_shares_and_lines_follow_from_the_counts(home: Path, tmp_path: Path) -> None:
    found = ml.doctor("subagents", memory="256MiB", progress=False)
    rows, causes = found.requests, found.causes
    known = causes[causes.kind != CauseKind.COMPULSORY].tokens.sum()
    assert causes.tokens.sum() == (rows.prompt_tokens - rows.reused_tokens).sum()
    assert found.avoidable == known / causes.tokens.sum()
    assert f"{known:,} of {causes.tokens.sum():,} tokens" in found.verdict
    assert found.requests.reused_after.sum() == found.tuning.best.reused_tokens
    assert found.gain > 0.05
    most = found.tuning.unlimited / rows.prompt_tokens.sum()
    assert f"unlimited memory would reuse {most:.0%}" in repr(found)
    assert "--model NAME" in found.serve_line
    shown = repr(found)
    assert max(map(len, found.lines()[1:])) <= 80  # behind the line to run
    assert "Qwen3-Coder-30B-A3B" in shown
    assert "1,000 prompt tokens a second" in shown
    costly = found.summary()
    assert costly.seconds.is_monotonic_decreasing
    assert not costly.remedy.str.startswith("nothing").any()
    found.to_json(tmp_path / "found.json")
    assert repr(read_result(tmp_path / "found.json")) == shown
    assert "<pre>mlxlab serve" in found._repr_html_()


def test_what_cannot_be_bettered_is_kept(home: Path) -> None:
    best = ml.doctor("resume", progress=False).tuning.best.strategy
    publish(
        Endpoint(
            *("http://127.0.0.1:9", "secret", 100, ("default",)),
            model="tiny",
            strategy=best,
            rules="all",
        )
    )
    found = ml.doctor("resume", model="tiny", layout="96KiB", progress=False)
    assert abs(found.gain) < 0.005
    assert found.lines() == ["Keep what you have: nothing that was tried reuses more."]
    assert "<pre>" not in found._repr_html_()


def test_recorded_answers_decide_speed_and_strategy(home: Path) -> None:
    trace = small_trace()
    timing = Timing(queue=1.0, restore=0.5, prefill=2.0, decode=1.0)
    used = Configuration(strategy="paged:block=32", rules="none")
    usage = {"input_tokens": 30, "cache_creation_input_tokens": 10}
    timed = [
        replace(
            exchange,
            response=replace(
                exchange.response,
                message={**(exchange.response.message or {}), "usage": usage},
                timing=timing,
                configuration=used,
            ),
        )
        for exchange in trace.exchanges
        if exchange.response
    ]
    found = ml.doctor(
        Evidence([replace(trace, exchanges=tuple(timed))], "here"), progress=False
    )
    assert "seconds: 20 prompt tokens a second, as in the recording" in repr(found)
    assert found.strategy == "paged:block=32@none"
    first = found.requests.iloc[0]
    assert first.ttft_s == (first.prompt_tokens - first.reused_tokens) / 20


def test_the_answer_comes_before_the_question(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[str] = []
    answer = Answer("found", then=lambda: asked.append(capsys.readouterr().out))
    Terminal(progress=False).show(answer)
    assert asked == ["found\n"]
    Terminal(progress=False).show(replace(answer, json=STDOUT))
    assert len(asked) == 1


def test_windows_are_found_however_often_some_are_added() -> None:

    bound = PositionIndependent(window=4)
    parts = [np.arange(i * 50, i * 50 + 50, dtype=np.int32) for i in range(20)]
    nothing = np.empty(0, np.int32)

    def reused(*tokens: Tokens) -> int | None:
        prompt = Prompt(np.concatenate(tokens))
        return bound.reused(RenderedRequest("s", 0, prompt, nothing))

    assert [reused(part) for part in parts] == [0] * 20
    assert reused(*reversed(parts)) == 20 * 49  # the last of each was never computed


def test_the_line_to_run_has_the_rule_that_saves_what_today_loses(home: Path) -> None:
    trace = with_git_status(load_trace("sessions"))
    found = ml.doctor(Evidence([trace], "here"), progress=False)
    assert "rule git-status-last" in set(found.summary().remedy)
    assert found.serve_line.endswith("--rules all,git-status-last")
    without = ml.doctor("sessions", progress=False)
    assert "--rules" not in without.serve_line
    assert found.shares[1] == pytest.approx(without.shares[1], abs=0.02)
