"""Position-independent reuse of system blocks, tools and messages."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from mlxlab.prompt import GLUE_ROLES, Prompt, Segment
from mlxlab.strategies.approximate import Approximate, Naive
from mlxlab.strategies.base import Example
from mlxlab.strategies.registry import register
from mlxlab.strategies.sequences.matches import CachedSequence, Run

__all__ = ["Segmented", "SegmentedNaive"]


@dataclass(frozen=True, slots=True)
class _Unit:
    """Tokens ``[start, stop)``; glue is text of the template between units."""

    start: int
    stop: int
    glue: bool


@register
class Segmented(Approximate):
    """Moves whole units: a system block, a tool, a message, in any order.

    A unit is looked up by its tokens. Of several places the one that continues the run
    before it is used, else the one with the smallest shift, of the latest cached
    sequence. Template tokens between units only continue a run, because they occur
    everywhere. Segments of the coarse fallback are units too.

    Prompt Cache (arXiv 2311.04934) reuses declared modules of prompts; EPIC
    (arXiv 2410.15332) reuses whole chunks at any position.
    """

    name = "segmented"
    summary = "paged, and system blocks, tools and messages moved; approximate"
    literature = "position-independent reuse of modules (Prompt Cache, EPIC)"
    rank = 70
    example = Example(
        {"block": 4, "capacity": 90, "run": 2, "head": 1, "tail": 1, "rewritten": 0}
    )

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

    def _places(self) -> dict[bytes, list[tuple[CachedSequence, int]]]:
        """Return the places of units, by their tokens, latest sequence first."""
        places: defaultdict[bytes, list[tuple[CachedSequence, int]]] = defaultdict(list)
        for cached in reversed(self._cached):
            for unit in _units(cached.prompt):
                if not unit.glue:
                    key = cached.tokens[unit.start : unit.stop].tobytes()
                    places[key].append((cached, unit.start))
        return dict(places)


@register
class SegmentedNaive(Naive, Segmented):
    """Caches system text, tools and turns separately, and reuses all of them."""

    name = "segmented-naive"
    summary = "segmented without rotation, recomputation or limits: wrong answers"
    literature = "full KV reuse of modules, the control of CacheBlend"
    rank = 71
    example = Example({"block": 4, "capacity": 90})


def _nearest(unit: _Unit, places: list[tuple[CachedSequence, int]]) -> Run:
    cached, origin = min(places, key=lambda place: abs(unit.start - place[1]))
    return Run(cached, origin, unit.start, unit.stop - unit.start)


def _units(prompt: Prompt) -> Iterator[_Unit]:
    """Yield blocks and messages, each of neighbouring segments, and the glue."""
    for _, group in groupby(prompt.segments, key=_unit_label):
        segments = list(group)
        yield _Unit(
            segments[0].start, segments[-1].stop, segments[0].role in GLUE_ROLES
        )


def _unit_label(segment: Segment) -> str:
    """Return ``messages[3]`` of ``messages[3].tool_result[0]``."""
    return "" if segment.role in GLUE_ROLES else segment.label.partition(".")[0]
