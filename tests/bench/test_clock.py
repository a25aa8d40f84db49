"""The speed of the simulated clock, on a small trace."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.clock import main
from tests.support.hashes import write_weka


def test_the_speed_is_given_by_strategy_and_users(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_weka(tmp_path / "trace_1.json")
    main(["--speed", str(path)])
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["strategy", "users", "requests", "per_s"]
    assert [row.split()[0] for row in rows] == ["none"] * 3 + ["prefix"] * 3 + [
        "paged"
    ] * 3
    # With more users than traces, the others take copies.
    requests = [int(row.split()[2]) for row in rows]
    assert requests[:3] == [5, 40, 160]
