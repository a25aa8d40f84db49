"""Sources of requests: recorded traces rendered for a model, and hashed traces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from tqdm.auto import tqdm

from mlxlab.rendering.renderer import Renderer
from mlxlab.replay.hashed import HashedSource
from mlxlab.replay.requests import RenderedRequest, label_sessions, render_trace
from mlxlab.replay.workload import RenderedTrace, Source
from mlxlab.traces import Trace
from mlxlab.traces.open import AnyTrace

__all__ = ["Sources", "open_sources"]

Sources: TypeAlias = tuple[Source, ...]


def open_sources(
    traces: Sequence[AnyTrace], renderer: Renderer, progress: bool
) -> Sources:
    """Return one source per trace, in order.

    Args:
        traces: recorded or hashed.
        renderer: renders the recorded traces.
        progress: whether to show a bar.

    Raises:
        MlxlabError: see :func:`mlxlab.replay.requests.render_trace`.
    """
    recorded = [trace for trace in traces if isinstance(trace, Trace)]
    requests = sum(len(trace.inference) for trace in recorded)
    with tqdm(
        total=requests, desc="rendering", disable=not progress or not requests
    ) as bar:
        rendered = [render_trace(trace, renderer, bar.update) for trace in recorded]
    named = iter(label_sessions(recorded, rendered))
    return tuple(
        _rendered(trace, next(named), renderer)
        if isinstance(trace, Trace)
        else HashedSource(trace)
        for trace in traces
    )


def _rendered(
    trace: Trace, requests: Sequence[RenderedRequest], renderer: Renderer
) -> RenderedTrace:
    begun = trace.inference[0].t
    times = [exchange.t - begun for exchange in trace.inference]
    digest = f"{trace.digest}-{renderer.model.digest}-{','.join(renderer.rules)}"
    return RenderedTrace(trace.name, digest, tuple(zip(times, requests, strict=True)))
