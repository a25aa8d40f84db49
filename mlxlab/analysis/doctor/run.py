"""Explains the requests of this machine, tunes, and says what to expect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd

from mlxlab.analysis.doctor.evidence import Evidence, find_evidence
from mlxlab.analysis.doctor.result import Diagnosis
from mlxlab.analysis.misses.causes import RULE
from mlxlab.analysis.misses.result import Misses
from mlxlab.analysis.misses.run import Costs, misses
from mlxlab.analysis.tune import tune
from mlxlab.analysis.tuning import Tuning
from mlxlab.errors import MlxlabError
from mlxlab.models.folder import BUNDLED, ModelFolder, find_model
from mlxlab.models.geometry import LayoutLike
from mlxlab.rendering.rules import label_rules, parse_rules
from mlxlab.replay.cost_model import (
    CHUNK,
    CostModel,
    latest_costs,
    recall_costs,
)
from mlxlab.sizes import Size, format_size, read_size
from mlxlab.strategies.base import CAPACITY
from mlxlab.strategies.mlx_lm import MlxLmLru
from mlxlab.strategies.none import NoReuse
from mlxlab.traces import Trace
from mlxlab.traces.open import Traces

__all__ = ["Setting", "doctor"]

#: The strategy of most local servers today: one prefix, no rules.
_USUAL = "prefix@none"
#: Keys and values of a model that many run, where no model is known.
_LAYOUT = "Qwen3-Coder-30B-A3B"
#: Prompt tokens a second where nothing was measured. Of 15,000 to 25,000 tokens, local
#: servers compute all in 5 to 100 seconds.
_SPEED = 1000.0
#: Trials times requests that are affordable, and most trials.
_AFFORDABLE = 12_000
_TRIALS = 60
_RESAMPLES = 1000
#: Share of all prompt tokens from which on a loss is worth a rule that is off else.
_WORTH = 0.01
#: Estimated seconds by the reused tokens that decide them.
_TTFT = {"ttft_s": "reused_tokens", "ttft_after_s": "reused_after"}
#: Parts of a message's usage that were computed.
_COMPUTED = ("input_tokens", "cache_creation_input_tokens")


@dataclass(frozen=True, slots=True)
class _Speed:
    """Costs of one speed, where no calibration says more."""

    tokens_per_s: float

    def prefill_s(self, start: int, stop: int) -> float:
        return (stop - start) / self.tokens_per_s

    def ttft_s(self, reused: int, tokens: int) -> float:
        return self.prefill_s(reused, tokens)


def doctor(
    traces: Traces | Evidence | None = None,
    *,
    model: str | ModelFolder | None = None,
    layout: LayoutLike | None = None,
    memory: Size = CAPACITY,
    text: str = "redacted",
    fill: bool = False,
    progress: bool = True,
) -> Diagnosis:
    """Find requests of this machine, explain what they cost, and say what to change.

    No model runs; see :func:`mlxlab.misses` and :func:`mlxlab.tune`.

    Args:
        traces: names, paths or opened traces, or what :func:`find_evidence` found.
            None for the latest recording, else the history of Claude Code.
        model: name, folder or hub repository: its tokenizer and template count. None
            for the model of the running server, else the bundled one.
        layout: what the model keeps for its tokens, see
            :func:`mlxlab.models.geometry.read_layout`. None for the model's, or for
            that of a usual model where none is known.
        memory: bytes or a size such as ``16GiB``, for keys and values.
        text: of changed blocks, see :func:`mlxlab.misses`.
        fill: whether requests of a history without system text and tools get assumed
            ones, see :func:`mlxlab.traces.filling.fill.fill_history`.
        progress: whether to show bars.

    Raises:
        MlxlabError: no requests found, an unknown name, or an unreadable file.
    """
    held = read_size(memory, "memory")
    if isinstance(traces, Evidence):
        evidence = traces
    else:
        evidence = find_evidence(traces, fill=fill, progress=progress)
    setting = Setting.of(evidence, model, layout, held)
    common: dict[str, Any] = {
        "model": setting.folder,
        "layout": setting.layout,
        "users": 1,
        "progress": progress,
    }
    before = misses(
        evidence.traces,
        setting.strategy,
        rules=setting.rules,
        capacity=held,
        costs=setting.costs,
        text=text,
        propose=False,
        **common,
    )
    requests = len(before.requests)
    trials = min(_TRIALS, max(1, _AFFORDABLE // requests))
    tuned = tune(
        evidence.traces,
        memory=held,
        costs=setting.calibration,
        trials=trials,
        rules=_rules_for(before),
        # Its search takes some 50 ms a request, and no reuse is no advice.
        without=(MlxLmLru.name, NoReuse.name),
        **common,
    )
    return Diagnosis(
        requests=_join(before, tuned, setting.costs),
        bounds=tuned.bounds,
        manifest=dict(before.manifest)
        | {
            "source": evidence.source,
            "days": evidence.days,
            "also": list(evidence.others),
            "settings": setting.lines,
            "served": setting.served,
            "tuning": dict(tuned.manifest),
            "share_error": _share_error(tuned.replayed),
            "seconds_error": setting.calibration and setting.calibration.error,
        },
        causes=before.causes,
        parts=before.parts,
        trials=tuned.requests,
    )


@dataclass(frozen=True, slots=True)
class Setting:
    """What the requests are replayed with.

    Attributes:
        folder: the model that counts tokens.
        served: the model to name in the line to run; empty if none is known.
        layout: None for that of the model.
        strategy: None for the one that served the recording.
        rules: None for those that served the recording.
        costs: calibrated on this machine, or of one speed.
        lines: what was taken, and how to name something else.
    """

    folder: ModelFolder
    served: str
    layout: LayoutLike | None
    strategy: str | None
    rules: str | None
    costs: Costs
    lines: list[str]

    @classmethod
    def of(
        cls,
        evidence: Evidence,
        model: str | ModelFolder | None,
        layout: LayoutLike | None,
        memory: int,
    ) -> Self:
        """Take what is given and found, and assume the rest.

        Args:
            evidence: the requests, and the running server.
            model: see :func:`doctor`.
            layout: see :func:`doctor`.
            memory: bytes.

        Raises:
            MlxlabError: an unknown name.
        """
        folder, served = _find_model(evidence, model)
        lines = []
        if not served:
            lines.append(f"tokens are those of the bundled model {folder.name}")
            if layout is None:
                layout = _LAYOUT
                lines.append(f"keys and values of {layout}: name yours with --layout")
        strategy, rules, line = _in_use(evidence)
        lines += [line, f"{format_size(memory)} for keys and values: see --memory"]
        costs, basis = _costs(evidence, folder, served)
        return cls(folder, served, layout, strategy, rules, costs, [*lines, *basis])

    @property
    def calibration(self) -> CostModel | None:
        """The costs, if they were calibrated on this machine."""
        return self.costs if isinstance(self.costs, CostModel) else None


def _find_model(
    evidence: Evidence, model: str | ModelFolder | None
) -> tuple[ModelFolder, str]:
    """Return the model that counts tokens, and the name of the one to serve."""
    if isinstance(model, ModelFolder):
        return model, model.name
    if model is not None:
        return find_model(model), model
    if evidence.endpoint is not None and evidence.endpoint.model:
        try:
            return find_model(evidence.endpoint.model), evidence.endpoint.model
        except MlxlabError:
            pass  # it may have been moved since; its server still runs
    return find_model(BUNDLED), ""


def _in_use(evidence: Evidence) -> tuple[str | None, str | None, str]:
    """Return the strategy and the rules in use, and a line on them."""
    answers = (e.response for trace in _recorded(evidence) for e in trace.inference)
    if any(answer and answer.configuration for answer in answers):
        return None, None, "today: the strategy and rules that served the recording"
    endpoint = evidence.endpoint
    if endpoint is not None and endpoint.strategy:
        named = f"{endpoint.strategy}, rules {endpoint.rules}"
        line = f"today: as the running server, {named}"
        return endpoint.strategy, endpoint.rules, line
    return _USUAL, None, f"today: {_USUAL}, as most local servers cache"


def _costs(
    evidence: Evidence, folder: ModelFolder, served: str
) -> tuple[Costs, list[str]]:
    """Return what seconds are estimated from, and lines on it."""
    if served and (own := recall_costs(folder.digest, CHUNK)):
        return own, []
    name = served or "NAME"
    better = f"measure yours: mlxlab calibrate --model {name}"
    if (speed := _recorded_speed(evidence)) is not None:
        line = f"seconds: {speed:,.0f} prompt tokens a second, as in the recording"
        return _Speed(speed), [f"{line}; {better}"]
    if other := latest_costs(CHUNK, without=find_model(BUNDLED).digest):
        line = f"seconds: the calibration of another model, {other.day}"
        return other, [f"{line}; {better}"]
    line = f"seconds: {_SPEED:,.0f} prompt tokens a second; {better}"
    return _Speed(_SPEED), [line]


def _recorded_speed(evidence: Evidence) -> float | None:
    """Return the computed tokens a second of recorded answers of our server."""
    tokens, seconds = 0, 0.0
    for trace in _recorded(evidence):
        for exchange in trace.inference:
            answer = exchange.response
            if answer is None or answer.timing is None or answer.message is None:
                continue
            usage = answer.message.get("usage") or {}
            tokens += sum(int(usage.get(part) or 0) for part in _COMPUTED)
            seconds += answer.timing.prefill
    return tokens / seconds if tokens and seconds else None


def _recorded(evidence: Evidence) -> list[Trace]:
    return [trace for trace in evidence.traces if isinstance(trace, Trace)]


def _rules_for(before: Misses) -> str:
    """Return the rules on by default, and those that save what today's lose."""
    causes = before.summary()
    costly = causes.tokens >= _WORTH * before.requests.prompt_tokens.sum()
    remedies = causes.remedy[costly & causes.remedy.str.startswith(RULE)]
    names = remedies.str.removeprefix(RULE)
    return label_rules(parse_rules(",".join(["all", *names])))


