"""Rows of the live view as text, in a terminal and in a saved notebook."""

from __future__ import annotations

from collections.abc import Mapping
from io import StringIO

import pytest
from rich.console import Console

from mlxlab.server.event_log import Event, Stage
from mlxlab.server.live.html import list_rows
from mlxlab.server.live.pieces import Span, make_pieces
from mlxlab.server.live.rows import Row
from mlxlab.server.live.terminal import draw_open
from mlxlab.server.live.text import describe_row, draw_strip

NOW = 1000.0
SPANS = [("system", 40, 40), ("tools", 40, 20), ("user", 20, 0)]
PLANNED = {"prompt_tokens": 100, "reused_tokens": 60, "spans": SPANS}


def make_row(number: int, *steps: tuple[Stage, Mapping[str, object]]) -> Row:
    row = Row(number, NOW - 9)
    for stage, facts in steps:
        row.take(Event(1, NOW - 2.7, number, stage, facts), 1)
    return row


OPEN = [
    make_row(40, (Stage.PLANNED, PLANNED), (Stage.PROGRESS, {"done_tokens": 80})),
    make_row(41, (Stage.QUEUED, {"prompt_tokens": 50, "behind": 40})),
    make_row(42, (Stage.ARRIVED, {"agent": "explore"})),
    make_row(43, (Stage.PLANNED, PLANNED), (Stage.FIRST_TOKEN, {})),
]
LOST = {"cause": "evicted by #38", "kind": "evicted", "lost_tokens": 30}
ENDED = make_row(
    39,
    (Stage.PLANNED, PLANNED),
    (Stage.ENDED, {"ttft_s": 5.94}),
    (Stage.EXPLAINED, LOST),
)


@pytest.mark.parametrize(
    ("row", "texts"),
    [
        (OPEN[0], ("#40 main", "60 %", "40 new", "80 % done")),
        (OPEN[1], ("#41 main", "", "", "queued 2.7 s behind #40")),
        (OPEN[2], ("#42 explore", "", "", "rendering 2.7 s")),
        (OPEN[3], ("#43 main", "60 %", "40 new", "answers 2.7 s")),
        (ENDED, ("#39 main", "60 %", "40 new", "5.9 s  evicted by #38")),
    ],
)
def test_a_row_says_what_is_known(row: Row, texts: tuple[str, ...]) -> None:
    assert describe_row(row, NOW) == texts


def test_nearly_all_is_not_all() -> None:
    facts = {"prompt_tokens": 100_000, "reused_tokens": 99_999}
    assert describe_row(make_row(1, (Stage.PLANNED, facts)), NOW)[1] == "99 %"


def test_a_strip_has_a_character_for_each_share_of_tokens() -> None:
    pieces = make_pieces([Span(*span) for span in SPANS], 80, is_broken=True)
    strip = "".join(text for _, text in draw_strip(pieces, 20))
    assert strip == "░system░░░░░▼▓▓▓▓▒▒▒▒"
    assert "".join(text for _, text in draw_strip(pieces, 0)) == "▼"
    assert list(draw_strip([], 9)) == []


def test_a_terminal_shows_open_requests_over_the_totals() -> None:
    totals = {"running": 2, "queued": 2, "requests": 9, "ttft_p50_s": 0.4}
    totals |= {"ttft_p95_s": 6.1, "prompt_tokens": 100, "reused_tokens": 92}
    odd = make_row(44, (Stage.ARRIVED, {"agent": "\x1b[2J[red]"}))
    console = Console(width=100, file=StringIO())
    with console.capture() as captured:
        console.print(draw_open([ENDED, *OPEN, odd], totals, 100, NOW))
    lines = [line.rstrip() for line in captured.get().splitlines()]
    assert lines[0].split() == ["#40", "main", *lines[0].split()[2:]]
    assert lines[0].endswith("60 %  40 new  80 % done")
    assert "#39" not in captured.get()
    assert "\x1b[2J" not in captured.get()
    assert r"#44 \x1b[2J[red]" in lines[4]
    assert lines[-1] == "92 % reused · TTFT p50 0.4 p95 6.1 s · 2 running, 2 queued"
    assert all(len(line) <= 100 for line in lines)


def test_a_table_of_rows_reads_without_style() -> None:
    odd = make_row(44, (Stage.ARRIVED, {"agent": "<b>"}))
    table = list_rows([ENDED, odd], NOW)
    assert "#39 main" in table
    assert "▼" in table
    assert "evicted by #38" in table
    assert "&lt;b&gt;" in table
    assert list_rows([], NOW) == ""
