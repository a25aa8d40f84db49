from __future__ import annotations

import pytest
from rich.console import Console

from bench.figures import figures_of, load_table
from bench.loads import Load, Part, Refused
from bench.peers import OURS, PEER
from bench.pictures import draw
from tests.support.bench_samples import loaded, rounds_under_load

LONG = 4096


def found(pace: float = 1.0) -> dict[tuple[str, str], tuple[float, int]]:
    figures = figures_of(rounds_under_load("s", pace), LONG)
    return {figure.row: (figure.value, figure.n) for figure in figures}


@pytest.mark.parametrize(
    ("load", "measure", "value", "n"),
    [
        ("alone", "decode, tokens/s", 1.0, 2),
        ("alone", "tokens/s in all", 1.0, 2),
        ("alone", "first token, s", 1.0, 2),
        ("alone", "ITL p50, ms", 1000.0, 8),
        # Eight tokens until 8, of which six were seen.
        ("2 at once", "tokens/s in all", 1.0, 2),
        ("2 at once", "first token, s", 2.0, 4),
        ("2 at once", "ITL p50, ms", 2500.0, 8),
        ("2 at once", "ITL p95, ms", 4000.0, 8),
        # From 9 to 19: all gaps that overlap the prefill.
        ("long prefill", "running, tokens/s", 0.3, 6),
        ("long prefill", "running, ITL p95, ms", 6000.0, 6),
        ("long prefill", "running, ITL longest, ms", 6000.0, 6),
        ("long prefill", "short, first token, s", 2.0, 2),
        # The prefill took 8 for two chunks.
        ("long prefill", "short, first token, chunks", 0.5, 2),
        ("long prefill", "long, first token, s", 8.0, 2),
        ("after a restart", "first token, s", 3.0, 2),
        ("after a restart", "first token, warm turns", 1.5, 2),
        ("after a restart", "start to first token, s", 8.0, 2),
        # Medians of three turns: 3 of 2, and 18 of 9.
        ("writing to disk", "first token, times without", 1.5, 2),
        ("writing to disk", "whole answer, times without", 2.0, 2),
        ("all loads", "peak memory, MB", 1000.000001, 14),
    ],
)
def test_a_figure(load: str, measure: str, value: float, n: int) -> None:
    measured, samples = found()[load, measure]
    assert measured == pytest.approx(value)
    assert samples == n


def test_several_agents_have_no_rate_alone() -> None:
    assert ("2 at once", "decode, tokens/s") not in found()


def test_pieces_count_where_a_server_reports_no_tokens() -> None:
    answer = loaded("s", 0, Load.AGENTS, Part.AGENT, [1.0, 2.0, 4.0])
    figures = {f.measure: f.value for f in figures_of([answer], LONG)}
    assert figures["tokens/s in all"] == 0.75
    assert figures["decode, tokens/s"] == pytest.approx(2 / 3)


def test_an_answer_of_one_token_has_no_rate_and_no_gaps() -> None:
    answer = loaded("s", 0, Load.AGENTS, Part.AGENT, [2.0], generated=1)
    figures = {f.measure: f.value for f in figures_of([answer], LONG)}
    assert figures == {"tokens/s in all": 0.5, "first token, s": 2.0}


def lines(width: int = 100) -> list[list[str]]:
    samples = [*rounds_under_load(OURS, 0.5), *rounds_under_load(PEER, 1.0)]
    samples.append(Refused("serial", 0, Load.AGENTS, 2, "one at a time"))
    samples.append(loaded("serial", 0, Load.AGENTS, Part.AGENT, [1.0, 2.0]))
    table = load_table(figures_of(samples, LONG), PEER)
    assert Console(width=width).measure(table).maximum <= width
    columns = [list(map(str, column.cells)) for column in table.columns]
    return [list(row) for row in zip(*columns, strict=True)]


def test_the_table_compares_with_one_server_and_states_n() -> None:
    rows = lines()
    assert rows[0] == ["alone", "decode, tokens/s", "2 (2.00)", "1", "1 (1.00)", "1-2"]
    assert rows[2] == ["", "first token, s", "0.5 (0.50)", "1", "1 (1.00)", "1-2"]


def test_a_load_that_a_server_refused_has_no_figure() -> None:
    (row,) = [row for row in lines() if row[:2] == ["2 at once", "tokens/s in all"]]
    assert row[2:] == ["2 (2.00)", "1", "-", "2"]


def test_the_table_fits_a_screen() -> None:
    assert len(lines()) <= 40


def test_the_picture_names_servers_and_measures() -> None:
    samples = [*rounds_under_load(OURS, 0.5), *rounds_under_load(PEER, 1.0)]
    svg = draw(figures_of(samples, LONG)).to_svg()
    for text in (OURS, PEER, "agents at once", "tokens/s in all", "ITL p95, ms"):
        assert text in svg