def _join(before: Misses, tuned: Tuning, costs: Costs) -> pd.DataFrame:
    """Return each request with what is reused of it, before and after."""
    names = ["session", "request"]
    after = tuned.replayed.drop(columns="prompt_tokens")
    rows = before.requests.merge(
        after, on=names, suffixes=("", "_after"), validate="one_to_one"
    )
    rows = rows.rename(columns={"reused_tokens_after": "reused_after"})
    for seconds, reused in _TTFT.items():
        pairs = zip(rows[reused], rows.prompt_tokens, strict=True)
        rows[seconds] = [costs.ttft_s(int(r), int(n)) for r, n in pairs]
    return rows


def _share_error(requests: pd.DataFrame) -> float:
    """Return the standard error of the reused share.

    By the bootstrap over sessions, whose requests are alike (Efron, 1979); over
    requests where there is one session only.
    """
    sessions = requests.session.str.partition("/")[0]
    if sessions.nunique() < 2:
        sessions = requests.index.to_series()
    sums = requests.groupby(sessions)[["reused_tokens", "prompt_tokens"]].sum()
    drawn = np.random.default_rng(0).integers(len(sums), size=(_RESAMPLES, len(sums)))
    reused, prompt = (sums[name].to_numpy()[drawn].sum(axis=1) for name in sums)
    return float(np.std(reused / prompt))
