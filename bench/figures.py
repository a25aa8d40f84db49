"""Figures of servers under load, from the samples of all rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import ceil
from statistics import median
from typing import TypeAlias

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from bench.loads import Load, Loaded, LoadSample, Part, Visit
from bench.peers import CHUNK
from mlxlab.replay.endpoints.answers import Answer

__all__ = ["FIRST_TOKEN", "ITL_95", "RATE", "Figure", "figures_of", "load_table"]

RATE = "tokens/s in all"
FIRST_TOKEN = "first token, s"
ITL_95 = "ITL p95, ms"

_Round: TypeAlias = Mapping[Part, Sequence[Answer]]
_Values: TypeAlias = tuple[float, int]
"""A figure and its n."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured number.

    Attributes:
        agents: answers that were asked for at once.
        n: samples behind the number.
    """

    server: str
    load: Load
    agents: int
    measure: str
    value: float
    n: int

    @property
    def row(self) -> tuple[str, str]:
        """The head of a table's row."""
        if self.load is not Load.AGENTS:
            return self.load, self.measure
        return f"{self.agents} at once" if self.agents > 1 else "alone", self.measure


def figures_of(samples: Iterable[LoadSample], long: int) -> list[Figure]:
    """Return all figures, server by server.

    Args:
        samples: from :func:`bench.loads.put_on`.
        long: tokens of the long prompt.
    """
    servers: dict[str, list[LoadSample]] = {}
    for sample in samples:
        servers.setdefault(sample.server, []).append(sample)
    return [
        figure
        for server, own in servers.items()
        for figure in chain(_under_load(server, own, long), _memory(server, own))
    ]


def _under_load(
    server: str, samples: Iterable[LoadSample], long: int
) -> Iterator[Figure]:
    loads: dict[tuple[Load, int], dict[int, dict[Part, list[Answer]]]] = {}
    for sample in samples:
        if isinstance(sample, Loaded):
            rounds = loads.setdefault((sample.load, sample.agents), {})
            parts = rounds.setdefault(sample.round, {})
            parts.setdefault(sample.part, []).append(sample.answer)
    for (load, agents), rounds in loads.items():
        for measure, values in _MEASURES[load](list(rounds.values()), long).items():
            if values:
                yield Figure(server, load, agents, measure, *values)


def _memory(server: str, samples: Iterable[LoadSample]) -> Iterator[Figure]:
    visits = [sample for sample in samples if isinstance(sample, Visit)]
    if visits:
        peak = max(visit.peak_bytes for visit in visits) / 1e6
        looks = sum(visit.samples for visit in visits)
        yield Figure(server, Load.ALL, 1, "peak memory, MB", peak, looks)


_Measured: TypeAlias = dict[str, _Values | None]


def _agents(rounds: Sequence[_Round], long: int) -> _Measured:
    answers = _answers(rounds, Part.AGENT)
    gaps = [1000 * (end - begin) for answer in answers for begin, end in answer.gaps]
    alone = len(answers) == len(rounds)
    decode = [rate for answer in answers for rate in _decode_rates(answer)]
    return {
        "decode, tokens/s": _median(decode) if alone else None,
        RATE: _median([_rate(own[Part.AGENT]) for own in rounds]),
        FIRST_TOKEN: _median([answer.ttft_s for answer in answers]),
        "ITL p50, ms": _quantile(gaps, 0.5),
        ITL_95: _quantile(gaps, 0.95),
    }


def _long(rounds: Sequence[_Round], long: int) -> _Measured:
    gaps = [1000 * gap for own in rounds for gap in _gaps_beside(own)]
    waited = [
        own[Part.SHORT][0].ttft_s * ceil(long / CHUNK) / own[Part.LONG][0].ttft_s
        for own in rounds
    ]
    return {
        "running, tokens/s": (1000 * len(gaps) / sum(gaps), len(gaps))
        if gaps
        else None,
        f"running, {ITL_95}": _quantile(gaps, 0.95),
        "running, ITL longest, ms": _quantile(gaps, 1.0),
        f"short, {FIRST_TOKEN}": _median(_seconds(rounds, Part.SHORT)),
        "short, first token, chunks": _median(waited),
        f"long, {FIRST_TOKEN}": _median(_seconds(rounds, Part.LONG)),
    }


