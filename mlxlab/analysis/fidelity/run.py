"""Measures how reused keys and values change the answers to edited requests.

Earlier requests of a trace are replayed as recorded, later ones with an edit. Each
edited request is also computed from scratch: the reference of all other answers.
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
from mlxlab.replay.bounds import tabulate_bounds
from mlxlab.replay.cost_model import CHUNK
from mlxlab.replay.manifest import describe_run
from mlxlab.replay.requests import RenderedRequest
from mlxlab.replay.simulator import Progress
from mlxlab.replay.specs import (
    FIDELITY_SPECS,
    Strategies,
    StrategySpec,
    parse_specs,
)
from mlxlab.traces.open import Traces, open_recorded

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
    traces: Traces,
    strategies: Strategies = FIDELITY_SPECS,
    *,
    model: str | ModelFolder = BUNDLED,
    rules: str = "all",
    edits: str | Sequence[str] = "classes",
    quantized: Sequence[int] = QUANTIZED,
    tokens: int = 64,
    greedy: int = 32,
    chunk: int = CHUNK,
    floor_chunk: int = 512,
    progress: bool = True,
) -> Fidelity:
    """Replay edited traces through strategies and score the answers.

    For every trace and edit each strategy starts from an empty cache. Requests are
    taken in order; unedited requests only fill the caches. Each edited request is
    answered by several variants: after a full prefill (the reference), after a full
    prefill in other chunks (the noise floor), with quantized weights, and with every
    strategy. The recorded answer is forced on all variants, token by token, and then
    stored in the caches.

    The figures of approximate strategies are kept, so that the server can show them,
    see :mod:`mlxlab.analysis.fidelity.store`.

    Args:
        traces: recorded traces: names, paths or opened ones, one or several. In a trace
            whose header has ``tasks`` the recorded answers are the right ones.
        strategies: see :func:`mlxlab.replay.specs.parse_specs`. All their caches are in
            memory together.
        model: name, folder or hub repository. Each bit width of ``quantized`` needs
            memory for one more copy.
        rules: default rules, for strategies without ``@rules``.
        edits: ``none`` (every request is evaluated as recorded), or names from
            :data:`mlxlab.analysis.fidelity.edits.EDITS` and its groups ``classes`` and
            ``shifts``, joined with commas or in a list. An edit that does not fit a
            trace is left out there; a note says so.
        quantized: bits to round weights to. Widths that are not below the model's own
            are left out; a note says so.
        tokens: most tokens of a recorded answer whose predictions are compared.
        greedy: most tokens to decode greedily; all tokens of the recorded answer where
            that is the right one.
        chunk: tokens that a prefill computes at a time.
        floor_chunk: tokens at a time for the noise floor. A prompt that fits into
            either chunk has no noise.
        progress: whether to show a bar.

    Raises:
        MlxlabError: an unknown name, an unreadable file or a bad value; nothing is
            computed then.
    """
    recorded = open_recorded(traces)
    folder = find_model(model) if isinstance(model, str) else model
    specs = parse_specs(strategies, rules)
    for spec in specs:
        spec.make(folder.layout)
    _check_quantized(quantized)
    if floor_chunk == chunk:
        raise MlxlabError(
            f"floor_chunk={floor_chunk}: as large as chunk, which shows no noise; give "
            "another size"
        )
    edited = [apply_edits(trace, edits) for trace in recorded]
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
        scenarios = _render_all(evaluator, specs, edited, renderers, bar)
        requests, positions = _evaluate_all(evaluator, specs, scenarios, bar)
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
    found = Fidelity(
        requests=requests,
        bounds=_bounds(scenarios, folder.layout.token_bytes()),
        manifest=describe_run(recorded, folder, specs, notes, environment),
        positions=positions,
    )
    try:
        remember(found)
    except (MlxlabError, OSError) as error:
        log.warning("figures are not remembered for the server: %s", error)
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


def _render_all(
    evaluator: Evaluator,
    specs: Sequence[StrategySpec],
    edited: Sequence[EditSet],
    renderers: Mapping[tuple[str, ...], Renderer],
    bar: tqdm[NoReturn],
) -> list[Scenario]:
    """Render all traces with all edits under all rules."""
    for spec in specs:
        # A model that cannot serve one of them is refused before any work.
        evaluator.variant(spec)
    bar.reset(len(renderers) * sum(own.requests for own in edited))
    return [
        scenario
        for own in edited
        for renderer in renderers.values()
        for scenario in render_scenarios(own, renderer, bar.update)
    ]


def _evaluate_all(
    evaluator: Evaluator,
    specs: Sequence[StrategySpec],
    scenarios: Sequence[Scenario],
    bar: tqdm[NoReturn],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Run all scenarios; return the frames of requests and positions."""
    bar.reset(sum(_tokens(scenario, evaluator, specs) for scenario in scenarios))
    rows = _Rows()
    for scenario in scenarios:
        bar.set_description(f"{scenario.trace} {scenario.edit}")
        _run(scenario, evaluator, specs, rows, bar.update)
    return rows.frames()


def _tokens(
    scenario: Scenario, evaluator: Evaluator, specs: Iterable[StrategySpec]
) -> int:
    """Count the prompt tokens that all variants of a scenario take in."""
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
    """Take a scenario's requests in order, all strategies side by side."""
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
    """Collects scores for the frames of :class:`Fidelity`."""

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
        """Return the frames of requests and positions."""
        requests = pd.DataFrame(self._requests).astype(REQUEST_TYPES)
        return requests, pd.concat(self._positions, ignore_index=True)


def _row(
    scenario: Scenario, request: RenderedRequest, score: AnswerScore
) -> dict[str, Any]:
    exact = scenario.bounds[request.id].unlimited
    lost = scenario.lost[request.id]
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


def _bounds(scenarios: Iterable[Scenario], token_bytes: int) -> pd.DataFrame:
    """Return the bounds over all evaluated requests."""
    scenarios = list(scenarios)
    most = max(scenario.unlimited_tokens for scenario in scenarios) * token_bytes
    found = [s.bounds[id] for s in scenarios for id in s.bounds if id in s.evaluated]
    return tabulate_bounds(found, most)


def _untrained(
    folder: ModelFolder, requests: pd.DataFrame, positions: pd.DataFrame
) -> Iterator[str]:
    """Yield a warning if the model predicts no better than chance.

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
