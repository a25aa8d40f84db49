"""A server's recording beside its simulation: the same reused tokens, or a row that
shows they are not."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mlxlab.analysis.plots import plot_served
from mlxlab.analysis.served import compare_served
from mlxlab.errors import TraceError
from mlxlab.server.server import Status
from tests.support import wire
from tests.support.endpoint import Client, served
from tests.support.exchanges import small_trace

SESSION: list[dict[str, Any]] = [
    body | {"model": "default", "max_tokens": 2} for body, _ in wire.session(4)
]


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served") / "live.jsonl"


@pytest.fixture(scope="module")
def status(recording: Path) -> Status:
    """Two strategies and two sets of rules in turn, and a request that is refused."""
    with served("tiny", "paged:block=16") as server, Client(server.url) as client:
        server.record(recording)
        for body in SESSION[:2]:
            client.ask(body)
        server.configure(strategy="prefix", rules="none")
        for body in SESSION:
            client.ask(body)
        assert client.post("/v1/messages", json={"model": "default"}).is_error
        return server.status()


def test_each_request_has_its_live_and_its_simulated_reuse(
    status: Status, recording: Path
) -> None:
    table = compare_served(recording)
    live = status.requests
    assert table.prompt_tokens.tolist() == live.prompt_tokens.tolist()
    assert table.reused_live.tolist() == live.reused_tokens.tolist()
    assert table.strategy.tolist() == live.strategy.tolist()
    assert table.rules.tolist() == ["all"] * 2 + ["none"] * 4
    assert table.reused_simulated.tolist() == table.reused_live.tolist()
    reused = table.reused_live.to_numpy() > 0
    assert reused.tolist() == [False, True, False, True, True, True]


def test_a_recording_that_begins_late_shows_the_difference(
    status: Status, recording: Path, tmp_path: Path
) -> None:
    with served("tiny", "prefix") as server, Client(server.url) as client:
        client.ask(SESSION[0])
        server.record(tmp_path / "late.jsonl")
        client.ask(SESSION[1])
    table = compare_served([recording, tmp_path / "late.jsonl"])
    assert table.recording.tolist() == ["live"] * 6 + ["late"]
    assert table.reused_live.iloc[-1] > table.reused_simulated.iloc[-1] == 0


def test_traces_of_other_servers_are_refused() -> None:
    with pytest.raises(TraceError, match="trace small: no request that mlxlab served"):
        compare_served(small_trace())


def widths(axes: Any, patch: int) -> list[float]:
    corners = axes.patches[patch].get_path().vertices.reshape(-1, 5, 2)
    return (corners[:, 1, 0] - corners[:, 0, 0]).round(6).tolist()  # type: ignore[no-any-return]


def test_the_picture_has_what_each_request_reused_computed_and_took(
    status: Status,
) -> None:
    tokens, seconds = status.plot().axes
    rows = status.requests
    for place, own in enumerate((rows[:2], rows[2:])):
        computed = own.prompt_tokens - own.reused_tokens
        assert widths(tokens, 2 * place) == own.reused_tokens.tolist()
        assert widths(tokens, 2 * place + 1) == computed.tolist()
    assert widths(seconds, 0) == pytest.approx(rows.ttft_s.tolist(), abs=1e-6)
    labels = [label.get_text() for label in tokens.get_yticklabels()]
    assert labels[1:3] == ["2 paged:block=16", "3 prefix"]
    assert "s" in seconds.get_xticklabels()[-1].get_text()


def test_a_request_without_a_token_has_no_seconds(status: Status) -> None:
    first = status.requests.assign(ttft_s=None)
    _, seconds = plot_served(first).axes
    assert not seconds.patches


def test_nothing_served_is_an_empty_picture(status: Status) -> None:
    assert plot_served(status.requests[:0]).to_svg().startswith("<svg")


def test_of_many_requests_the_latest_are_drawn_under_their_own_numbers(
    status: Status,
) -> None:
    many = pd.concat([status.requests] * 10, ignore_index=True)
    tokens, _ = plot_served(many).axes
    labels = [label.get_text() for label in tokens.get_yticklabels()]
    assert len(labels) == 40
    assert labels[-1] == "60 prefix"