def _restart(rounds: Sequence[_Round], long: int) -> _Measured:
    restarted = _seconds(rounds, Part.RESTARTED)
    warm = _seconds(rounds, Part.WARM)
    times = [after / before for after, before in zip(restarted, warm, strict=True)]
    return {
        FIRST_TOKEN: _median(restarted),
        "first token, warm turns": _median(times),
        "start to first token, s": _median(_seconds(rounds, Part.STARTED)),
    }


def _writing(rounds: Sequence[_Round], long: int) -> _Measured:
    def times(seconds: Callable[[Answer], float]) -> _Values | None:
        """Return the median, over rounds, of the medians' ratio."""
        return _median(
            [
                median(map(seconds, own[Part.WRITING]))
                / median(map(seconds, own[Part.NOT_WRITING]))
                for own in rounds
            ]
        )

    return {
        "first token, times without": times(lambda answer: answer.ttft_s),
        "whole answer, times without": times(
            lambda answer: answer.tokens_s[-1] - answer.sent_s
        ),
    }


_MEASURES: Mapping[Load, Callable[[Sequence[_Round], int], _Measured]] = {
    Load.AGENTS: _agents,
    Load.LONG: _long,
    Load.RESTART: _restart,
    Load.WRITING: _writing,
}


def _answers(rounds: Iterable[_Round], part: Part) -> list[Answer]:
    return [answer for own in rounds for answer in own.get(part, ())]


def _seconds(rounds: Iterable[_Round], part: Part) -> list[float]:
    return [answer.ttft_s for answer in _answers(rounds, part)]


def _tokens(answer: Answer) -> int:
    return answer.generated or len(answer.tokens_s)


def _decode_rates(answer: Answer) -> Iterator[float]:
    """Yield tokens a second after the first one, if there are any."""
    seconds = answer.tokens_s[-1] - answer.tokens_s[0]
    if seconds > 0:
        yield (_tokens(answer) - 1) / seconds


def _rate(answers: Sequence[Answer]) -> float:
    """Return the tokens a second of all answers, from the first request on."""
    began_s = min(answer.sent_s for answer in answers)
    ended_s = max(answer.tokens_s[-1] for answer in answers)
    return sum(map(_tokens, answers)) / (ended_s - began_s)


def _gaps_beside(own: _Round) -> Iterator[float]:
    """Yield the seconds between tokens while the long prompt waited or was computed."""
    (running,), (long,) = own[Part.RUNNING], own[Part.LONG]
    for begin, end in running.gaps:
        if end > long.sent_s and begin < long.tokens_s[0]:
            yield end - begin


def _median(values: Sequence[float]) -> _Values | None:
    return (median(values), len(values)) if values else None


def _quantile(values: Sequence[float], share: float) -> _Values | None:
    return (float(np.quantile(values, share)), len(values)) if values else None


def load_table(figures: Sequence[Figure], base: str) -> Table:
    """Return the figures by server; in brackets, the ratio to one server's.

    Args:
        figures: from :func:`figures_of`.
        base: name of this server.
    """
    servers = list(dict.fromkeys(figure.server for figure in figures))
    cells = {(*figure.row, figure.server): figure for figure in figures}
    table = Table(
        box=SIMPLE_HEAD, title=f"under load (times {base})", padding=(0, 1, 0, 0)
    )
    for head in ("load", "measure"):
        table.add_column(head)
    for head in (*servers, "n"):
        table.add_column(head, justify="right")
    before = ""
    for load, measure in dict.fromkeys(figure.row for figure in figures):
        row = [cells.get((load, measure, server)) for server in servers]
        of_base = cells.get((load, measure, base))
        shown = load if load != before else ""
        table.add_row(shown, measure, *(_cell(f, of_base) for f in row), _counts(row))
        before = load
    return table


def _cell(figure: Figure | None, base: Figure | None) -> str:
    if figure is None:
        return "-"
    value = f"{figure.value:,.0f}" if figure.value >= 100 else f"{figure.value:.3g}"
    if base is None or base is figure or not base.value:
        return value
    return f"{value} ({figure.value / base.value:.2f})"


def _counts(figures: Iterable[Figure | None]) -> str:
    """Return how many samples the servers have: one number, or from least to most."""
    counts = {figure.n for figure in figures if figure is not None}
    return "-".join(f"{n}" for n in sorted({min(counts), max(counts)}))
