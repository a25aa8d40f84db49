"""Measures what reusing keys and values behind edits does to the answers.

Earlier requests of a trace are replayed as they were recorded, later ones with an
edit; each edited one is also computed from scratch, by which all answers are evaluated.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from mlxlab.analysis.fidelity.result import REQUEST_TYPES, Fidelity
from mlxlab.analysis.fidelity.scenarios import (
    EditSet,
    Scenario,
    apply_edits,
    render_scenarios,
)
from mlxlab.analysis.fidelity.store import remember
from mlxlab.errors import MlxlabError
from mlxlab.models.folder import BUNDLED, ModelFolder, find_model
from mlxlab.rendering.renderer import Renderer
from mlxlab.replay.manifest import describe_run
from mlxlab.replay.requests import RenderedRequest
from mlxlab.replay.simulator import Progress
from mlxlab.replay.specs import (
    FIDELITY_SPECS,
    StrategySpec,
    parse_specs,
)
from mlxlab.traces import Trace

if TYPE_CHECKING:
    from mlxlab.analysis.fidelity.evaluator import AnswerScore, Evaluator

__all__ = ["QUANTIZED", "fidelity", "parse_quantized"]

log = logging.getLogger(__name__)

#: Bits to which weights are rounded, for scale.
QUANTIZED = (8, 5, 4, 3)

#: What MLX can store weights with.
_BITS = (2, 3, 4, 5, 6, 8)

#: Nats by which a model has to beat guessing for its answers to mean something.
_LEAST_GAIN = 1.0


def fidelity(
    traces: Trace | Sequence[Trace],
    *,
    model: str | ModelFolder = BUNDLED,
    strategies: str = FIDELITY_SPECS,
    rules: str = "all",
    edits: str | Sequence[str] = "classes",
    quantized: Sequence[int] = QUANTIZED,
    tokens: int = 64,
    greedy: int = 32,
    chunk: int = 2048,
    floor_chunk: int = 512,
    progress: bool = True,
) -> Fidelity:
    """Replay edited traces through strategies and score the answers.

    For every trace and edit each spec starts from an empty cache. Requests are
    taken in order; the unedited ones only fill the caches. Each edited one is answered
    after a full prefill, the reference; after the same in other chunks, the noise
    floor; by the model with quantized weights; and by every spec. An
    answer that was recorded is forced on all of them, token by token, and then goes
    into the caches.

    What is found for approximate strategies is remembered for whoever has them serve
    this model later, see :mod:`mlxlab.analysis.fidelity.store`.

    Args:
        traces: one or more. In one whose header says ``tasks`` recorded answers are
            the right ones.
        model: name, folder or hub repository. It is in memory once more for each bit
            width of ``quantized``.
        strategies: see :func:`mlxlab.replay.specs.parse_specs`. They take
            turns, so all their caches are in memory together.
        rules: for strategies that name none of their own.
        edits: ``none`` (every request is evaluated as it was recorded), or names out of
            :data:`mlxlab.analysis.fidelity.edits.EDITS` and its groups ``classes`` and
            ``shifts``, joined with commas or in a list. One that cannot be made to a
            trace is left out there, and the notes say so.
        quantized: bits to round weights to. Those that the model's own weights have not
            more than are left out, and the notes say so.
        tokens: most tokens of a recorded answer whose predictions are compared.
        greedy: most tokens to decode greedily; as many as the recorded answer has
            where that is the right one.
        chunk: tokens that a prefill computes at a time.
        floor_chunk: the same for the noise floor. A prompt that fits either has none.
        progress: whether to show a bar.

    Raises:
        MlxlabError: anything unknown, unreadable or not accepted; nothing has been
            computed then.
    """
    traces = [traces] if isinstance(traces, Trace) else list(traces)
    folder = find_model(model) if isinstance(model, str) else model
    specs = parse_specs(strategies, rules)
    for spec in specs:
        spec.make(folder.token_bytes)
    _check_quantized(quantized)
    if floor_chunk == chunk:
        raise MlxlabError(
            f"floor_chunk={floor_chunk}: as large as chunk; give another size, or "
            "there is no noise to see"
        )
    edited = [apply_edits(trace, edits) for trace in traces]
    refused = [reason for own in edited for reason in own.refused]
    if not any(own.edited for own in edited):
        raise MlxlabError(f"nothing to evaluate: {'; '.join(refused)}")
    renderers = {c.rules: Renderer(folder, c.rules) for c in specs}
    # The command line has to know the defaults without loading mlx.
    from mlxlab.analysis.fidelity.evaluator import Evaluator
    from mlxlab.replay.live import live_model

    with (
        live_model(folder, chunk=chunk) as live,
        tqdm(desc="rendering", disable=not progress) as bar,
    ):
        evaluator = Evaluator(
            live,
            quantized=quantized,
            floor_chunk=floor_chunk,
            tokens=tokens,
            greedy=greedy,
        )
        requests, positions = _evaluate_all(evaluator, specs, edited, renderers, bar)
        environment = live.describe()
    environment |= {
        "day": datetime.now(UTC).date().isoformat(),
        "floor_chunk": floor_chunk,
        "quantized": list(evaluator.quantized),
        "tokens": tokens,
        "greedy": greedy,
        "edits": list(requests.edit.unique()),
        "warnings": [
            *_untrained(folder, requests, positions),
            *_left_out(quantized, evaluator.quantized),
            *refused,
        ],
    }
    notes = sum((r.notes for r in renderers.values()), Counter())
    requests.attrs["manifest"] = describe_run(traces, folder, specs, notes, environment)
    found = Fidelity(requests, positions)
    try:
        remember(found)
    except (MlxlabError, OSError) as error:
        log.warning("what was measured is not remembered: %s", error)
    return found


def parse_quantized(spec: str) -> tuple[int, ...]:
    """Read ``none``, or bits joined with commas.

    Raises:
        MlxlabError: something else.
    """
    words = [] if spec == "none" else [word.strip() for word in spec.split(",")]
    if not all(word.isdecimal() for word in words):
        raise _quantized_error(spec)
    return tuple(map(int, words))


def _check_quantized(quantized: Sequence[int]) -> None:
    if any(bits not in _BITS for bits in quantized) or len(set(quantized)) < len(
        quantized
    ):
        raise _quantized_error(",".join(map(str, quantized)))


def _quantized_error(given: str) -> MlxlabError:
    return MlxlabError(
        f"quantized {given!r}: give none, or different ones of "
        f"{', '.join(map(str, _BITS))} bits"
    )


def _evaluate_all(
    evaluator: Evaluator,
    specs: Sequence[StrategySpec],
    edited: Sequence[EditSet],
    renderers: Mapping[tuple[str, ...], Renderer],
    bar: tqdm[NoReturn],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Render all traces, then run all specs; requests and positions."""
    for spec in specs:
        # A model that cannot serve one of them is refused before any work.
        evaluator.variant(spec)
    bar.reset(len(renderers) * sum(own.requests for own in edited))
    scenarios = [
        scenario
        for own in edited
        for renderer in renderers.values()
        for scenario in render_scenarios(own, renderer, bar.update)
    ]
    bar.reset(sum(_tokens(scenario, evaluator, specs) for scenario in scenarios))
    rows = _Rows()
    for scenario in scenarios:
        bar.set_description(f"{scenario.trace} {scenario.edit}")
        _run(scenario, evaluator, specs, rows, bar.update)
    return rows.frames()


