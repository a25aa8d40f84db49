"""Drive several strategies with the same traces and put the outcomes side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pandas as pd
from tqdm.auto import tqdm

from mlxlab.canonical import parse_rules
from mlxlab.models import BUNDLED, ModelFolder, find_model
from mlxlab.render import Renderer
from mlxlab.replay.ceilings import InfiniteMemory, reachable
from mlxlab.replay.contenders import DEFAULT_CONTENDERS, Contender, parse_contenders
from mlxlab.replay.costs import CostModel
from mlxlab.replay.manifest import describe_run
from mlxlab.replay.simulate import SimulatedTarget
from mlxlab.replay.steps import Step, label_sessions, render_steps
from mlxlab.replay.targets import Outcome, Progress, Target
from mlxlab.traces import Trace

if TYPE_CHECKING:
    from mlxlab.replay.live import LiveModel

__all__ = ["compare"]


def compare(
    traces: Trace | Sequence[Trace],
    *,
    model: str | ModelFolder = BUNDLED,
    strategies: str = DEFAULT_CONTENDERS,
    rules: str = "all",
    simulate: bool = False,
    costs: CostModel | None = None,
    chunk: int = 2048,
    progress: bool = True,
) -> pd.DataFrame:
    """Replay traces through strategies, each trace from an empty cache.

    The ceiling of infinite memory comes last, as if it were a strategy; ceilings are
    always simulated.

    Args:
        traces: one or more.
        model: name, folder or hub repository.
        strategies: see :func:`mlxlab.replay.contenders.parse_contenders`.
        rules: for strategies that name none of their own.
        simulate: count tokens only; needs no mlx and no weights.
        costs: what a simulation estimates seconds by, see
            :func:`mlxlab.replay.calibrate.calibrate`.
        chunk: tokens that a live replay computes at a time.
        progress: whether to show a bar.

    Returns:
        A row per strategy and request: ``strategy``, ``rules``, ``session``,
        ``request``, ``prompt_tokens``, ``reused_tokens``, ``computed_tokens``,
        ``prefill_s``, ``ttft_s``, ``restore_s`` (missing where nothing was computed),
        ``stored_bytes``, ``evicted`` (tokens), and what of the same request could have
        been reused under ``rules`` with infinite memory, with the strategy's own
        capacity and all the future known, and at any position: ``infinite``,
        ``finite``, ``any_position`` (tokens). ``attrs["manifest"]`` holds what
        :func:`mlxlab.replay.manifest.describe_run` tells of the run.

    Raises:
        MlxlabError: anything unknown or unreadable; nothing has been replayed then.
    """
    traces = [traces] if isinstance(traces, Trace) else list(traces)
    folder = find_model(model) if isinstance(model, str) else model
    ceiling = Contender(InfiniteMemory.name, parse_rules(rules))
    contenders = tuple(dict.fromkeys([*parse_contenders(strategies, rules), ceiling]))
    capacities = {c: c.make(folder.token_bytes).capacity_tokens for c in contenders}
    renderers = {c.rules: Renderer(folder, c.rules) for c in contenders}
    rows: list[dict[str, Any]] = []
    requests = len(renderers) * sum(len(trace.inference) for trace in traces)
    with (
        _stage(folder, chunk, simulate, costs) as stage,
        tqdm(total=requests, desc="rendering", disable=not progress) as bar,
    ):
        for contender in contenders:
            # A model that cannot serve one of them is refused before any work.
            stage.target(contender, bar.update)
        workload = {
            rules_in_force: label_sessions(
                traces, [render_steps(t, renderer, bar.update) for t in traces]
            )
            for rules_in_force, renderer in renderers.items()
        }
        sizes = set(capacities.values())
        ceilings = [reachable(steps, sizes) for steps in workload[ceiling.rules]]
        bar.reset(sum(_tokens(workload[c.rules]) for c in contenders))
        for contender in contenders:
            bar.set_description(contender.strategy)
            for steps, most in zip(workload[contender.rules], ceilings, strict=True):
                target = stage.target(contender, bar.update)
                rows += [
                    _row(contender, step, target.replay(step))
                    | most[i].columns(capacities[contender])
                    for i, step in enumerate(steps)
                ]
    frame = pd.DataFrame(rows)
    notes = sum((r.notes for r in renderers.values()), Counter())
    frame.attrs["manifest"] = describe_run(
        traces, folder, contenders, notes, stage.environment, costs=stage.costs
    )
    return frame


def _tokens(workload: Iterable[Iterable[Step]]) -> int:
    return sum(len(step.prompt) for steps in workload for step in steps)


class _Stage:
    """Makes targets: simulated ones, and with a model live ones."""

    def __init__(
        self, folder: ModelFolder, live: LiveModel | None, costs: CostModel | None
    ) -> None:
        self.token_bytes = folder.token_bytes
        self.live = live
        self.costs = costs
        self.environment = live.describe() if live else {}

    def target(self, contender: Contender, progress: Progress) -> Target:
        strategy = contender.make(self.token_bytes)
        if self.live is None or contender.is_ceiling:
            return SimulatedTarget(strategy, progress, self.costs)
        return self.live.target(strategy, progress)


@contextmanager
def _stage(
    folder: ModelFolder, chunk: int, simulate: bool, costs: CostModel | None
) -> Iterator[_Stage]:
    if simulate:
        yield _Stage(folder, None, costs)
        return
    # Simulation has to work where mlx is not installed.
    from mlxlab.replay.live import live_model

    with live_model(folder, chunk=chunk) as live:
        yield _Stage(folder, live, None)


def _row(contender: Contender, step: Step, outcome: Outcome) -> dict[str, Any]:
    return {
        "strategy": contender.strategy,
        "rules": contender.rules_label,
        "session": step.session,
        "request": step.request,
        "prompt_tokens": len(step.prompt),
        "reused_tokens": outcome.reused_tokens,
        "computed_tokens": len(step.prompt) - outcome.reused_tokens,
        "prefill_s": outcome.prefill_s,
        "ttft_s": outcome.ttft_s,
        "restore_s": outcome.restore_s,
        "stored_bytes": outcome.stored_bytes,
        "evicted": outcome.evicted,
    }
