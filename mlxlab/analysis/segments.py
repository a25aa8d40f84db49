"""Where the tokens of recorded prompts came from."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from mlxlab.models.folder import BUNDLED, ModelFolder, find_model
from mlxlab.rendering.renderer import Renderer
from mlxlab.rendering.rules import parse_rules
from mlxlab.replay.requests import label_sessions, render_trace
from mlxlab.traces import Trace

__all__ = ["count_segments"]


def count_segments(
    traces: Trace | Sequence[Trace],
    *,
    model: str | ModelFolder = BUNDLED,
    rules: str = "all",
) -> pd.DataFrame:
    """Prompt tokens by request and wire block.

    Returns:
        Columns ``session``, ``request``, ``label`` (``tools[4]:Bash``), ``role``
        (``tools``), ``tokens``; in the order of the prompt.

    Raises:
        MlxlabError: see :func:`mlxlab.compare`.
    """
    traces = [traces] if isinstance(traces, Trace) else list(traces)
    folder = find_model(model) if isinstance(model, str) else model
    renderer = Renderer(folder, parse_rules(rules))
    rendered = label_sessions(traces, [render_trace(t, renderer) for t in traces])
    return pd.DataFrame(
        {
            "session": request.session,
            "request": request.id,
            "label": segment.label,
            "role": str(segment.role),
            "tokens": len(segment),
        }
        for requests in rendered
        for request in requests
        for segment in request.prompt.segments
    )
