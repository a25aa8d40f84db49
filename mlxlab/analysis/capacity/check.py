"""Compares the simulated clock with the real engine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mlxlab.models.folder import BUNDLED, ModelFolder, find_model
from mlxlab.rendering.renderer import Renderer
from mlxlab.rendering.rules import parse_rules
from mlxlab.replay.clock.server import ClockedServer
from mlxlab.replay.cost_model import CostModel
from mlxlab.replay.live import live_model
from mlxlab.replay.requests import label_sessions, render_trace
from mlxlab.replay.specs import StrategySpec
from mlxlab.replay.traffic import Traffic
from mlxlab.traces import Trace

__all__ = ["check_clock"]


def check_clock(
    traces: Sequence[Trace],
    costs: CostModel,
    strategy: str = "paged",
    *,
    users: Sequence[int] = (1, 2, 4),
    think_times: float = 1.0,
    model: str | ModelFolder = BUNDLED,
) -> pd.DataFrame:
    """Let the same users ask a simulated server and the real engine.

    Args:
        traces: recorded traces; as many run at once as there are users.
        costs: this machine's calibration.
        strategy: ``name[:key=value,...][@rules]``.
        users: numbers of users.
        think_times: factor on the recorded seconds of thinking.
        model: name, folder or hub repository.

    Returns:
        One row per number of users and measure (``ttft_p50_s``, ``ttft_p90_s``,
        ``tokens_per_s`` of answers, ``reused`` tokens), in columns ``predicted`` and
        ``measured``.

    Raises:
        MlxlabError: a trace or model that cannot be read, or a failed answer.
    """
    folder = find_model(model) if isinstance(model, str) else model
    spec = StrategySpec.parse(strategy)
    rules = parse_rules(",".join(spec.rules) or "none")
    renderer = Renderer(folder, rules)
    rendered = label_sessions(traces, [render_trace(t, renderer) for t in traces])
    rows = []
    with live_model(folder, chunk=costs.machine.chunk) as live:
        for number in users:
            traffic = Traffic(traces, {rules: rendered}, number, think_times)
            requests = traffic.requests[rules]
            server = ClockedServer(spec.make(folder.layout), costs)
            predicted = server.serve(requests, traffic.schedule())
            timings = predicted.timings
            run = live.users(spec.make(folder.layout), requests, traffic.schedule())
            answered = run.run()
            outcomes = [own.outcome for own in answered]
            ends = [(o.arrived_s or 0.0) + (o.total_s or 0.0) for o in outcomes]
            tokens = sum(len(own.request.answer) for own in answered)
            waits = [o.ttft_s for o in outcomes if o.ttft_s is not None]
            known = {
                "ttft_p50_s": (
                    predicted.quantile(0.5, lambda own: own.ttft_s),
                    float(np.quantile(waits, 0.5)),
                ),
                "ttft_p90_s": (
                    predicted.quantile(0.9, lambda own: own.ttft_s),
                    float(np.quantile(waits, 0.9)),
                ),
                "tokens_per_s": (predicted.tokens_per_s, tokens / max(ends)),
                "reused": (
                    sum(own.reused_tokens for own in timings),
                    sum(o.reused_tokens for o in outcomes),
                ),
            }
            for name, (told, found) in known.items():
                row = {"users": number, "measure": name}
                rows.append({**row, "predicted": told, "measured": found})
    return pd.DataFrame(rows)
