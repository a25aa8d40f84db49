"""What a policy learned on one server is what it knows on the next."""

from __future__ import annotations

import json
import logging
import stat
from pathlib import Path

import pytest

from mlxlab import compare
from mlxlab.server.habits import Habits
from mlxlab.server.server import Options, serve
from mlxlab.strategies.eviction import Eviction, make_eviction
from mlxlab.strategies.use import Use
from mlxlab.traces import read_trace
from mlxlab.traces.anonymize.anonymizer import anonymize
from mlxlab.traces.trace import Trace
from tests.support.endpoint import TOKEN, Client, ask, words

_STRATEGY = "paged:capacity=600KiB,block=16,evict=residual"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def talk(path: Path | None, turns: int, token: str = TOKEN) -> None:
    """Let two sessions talk to a server in turn, and stop it."""
    with serve(None, _STRATEGY, options=Options(token=token)) as server:
        server.record(path)
        with Client(server.url, token) as client:
            for turn in range(turns):
                for own in ("aa", "bb"):
                    session = {"user_id": f'{{"session_id": "{own}"}}'}
                    text = words(40 + 30 * turn, 1000 * (own == "bb"))
                    client.ask(ask(text, metadata=session))


def files(home: Path) -> list[Path]:
    return sorted(home.glob("mlxlab/habits/*.json"))


def learned(trace: Trace) -> list[bool]:
    """Return by request whether its answer says what had been learned."""
    answers = [exchange.response for exchange in trace.inference]
    return [bool(own and own.told and own.told.learned) for own in answers]


def test_the_next_server_goes_on(home: Path, tmp_path: Path) -> None:
    talk(tmp_path / "first.jsonl", 4)
    assert learned(read_trace(tmp_path / "first.jsonl")) == [False] * 8
    (file,) = files(home)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    before = json.loads(file.read_text())
    # Two sessions, four turns each: three gaps were learned of each, behind priors.
    fresh = make_eviction("residual").learned()
    assert len(before[""]) == min(len(fresh[""]) + 6, 500)

    path = tmp_path / "second.jsonl"
    talk(path, 6)
    trace = read_trace(path)
    assert learned(trace) == [True] + [False] * 11
    told = trace.inference[0].response
    assert told is not None
    assert told.told is not None
    assert told.told.learned is not None
    kept = {kind: list(gaps) for kind, gaps in told.told.learned["residual"].items()}
    assert kept == before

    # Its recording says all that a simulation needs.
    found = compare(trace, strategies=_STRATEGY, simulate=True, progress=False)
    reported = [
        exchange.response.message["usage"]["cache_read_input_tokens"]
        for exchange in trace.inference
        if exchange.response and exchange.response.message
    ]
    assert found.requests.reused_tokens.to_list() == reported
    # The names of tools stand in it, so it goes where names are replaced.
    assert not any(learned(anonymize(trace, progress=False)))


def test_other_credentials_learn_apart(home: Path) -> None:
    talk(None, 2)
    talk(None, 2, token="another-token-of-another-user")
    assert len(files(home)) == 2


def of(agent: str, t: float) -> Use:
    return Use(agent, t, t + 1, "tool_use", ("Bash",))


def teach(policy: Eviction, gap: float, times: int = 20) -> None:
    for number in range(times):
        policy.begin(of("a", number * (gap + 1)))


@pytest.mark.parametrize("name", ["residual", "ttl"])
def test_what_is_recalled_is_what_was_kept(name: str, tmp_path: Path) -> None:
    policy = make_eviction(name)
    teach(policy, 7)
    habits = Habits(folder=tmp_path / "habits")
    habits.note(policy, "me")
    habits.close()
    again = make_eviction(name)
    recalled = habits.recall(again, "me")
    again.begin(Use("b", 0.0, 1.0, learned=recalled))
    assert again.learned() == policy.learned()
    # Only the first one counts: later gaps are not forgotten for it.
    again.begin(of("b", 5))
    again.begin(Use("b", 9.0, 10.0, learned=recalled))
    assert again.learned() != policy.learned()
    assert habits.recall(make_eviction("lru"), "me") is None
    assert habits.recall(again, "you") is None


def test_it_is_kept_before_the_end(tmp_path: Path) -> None:
    policy = make_eviction("residual")
    habits = Habits(folder=tmp_path / "habits")
    for number in range(64):
        policy.begin(of("a", number))
        habits.note(policy, "me")
    kept = json.loads((tmp_path / "habits/residual-me.json").read_text())
    assert kept == policy.learned()


@pytest.mark.parametrize(
    "content", ["", "[1]", '{"": [-1]}', '{"": ["x"]}', '{"": [NaN]}', "\x00"]
)
def test_a_damaged_file_is_not_used(
    content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "habits"
    folder.mkdir(mode=0o700)
    file = folder / "residual-me.json"
    file.write_text(content)
    file.chmod(0o600)
    with caplog.at_level(logging.WARNING):
        assert Habits(folder=folder).recall(make_eviction("residual"), "me") is None
    (record,) = caplog.records
    assert str(file) in record.getMessage()
    assert "\n" not in record.getMessage()


def test_a_folder_that_cannot_be_written_is_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "habits").write_text("a file")
    habits = Habits(folder=tmp_path / "habits")
    policies = [make_eviction("residual") for _ in range(2)]
    for policy in policies:
        habits.note(policy, "me")
    with caplog.at_level(logging.WARNING):
        habits.close()
    assert len(caplog.records) == 1