def _tokens(
    scenario: Scenario, evaluator: Evaluator, specs: Iterable[StrategySpec]
) -> int:
    """Prompt tokens that are taken in for a scenario, by all together."""
    variants = sum(spec.rules == scenario.rules for spec in specs)
    return sum(
        len(request.prompt)
        * (variants + (request.id in scenario.evaluated) * len(evaluator.baselines))
        for request in scenario.requests
    )


def _run(
    scenario: Scenario,
    evaluator: Evaluator,
    specs: Iterable[StrategySpec],
    rows: _Rows,
    progress: Progress,
) -> None:
    """Take a case's requests in order, all specs side by side."""
    variants = [evaluator.variant(c) for c in specs if c.rules == scenario.rules]
    for request in scenario.requests:
        if request.id in scenario.evaluated:
            for score in evaluator.evaluate(
                request, variants, progress, task=scenario.task
            ):
                rows.add(scenario, request, score)
        else:
            evaluator.fill(request, variants, progress)


class _Rows:
    """Collects verdicts for the frames of :class:`Fidelity`."""

    def __init__(self) -> None:
        self._requests: list[dict[str, Any]] = []
        self._positions: list[pd.DataFrame] = []

    def add(
        self, scenario: Scenario, request: RenderedRequest, score: AnswerScore
    ) -> None:
        found = score.divergence
        positions = {
            "row": len(self._requests),
            "position": np.arange(len(found.kld)),
            "kld": found.kld,
            "same_top": found.same_top,
            "delta_p": found.delta_p,
            "surprisal": found.surprisal,
        }
        self._positions.append(pd.DataFrame(positions))
        self._requests.append(_row(scenario, request, score))

    def frames(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Requests and positions."""
        requests = pd.DataFrame(self._requests).astype(REQUEST_TYPES)
        return requests, pd.concat(self._positions, ignore_index=True)


def _row(
    scenario: Scenario, request: RenderedRequest, score: AnswerScore
) -> dict[str, Any]:
    exact, lost = scenario.exact[request.id], scenario.lost[request.id]
    beyond = max(score.reused_tokens - exact, 0)
    return {
        "trace": scenario.trace,
        "edit": scenario.edit,
        "session": request.session,
        "request": request.id,
        "variant": score.variant.name,
        "kind": str(score.variant.kind),
        "prompt_tokens": len(request.prompt),
        "reused_tokens": score.reused_tokens,
        "exact_tokens": exact,
        "lost_tokens": lost,
        "recovered_tokens": min(beyond, lost),
        "shift": score.shift,
        "first_kl": score.divergence.kld[0],
        "greedy_prefix": score.greedy_prefix,
        "greedy_tokens": score.greedy_tokens,
        "answer": score.answer,
        "tool_name_agrees": score.calls.names,
        "tool_arguments_agree": score.calls.arguments,
        "task_right": score.right,
        "ttft_s": None if score.variant.kind == "quantized" else score.ttft_s,
    }


def _untrained(
    folder: ModelFolder, requests: pd.DataFrame, positions: pd.DataFrame
) -> Iterator[str]:
    """A warning if the model's answers mean nothing.

    Random weights predict any text worse than guessing does, by Jensen's inequality.
    """
    reference = requests.index[requests.kind == "reference"]
    surprisal = positions.surprisal[positions.row.isin(reference)].mean()
    guessing = math.log(len(folder.tokenizer))
    if surprisal > guessing - _LEAST_GAIN:
        yield (
            f"WARNING: model {folder.name} predicts the recorded answers no better "
            f"than chance ({surprisal:.1f} nats a token, guessing {guessing:.1f}): "
            "its weights may be random, and what reuse does to its answers says little "
            "about a model that can"
        )


def _left_out(quantized: Iterable[int], used: Iterable[int]) -> Iterator[str]:
    rest = [str(bits) for bits in quantized if bits not in set(used)]
    if rest:
        yield f"quantized: {', '.join(rest)} bits left out, the weights have no more"
