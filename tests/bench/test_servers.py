from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from rich.table import Table

from bench import loads, peers, servers
from bench.loads import Load
from bench.measurement import Kind
from bench.peers import OURS, mlx_lm_server, our_servers, vllm_mlx_servers
from bench.prompts import Sizes
from bench.servers import Comparison, run
from bench.tables import median_requests, reuse_table, seconds_table
from mlxlab.errors import ServerError
from mlxlab.models.folder import find_model
from mlxlab.traces import bundled_traces
from tests.support.bench_samples import stand_in


def rows() -> pd.DataFrame:
    """Three rounds; ``other`` takes twice as long and tells no tokens."""
    seconds = {
        Kind.TURN_1: [[4.0, 9.0, 5.0]],
        Kind.WARM: [[0.1, 0.2, 0.1], [0.3, 0.3, 0.3], [0.2, 0.2, 0.9]],
        Kind.NEW_SESSION: [[1.0, 1.0, 1.0]],
        Kind.SUB_AGENTS: [[0.5, 0.5, 0.5]],
    }
    return pd.DataFrame(
        {
            "server": server,
            "trace": "t",
            "round": number,
            "request": request,
            "kind": kind,
            "ttft_s": ttft_s * (1 if server == OURS else 2),
            "prompt_tokens": 10_000 if server == OURS else None,
            "reused_tokens": 9_000 if server == OURS else None,
        }
        for server in (OURS, "other")
        for kind, requests in seconds.items()
        for request, rounds in enumerate(requests)
        for number, ttft_s in enumerate(rounds)
    )


def cells(table: Table) -> list[list[str]]:
    columns = [list(map(str, column.cells)) for column in table.columns]
    return [list(row) for row in zip(*columns, strict=True)]


def test_seconds_are_medians_over_rounds_then_over_requests() -> None:
    ours, other = cells(seconds_table(median_requests(rows()), OURS))
    assert ours == [OURS, "5.00", "0.20", "0.30", "1.00", "0.50"]
    assert other[1:4] == ["10.00 (2.00)", "0.40 (2.00)", "0.60 (2.00)"]


def test_without_the_other_server_seconds_have_no_ratio() -> None:
    ours, other = cells(seconds_table(median_requests(rows()), "absent"))
    assert ours[1] == "5.00"
    assert other[1] == "10.00"


def test_reuse_is_summed_where_it_is_reported() -> None:
    ours, other = cells(reuse_table(median_requests(rows())))
    assert ours == [
        OURS,
        "9.0 of 10.0",
        "27.0 of 30.0",
        "9.0 of 10.0",
        "9.0 of 10.0",
    ]
    assert other == ["other", "-", "-", "-", "-"]


def test_the_tables_fit_a_terminal() -> None:
    requests = median_requests(rows())
    console = Console(width=80)
    for table in (seconds_table(requests, OURS), reuse_table(requests)):
        assert console.measure(table).maximum <= 80


def test_all_servers_read_one_model_in_equal_chunks() -> None:
    folder = find_model()
    chosen = [*our_servers(folder), mlx_lm_server(folder)]
    assert chosen[0].name == OURS
    assert len({server.name for server in chosen}) == len(chosen)
    for server in chosen:
        assert str(folder.path) in server.command
        assert "2048" in server.command


@pytest.mark.parametrize("known", [True, False])
def test_our_server_keeps_its_cache_on_disk_where_it_can(
    monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    monkeypatch.setattr(peers, "_has_disk", lambda: known)
    ours = next(our_servers(find_model()))
    assert ours.command[-2] != "--disk"
    assert (ours.keeping.command[-2] == "--disk") is known


def test_our_server_does_not_measure_a_known_model_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = find_model()
    assert not next(our_servers(folder)).files
    known = tmp_path / "mlxlab/layouts" / f"{folder.digest}.json"
    known.parent.mkdir(parents=True)
    known.touch()
    place = f".cache/mlxlab/layouts/{folder.digest}.json"
    assert next(our_servers(folder)).files == {place: known}


def test_an_interpreter_without_the_peer_is_named() -> None:
    with pytest.raises(ServerError, match="has no vllm-mlx"):
        list(vllm_mlx_servers(find_model(), sys.executable))


def test_an_interpreter_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="does not run"):
        list(vllm_mlx_servers(find_model(), str(tmp_path / "python")))


def test_a_run_reports_who_took_part_and_who_did_not(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    chosen = [stand_in(name=OURS), stand_in("crash")]
    monkeypatch.setattr(servers, "_servers", lambda *_: (chosen, {"absent": "why"}))
    monkeypatch.setattr(loads, "_IDLE_S", 0.0)
    run(
        find_model(),
        Comparison(
            rounds=1,
            sizes=Sizes(agents=(1, 2), answer=8, long=500),
            target=tmp_path / "report.json",
            picture=tmp_path / "report.svg",
        ),
    )
    printed = capsys.readouterr().out
    assert "left out: absent: why" in printed
    assert "left out: crash: crash ended with code 1" in printed
    report = json.loads((tmp_path / "report.json").read_text())
    assert {row["server"] for row in report["rows"]} == {OURS}
    assert {row["trace"] for row in report["rows"]} <= set(bundled_traces())
    assert set(report["manifest"]["left_out"]) == {"absent", "crash"}
    assert report["manifest"]["chunk"] == 2048
    assert report["manifest"]["sizes"]["agents"] == [1, 2]
    measured = {(f["load"], f["agents"]) for f in report["figures"]}
    assert measured == {
        *((Load.AGENTS, number) for number in (1, 2)),
        (Load.LONG, 3),
        (Load.RESTART, 1),
        (Load.ALL, 1),
    }
    assert {sample["server"] for sample in report["loads"]} == {OURS}
    assert "2 at once" in printed
    assert "<svg" in (tmp_path / "report.svg").read_text()


def test_a_window_too_small_for_the_recorded_turns_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(servers, "_servers", lambda *_: ([stand_in(name=OURS)], {}))
    monkeypatch.setattr(servers, "_WINDOW", 10**9)
    run(find_model(), Comparison(1, ("turns",), target=tmp_path / "report.json"))
    assert "left out: turns: need a window of" in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text())["rows"] == []


def test_a_run_without_ours_compares_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [stand_in("crash", name=OURS)]
    monkeypatch.setattr(servers, "_servers", lambda *_: (chosen, {}))
    with pytest.raises(ServerError, match="cannot find the model"):
        run(find_model(), Comparison(rounds=1))
