"""Audits: what a server claims against what was possible, live and from a recording."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlxlab.analysis.audit.auditor import Audited, Auditor
from mlxlab.analysis.audit.result import Audit
from mlxlab.analysis.audit.run import Live, audit, audit_live
from mlxlab.analysis.compare import compare
from mlxlab.analysis.result import read_result
from mlxlab.cli import main
from mlxlab.errors import MlxlabError
from mlxlab.models.folder import find_model
from mlxlab.replay.endpoints.chat_completions import ChatCompletions
from mlxlab.replay.specs import StrategySpec
from mlxlab.traces import Exchange, Trace
from mlxlab.traces.recording.recorder import recording
from tests.support.exchanges import small_trace
from tests.support.fake_server import CHAT, MESSAGES, FakeServer


def claiming(claims: Callable[[int], dict[str, int]]) -> Trace:
    """Return a trace whose answers have a usage, by number."""
    exchanges = []
    for own in small_trace().exchanges:
        assert own.response is not None
        message = {**(own.response.message or {}), "usage": claims(own.id)}
        answer = replace(own.response, message=message)
        exchanges.append(replace(own, response=answer))
    return Trace("claims", tuple(exchanges))


def ask(url: str, exchange: Exchange, path: str) -> None:
    body: dict[str, Any] = {**(exchange.body or {}), "max_tokens": 5, "stream": True}
    if path == CHAT:
        body = ChatCompletions().request(body, "fake-1", 5)
    body["model"] = "fake-1"
    answer = httpx.post(f"{url}{path}", json=body, headers=dict(exchange.headers))
    assert answer.status_code == 200


def audited(path: str, out: Path) -> tuple[list[Audited], Audit]:
    shown: list[Audited] = []
    with FakeServer(paths=(path,)).running() as server:
        with (
            audit_live(out, shown.append) as live,
            recording(out, upstream=server.url, listener=live.take) as proxy,
        ):
            for exchange in small_trace().inference:
                ask(proxy.url, exchange, path)
        return shown, live.result()


@pytest.mark.parametrize("path", [MESSAGES, CHAT])
def test_live_rows_are_those_of_the_recording(path: str, tmp_path: Path) -> None:
    shown, found = audited(path, tmp_path / "out.jsonl")
    assert len(shown) == len(found.requests) == 10
    tokens = found.requests.prompt_tokens[0]
    assert shown[0].line().startswith(f"{shown[0].session} #0: {tokens:,} tokens, ")
    again = audit(str(tmp_path / "out.jsonl"), progress=False)
    assert again.requests.equals(found.requests)
    assert again.causes.equals(found.causes)
    claimed = found.summary().claimed.iloc[0]
    assert 0.5 < claimed < 0.9
    assert f"claims {claimed:.1%} of all prompt tokens" in repr(found)


def test_what_was_possible_is_the_bound_of_the_prompts_as_sent() -> None:
    """Where the server counts as we do, nothing is scaled."""
    plain = compare(
        small_trace(), "paged", rules="none", simulate=True, progress=False
    ).requests
    ruled = compare(small_trace(), "paged", simulate=True, progress=False).requests
    counts = plain.prompt_tokens.tolist()
    trace = claiming(lambda i: {"input_tokens": counts[i]})
    rows = audit(trace, progress=False).requests
    assert rows.prompt_tokens.tolist() == counts
    assert rows.possible_tokens.tolist() == plain.unlimited.tolist()
    shares = ruled.reused_tokens / ruled.prompt_tokens
    assert rows.served_tokens.tolist() == pytest.approx(
        (shares * plain.prompt_tokens).tolist(), abs=0.5
    )
    double = audit(claiming(lambda i: {"input_tokens": 2 * counts[i]}), progress=False)
    assert double.requests.possible_tokens.tolist() == (2 * plain.unlimited).tolist()


def test_lost_tokens_are_those_that_were_possible() -> None:
    def claims(number: int) -> dict[str, int]:
        reused = 10 if number == 9 else 1000
        return {"input_tokens": 1000 - reused, "cache_read_input_tokens": reused}

    found = audit(claiming(claims), progress=False)
    rows = found.requests.set_index("request")
    assert rows.lost_tokens.drop(9).tolist() == [0] * 9
    assert rows.lost_tokens[9] == rows.possible_tokens[9] - 10 > 900
    assert f"{rows.lost_tokens[9]:,} tokens were computed again" in repr(found)


def test_a_changed_header_is_named_with_its_rule() -> None:
    rows = audit(small_trace(), progress=False).requests.set_index("request")
    assert rows.cause[2] == "attribution header"
    assert rows.label[2] == "attribution"
    assert rows.remedy[2] == "rule drop-attribution"
    assert rows.served_tokens[2] > rows.possible_tokens[2]
    assert rows.remedy[0] == ""  # nothing would have saved a first session


def test_what_is_not_stated_is_said_and_drawn(tmp_path: Path) -> None:
    found = audit(small_trace(), progress=False)
    assert found.requests.claimed_tokens.isna().all()
    assert "The server does not state its reuse" in repr(found)
    assert "lost" in found.plot().to_svg()
    found.to_json(tmp_path / "found.json")
    assert repr(read_result(tmp_path / "found.json")) == repr(found)


def test_requests_that_cannot_be_read_are_counted_not_lost() -> None:
    trace = small_trace()
    broken = replace(trace.exchanges[4], body={"model": "m", "messages": 3})
    chat = replace(trace.exchanges[5], path="/v1/chat/completions", body={"x": 1})
    exchanges = (*trace.exchanges[:4], broken, chat, *trace.exchanges[6:])
    found = audit(replace(trace, exchanges=exchanges), progress=False)
    assert len(found.requests) == 8
    assert "not audited; the first: trace small: request 4: messages: " in repr(found)
    assert "(2 times)" in repr(found)
    with pytest.raises(MlxlabError, match=r"none of its requests .* request 4: "):
        audit(Trace("bad", (broken,)), progress=False)


def test_requests_that_overlap_are_audited_as_they_arrived(tmp_path: Path) -> None:
    shown: list[Audited] = []
    exchanges = small_trace().exchanges
    auditor = Auditor("live", find_model(), StrategySpec.parse("paged"))
    live = Live(tmp_path / "none", auditor, shown.append)
    for exchange in (exchanges[1], exchanges[2], exchanges[0], exchanges[4]):
        live.take(exchange)
    live.stop()  # 3 never ended
    assert [row.request for row in shown] == [0, 1, 2, 4]


@pytest.mark.parametrize("count", ["7", -7, True, [1], None])
def test_a_count_that_is_none_is_not_stated(count: Any) -> None:
    usage = {"input_tokens": 100, "cache_read_input_tokens": count}
    assert (
        audit(claiming(lambda _: usage), progress=False)
        .requests.claimed_tokens.isna()
        .all()
    )


@pytest.mark.parametrize("line", ["audit", "audit sessions --upstream http://h"])
def test_the_command_wants_one_source(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["mlxlab", *line.split()])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error == "mlxlab: audit: give either a trace or --upstream URL"


def test_the_command_reads_a_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"mlxlab audit sessions --json {tmp_path}/a.json --plots {tmp_path}"
    monkeypatch.setattr("sys.argv", line.split())
    with contextlib.suppress(SystemExit):
        main()
    printed = capsys.readouterr().out
    assert "audit of sessions: 11 requests" in printed
    assert json.loads((tmp_path / "a.json").read_text())["kind"] == "audit"
    assert (tmp_path / "audit.svg").exists()


def test_the_command_audits_until_ctrl_c(tmp_path: Path) -> None:
    program = "from mlxlab.cli import main; main()"
    with FakeServer().running() as server:
        line = ["audit", "--upstream", server.url, "--out", "out.jsonl"]
        with subprocess.Popen(
            [sys.executable, "-c", program, *line],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        ) as process:
            assert process.stderr is not None
            url = process.stderr.readline().split()[-1]
            process.stderr.readline()
            for exchange in small_trace().inference[:2]:
                ask(url, exchange, MESSAGES)
            live = [process.stderr.readline() for _ in range(2)]
            process.send_signal(signal.SIGINT)
            printed, errors = process.communicate(timeout=60)
    assert live[0].startswith("aaaaaaaa #0: ")
    assert live[1].startswith("aaaaaaaa #1: ")
    assert "audit of out: 2 requests" in printed
    assert "Written: out.jsonl" in printed
    assert process.returncode == 0, errors
