"""System blocks, tools and messages, each found wherever it stood.

Knows where units of a prompt begin and end; nothing of what they say.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from mlxlab.prompt import Prompt, Role, Segment
from mlxlab.strategies.approximate import Moving, Naive
from mlxlab.strategies.sequences.matches import Donor, Run

__all__ = ["Segmented", "SegmentedNaive"]

GLUE = frozenset({Role.TEMPLATE, Role.GENERATION})


@dataclass(frozen=True, slots=True)
class _Unit:
    """Tokens ``[start, stop)``; glue is what a template puts between units."""

    start: int
    stop: int
    glue: bool


class Segmented(Moving):
    """Moves whole units: a system block, a tool, a message, in any order.

    A unit is looked up by its tokens. Of several places the one that continues the run
    before it is taken, else the one that moves it least, of the latest donor. Template
    tokens between units only continue a run: they stand everywhere. Segments of the
    coarse fallback are units too.

    Takes the parameters of :class:`Moving`.
    """

    name = "segmented"
    summary = "paged, and system blocks, tools and messages moved; approximate"

    def _find(self, prompt: Prompt, start: int) -> Iterable[list[Run]]:
        places = self._places()
        runs: list[Run] = []
        for unit in _units(prompt):
            if unit.stop <= start:
                continue
            tokens = prompt.tokens[unit.start : unit.stop]
            last = runs[-1] if runs and runs[-1].stop == unit.start else None
            continued = last.continued(tokens) if last else None
            if continued:
                runs[-1] = continued
            elif (key := tokens.tobytes()) in places:
                run = _nearest(unit, places[key])
                runs.append(run.cut(front=max(start - unit.start, 0)))
        yield runs

    def _places(self) -> dict[bytes, list[tuple[Donor, int]]]:
        """Where units stand in donors, by their tokens, latest donor first."""
        places: defaultdict[bytes, list[tuple[Donor, int]]] = defaultdict(list)
        for donor in reversed(self._donors):
            for unit in _units(donor.prompt):
                if not unit.glue:
                    key = donor.tokens[unit.start : unit.stop].tobytes()
                    places[key].append((donor, unit.start))
        return dict(places)


class SegmentedNaive(Naive, Segmented):
    """The original idea: cache system text, tools and turns separately."""

    name = "segmented-naive"
    summary = "segmented without rotation, recomputation or limits: wrong answers"


def _nearest(unit: _Unit, places: list[tuple[Donor, int]]) -> Run:
    donor, origin = min(places, key=lambda place: abs(unit.start - place[1]))
    return Run(donor, origin, unit.start, unit.stop - unit.start)


def _units(prompt: Prompt) -> Iterator[_Unit]:
    """Neighbouring segments of one block or message, and what is between them."""
    for _, group in groupby(prompt.segments, key=_unit_label):
        segments = list(group)
        yield _Unit(segments[0].start, segments[-1].stop, segments[0].role in GLUE)


def _unit_label(segment: Segment) -> str:
    """``messages[3]`` of ``messages[3].tool_result[0]``."""
    return "" if segment.role in GLUE else segment.label.partition(".")[0]
