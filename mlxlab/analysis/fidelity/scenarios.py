"""The scenarios of a fidelity run: edited traces, rendered, and the tokens lost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mlxlab.analysis.fidelity.edits import EDIT_GROUPS, EDITS, EditedTrace, apply_edit
from mlxlab.errors import TraceError
from mlxlab.models.layout import CacheLayout
from mlxlab.rendering.renderer import Renderer
from mlxlab.replay.bounds import Bounds, UnlimitedMemory, find_bounds
from mlxlab.replay.requests import RenderedRequest, render_trace
from mlxlab.replay.simulator import Progress, Simulator
from mlxlab.traces import Trace

__all__ = ["EditSet", "Scenario", "apply_edits", "render_scenarios"]


@dataclass(frozen=True, slots=True)
class EditSet:
    """A trace and its edited versions.

    Attributes:
        trace: the recorded trace.
        edited: one edited trace per edit.
        refused: reasons why other edits do not fit this trace.
    """

    trace: Trace
    edited: tuple[EditedTrace, ...]
    refused: tuple[str, ...] = ()

    @property
    def requests(self) -> int:
        """Number of requests to render."""
        traces = (edited.trace for edited in self.edited)
        return sum(len(trace.inference) for trace in (self.trace, *traces))


def apply_edits(trace: Trace, edits: str | Sequence[str]) -> EditSet:
    """Apply every edit that fits a trace.

    Args:
        trace: the recorded trace.
        edits: see :func:`mlxlab.analysis.fidelity.run.fidelity`.

    Raises:
        TraceError: an unknown edit.
    """
    if edits == "none":
        every = frozenset(exchange.id for exchange in trace.inference)
        return EditSet(trace, (EditedTrace(trace, "none", every),))
    given = edits.split(",") if isinstance(edits, str) else edits
    names = [n for word in map(str.strip, given) for n in EDIT_GROUPS.get(word, [word])]
    made: list[EditedTrace] = []
    refused: list[str] = []
    for name in dict.fromkeys(names):
        try:
            made.append(apply_edit(trace, name))
        except TraceError as error:
            if name not in EDITS:
                raise
            refused.append(str(error))
    return EditSet(trace, tuple(made), tuple(refused))


@dataclass(frozen=True, slots=True)
class Scenario:
    """A trace with an edit, rendered under a set of rules.

    Attributes:
        evaluated: ids of the requests to evaluate.
        bounds: by request id, the most tokens that could be reused.
        unlimited_tokens: tokens that unlimited memory holds at the end.
        lost: by request id, the tokens of unlimited reuse that the edit costs.
        task: whether recorded answers are the right ones.
    """

    trace: str
    edit: str
    rules: tuple[str, ...]
    requests: Sequence[RenderedRequest]
    evaluated: frozenset[int]
    bounds: Mapping[int, Bounds]
    unlimited_tokens: int
    lost: Mapping[int, int]
    task: bool


def render_scenarios(
    edits: EditSet, renderer: Renderer, progress: Progress
) -> Iterator[Scenario]:
    """Yield a scenario for each edit.

    Args:
        edits: the trace with its edits.
        renderer: a renderer for the model and the rules.
        progress: called with the number of requests just rendered.

    Raises:
        RequestError: see :func:`mlxlab.replay.requests.render_trace`.
        ModelError: see :func:`mlxlab.replay.requests.render_trace`.
    """
    trace = edits.trace
    recorded = {s.id: s for s in render_trace(trace, renderer, progress)}
    before = _exact_reuse(recorded.values())
    for edited in edits.edited:
        requests = render_trace(edited.trace, renderer, progress)
        found, held = find_bounds(requests, (), CacheLayout.plain(1))
        bounds = {s.id: own for s, own in zip(requests, found, strict=True)}
        yield Scenario(
            trace=trace.name,
            edit=edited.edit,
            rules=renderer.rules,
            requests=requests,
            evaluated=edited.changed,
            bounds=bounds,
            unlimited_tokens=held,
            lost={s.id: _lost(s, recorded[s.id], before, bounds) for s in requests},
            task=trace.header.notes.get("tasks") is True,
        )


def _exact_reuse(requests: Iterable[RenderedRequest]) -> dict[int, int]:
    replayer = Simulator(UnlimitedMemory())
    return {request.id: replayer.replay(request).reused_tokens for request in requests}


def _lost(
    edited: RenderedRequest,
    recorded: RenderedRequest,
    before: Mapping[int, int],
    bounds: Mapping[int, Bounds],
) -> int:
    """Return the tokens lost to an edit, without those that it removed."""
    request = edited.id
    gone = max(len(recorded.prompt) - len(edited.prompt), 0)
    return max(before[request] - gone - bounds[request].unlimited, 0)
