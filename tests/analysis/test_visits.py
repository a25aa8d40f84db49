"""Endpoints beside strategies: what they state, what fails, and what is kept."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from mlxlab.analysis.compare import compare
from mlxlab.analysis.comparison import Comparison
from mlxlab.analysis.plots import save_plots
from mlxlab.analysis.result import read_result
from mlxlab.cli import main
from mlxlab.errors import ConfigError, ServerError
from mlxlab.traces import Trace
from mlxlab.traces.writer import write_trace
from tests.support.credential import TOKEN
from tests.support.endpoint import served
from tests.support.exchanges import small_trace, small_traces
from tests.support.fake_server import CHAT, MESSAGES, FakeServer

SERVERS = {
    "both": FakeServer(paths=(MESSAGES, CHAT), pause_s=0.001),
    # One request before the first measured one finds the protocol.
    "chat": FakeServer(paths=(CHAT,), faults={1 + 3: 503, 1 + 5: "drop"}),
    "silent": FakeServer(states_reuse=False),
    "dead": FakeServer(faults=dict.fromkeys(range(1, 11), 500)),
}


@pytest.fixture(scope="module")
def compared() -> Iterator[Comparison]:
    with ExitStack() as stack:
        urls = {
            name: stack.enter_context(server.running()).url
            for name, server in SERVERS.items()
        }
        yield compare(
            small_trace(),
            "paged,mlx-lm",  # whose capacity is beyond 64 bits with a sign
            simulate=True,
            endpoints=[f"{url}={name}" for name, url in urls.items()],
            progress=False,
        )


def test_endpoints_stand_beside_strategies_and_bounds(compared: Comparison) -> None:
    summary = compared.summary()
    assert list(summary.index) == ["paged", "mlx-lm", "both", "chat", "silent", "dead"]
    rows = compared.requests
    own = rows[rows.strategy == "both"]
    assert len(own) == 10
    assert own.unlimited.tolist() == rows[rows.strategy == "paged"].unlimited.tolist()
    assert own.optimal.isna().all()
    assert (own.reused_tokens + own.computed_tokens == own.prompt_tokens).all()
    share = own.reused_tokens.sum() / own.prompt_tokens.sum()
    assert 0.3 < summary.reused["both"] == share < 1
    bound = own.unlimited.sum() / compared.bounds.prompt_tokens.iloc[0]
    assert summary.of_unlimited["both"] == pytest.approx(share / bound)
    assert own[["ttft_s", "total_s"]].notna().all(axis=None)
    assert (own.ttft_s <= own.total_s).all()  # equal if all came at once
    assert (own.itl_s.dropna() > 0).any()
    assert (own.answer_tokens == 16).all()
    assert compared.manifest["endpoints"][0]["protocol"] == MESSAGES
    assert compared.manifest["endpoints"][1]["protocol"] == CHAT


def test_requests_are_sent_as_recorded(compared: Comparison) -> None:
    sent = [body for path, _, body in SERVERS["both"].asked if path == MESSAGES][1:]
    for exchange, body in zip(small_trace().inference, sent, strict=True):
        assert exchange.body is not None
        changed = {"model": "fake-1", "max_tokens": 16, "stream": True}
        assert body == exchange.body | changed
    headers = SERVERS["both"].asked[1][1]
    assert headers["x-claude-code-session-id"] == "aaaaaaaa"


def test_a_failure_is_a_row_and_the_rest_is_measured(compared: Comparison) -> None:
    rows = compared.requests
    own = rows[rows.strategy == "chat"]
    failed = own[own.failure != ""]
    assert failed.failure.iloc[0] == 'refused a request: 503 {"error": "no"}'
    assert "ended before its end" in failed.failure.iloc[1]
    assert failed.total_s.isna().all()
    assert failed.ttft_s.notna().tolist() == [False, True]  # its tokens had begun
    assert compared.summary().failed.dropna().to_dict() == {"chat": 2, "dead": 10}
    shown = repr(compared)
    assert "chat failed at 2 of 10 requests; the first failure: refused a re" in shown
    assert "dead answered no request." in shown


def test_what_is_not_stated_is_said_and_not_counted(compared: Comparison) -> None:
    own = compared.requests[compared.requests.strategy == "silent"]
    assert own.reused_tokens.isna().all()
    assert own.prompt_tokens.notna().all()
    assert "silent does not state what it reused" in repr(compared)
    assert "both does not state" not in repr(compared)


def test_the_result_is_kept_and_drawn_with_endpoints(
    compared: Comparison, tmp_path: Path
) -> None:
    compared.to_json(tmp_path / "found.json")
    assert repr(read_result(tmp_path / "found.json")) == repr(compared)
    hit_rate, *_ = save_plots(compared, tmp_path)
    drawn = hit_rate.read_text()
    assert "both" in drawn
    assert "silent" not in drawn


def test_users_ask_endpoints_at_once_for_the_recorded_length() -> None:
    server = FakeServer(pause_s=0.002)
    with server.running():
        found = compare(
            small_traces("one", "two", "three"),
            "paged",
            simulate=True,
            users=3,
            think_times=0.01,
            endpoints=[f"{server.url}=fake"],
            progress=False,
        )
    own = found.requests[found.requests.strategy == "fake"]
    paged = found.requests[found.requests.strategy == "paged"]
    assert 3 <= server.most_at_once <= 12  # three sessions and a sub-agent each
    assert len(own) == len(paged) == 30
    assert own.request.tolist() == [*range(10)] * 3
    recorded = paged.answer_tokens.clip(lower=1).tolist()
    assert own.answer_tokens.tolist() == recorded
    assert own.session.tolist() == paged.session.tolist()
    assert own.arrived_s.nunique() > 20
    assert found.summary().tokens_per_s["fake"] > 0
    assert found.manifest["think_times"] == 0.01
    assert "from before" not in repr(found)  # two of three first prompts share a prefix


def test_our_own_server_is_an_endpoint_that_needs_no_token() -> None:
    """It counts the same tokens, and reuses all but recorded answers."""
    with served("tiny", "paged") as server:
        found = compare(
            without_thinking(small_trace()),
            "paged",
            simulate=True,
            endpoints=f"{server.url}=served",
            answer_tokens=1,
            progress=False,
        )
    rows = found.requests
    assert not rows.failure.any()
    own, same = (rows[rows.strategy == name] for name in ("served", "paged"))
    assert own.prompt_tokens.tolist() == same.prompt_tokens.tolist()
    computed = own.computed_tokens.sum() - same.computed_tokens.sum()
    assert 0 <= computed <= same.answer_tokens.sum()
    assert TOKEN not in json.dumps(found.to_dict())


def without_thinking(trace: Trace) -> Trace:
    """For one token our server does not think, which changes the prompt."""
    exchanges = (
        replace(own, body={**(own.body or {}), "thinking": {"type": "disabled"}})
        for own in trace.exchanges
    )
    return replace(trace, exchanges=tuple(exchanges))


def test_a_cache_that_was_not_empty_is_noticed() -> None:
    server = FakeServer()
    with server.running():
        for known in (False, True):
            found = compare(
                small_trace(),
                "paged",
                simulate=True,
                endpoints=[f"{server.url}=fake"],
                progress=False,
            )
            assert ("fake had " in repr(found)) is known


@pytest.mark.parametrize(
    ("endpoint", "reason"),
    [
        ("localhost:8080", "not a URL; give http"),
        ("http://127.0.0.1:99999", "not a URL; give http"),
        ("http://me:secret@127.0.0.1:1", "a URL with a password"),
        ("http://127.0.0.1:1=paged", "the name paged is taken"),
    ],
)
def test_an_endpoint_that_is_none_is_refused(endpoint: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        compare("sessions", "paged", simulate=True, endpoints=[endpoint])
    assert "secret" not in str(caught.value)


def test_an_endpoint_that_cannot_be_reached_ends_before_any_work() -> None:
    with pytest.raises(ServerError, match=r"endpoint 127.0.0.1:1: .*; start a server"):
        compare("sessions", simulate=True, endpoints=["http://127.0.0.1:1"])


def test_the_command_takes_its_token_from_a_file_and_prints_none(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trace, token = tmp_path / "small.jsonl", tmp_path / "token"
    write_trace(small_trace(), trace)
    token.touch(0o600)
    token.write_text(TOKEN)
    server = FakeServer(token=TOKEN)
    with server.running():
        line = ["mlxlab", "compare", str(trace), "--simulate", "--strategies", "paged"]
        line += ["--endpoint", f"{server.url}=fake"]
        monkeypatch.setattr("sys.argv", line)
        with pytest.raises(SystemExit) as refused:
            main()
        assert refused.value.code == 2
        error = capsys.readouterr().err
        assert "endpoint fake: 401, it wants another token; give it in" in error
        line += ["--token-file", str(token), "--answer-tokens", "3"]
        with contextlib.suppress(SystemExit):
            main()
    printed = capsys.readouterr().out
    assert "fake" in printed
    assert TOKEN not in printed
    assert {body["max_tokens"] for _, _, body in server.asked[1:]} == {3}
