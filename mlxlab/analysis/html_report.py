"""Writes one HTML file: the verdict, what to run, and what it rests on."""

from __future__ import annotations

import json
from base64 import b64encode
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from importlib.resources import files
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined

from mlxlab.analysis.compare import compare
from mlxlab.analysis.comparison import Comparison
from mlxlab.analysis.doctor.evidence import Evidence, find_evidence
from mlxlab.analysis.doctor.result import Diagnosis
from mlxlab.analysis.doctor.run import Setting, doctor
from mlxlab.analysis.misses.causes import CauseKind
from mlxlab.analysis.misses.result import MOST_STRIPS, Misses
from mlxlab.analysis.misses.run import misses
from mlxlab.analysis.plots import plot_causes, plot_gain, plot_strip
from mlxlab.analysis.plots.picture import Picture
from mlxlab.analysis.tables import html_table
from mlxlab.errors import MlxlabError
from mlxlab.files import is_writable, written
from mlxlab.models.folder import ModelFolder
from mlxlab.models.geometry import LayoutLike
from mlxlab.printable import printable
from mlxlab.replay.specs import DEFAULT_SPECS, Strategies, StrategySpec, parse_specs
from mlxlab.sizes import Size, read_size
from mlxlab.strategies.base import CAPACITY
from mlxlab.traces.open import Traces, open_recorded

__all__ = ["Worst", "find_worst", "report"]

#: Most strips at the top of the page.
_STRIPS = 12
_KEY = ["session", "request"]


def report(
    traces: Traces | Evidence | None,
    out: str | Path,
    *,
    found: Diagnosis | None = None,
    strategies: Strategies = DEFAULT_SPECS,
    model: str | ModelFolder | None = None,
    layout: LayoutLike | None = None,
    rules: str = "all",
    memory: Size = CAPACITY,
    text: str = "redacted",
    progress: bool = True,
) -> None:
    """Diagnose traces and write verdict, advice and evidence as one HTML file.

    Args:
        traces: recorded traces, see :func:`mlxlab.doctor`.
        out: the file to write.
        found: the diagnosis of these traces in the same setting; None to make it.
        strategies: to compare with today's and the recommended one.
        model: see :func:`mlxlab.doctor`.
        layout: see :func:`mlxlab.doctor`.
        rules: default rules, for compared strategies without ``@rules``.
        memory: bytes or a size such as ``16GiB``, for keys and values.
        text: of changed blocks: ``redacted`` (secrets replaced), ``full`` or ``none``.
        progress: whether to show bars.

    Raises:
        MlxlabError: an unknown name, or a file that cannot be read or written.
    """
    if not is_writable(Path(out)):
        raise MlxlabError(f"{out}: not writable; give a file to write")
    held = read_size(memory, "memory")
    others = parse_specs(strategies, rules, held)
    if not isinstance(traces, Evidence):
        traces = find_evidence(traces, progress=progress)
    recorded = open_recorded(traces.traces)
    setting = Setting.of(traces, model, layout, held)
    if found is None:
        asked: Any = {"model": model, "layout": layout, "memory": held, "text": text}
        found = doctor(traces, **asked, progress=progress)
    today = StrategySpec.parse(found.strategy, capacity=held)
    best = StrategySpec.parse(found.tuning.best.strategy, found.tuning.rules, held)
    common: dict[str, Any] = {
        "capacity": held,
        "model": setting.folder,
        "layout": setting.layout,
        "users": 1,
        "progress": progress,
    }
    after = misses(
        recorded, best, costs=setting.costs, text=text, propose=False, **common
    )
    named = {spec.name: spec for spec in (today, best, *others)}
    compared = compare(
        recorded, named.values(), simulate=True, costs=setting.calibration, **common
    )
    page = _make_page(found, after, compared)
    try:
        with written(Path(out)) as file:
            file.write(printable(page).encode())
    except OSError as error:
        raise MlxlabError(f"{out}: {error.strerror}; give a file to write") from None


def _make_page(found: Diagnosis, after: Misses, compared: Comparison) -> str:
    package = files("mlxlab.analysis")
    script = package.joinpath("report.js").read_text()
    salts = count()

    def draw(picture: Picture) -> str:
        return picture.to_svg(salt=str(next(salts)))

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"svg": draw, "table": html_table}
    template = environment.from_string(package.joinpath("report.html").read_text())
    return template.render(
        found=found,
        worst=find_worst(found),
        explained={"today": found.today, "as recommended": after},
        compared=compared,
        recommended=found.tuning._repr_html_(),
        manifest=json.dumps(found.manifest, indent=1),
        day=datetime.now(UTC).date(),
        script=script,
        script_hash=b64encode(sha256(script.encode()).digest()).decode(),
        plot_causes=plot_causes,
        plot_gain=plot_gain,
        plot_strip=plot_strip,
        most_strips=MOST_STRIPS,
    )


@dataclass(frozen=True, slots=True)
class Worst:
    """The session that lost most seconds.

    Attributes:
        name: of the session.
        requests: its number of requests.
        share: of the seconds of all sessions, between 0 and 1.
        misses: those of some requests in a row: the ones that lost most.
    """

    name: str
    requests: int
    share: float
    misses: Misses


def find_worst(found: Diagnosis) -> Worst:
    """Find the session that lost most seconds to what had been computed before.

    A session counts with its sub-agents.
    """
    rows = found.requests
    keys = pd.MultiIndex.from_frame(rows[_KEY])
    known = found.causes[found.causes.kind != CauseKind.COMPULSORY]
    lost = known.groupby(_KEY).seconds.sum().reindex(keys, fill_value=0.0)
    lost.index = rows.index
    sessions = rows.session.str.partition("/")[0]
    totals = lost.groupby(sessions, sort=False).sum()
    name = str(totals.idxmax())
    own = lost[sessions == name]
    last = int(own.rolling(_STRIPS, min_periods=1).sum().argmax())
    first = max(0, last - _STRIPS + 1)
    shown = rows.loc[own.index[first : first + _STRIPS]]
    chosen = shown[_KEY]
    part = Misses(
        shown,
        found.bounds,
        found.manifest,
        found.causes.merge(chosen),
        found.parts.merge(chosen),
    )
    share = totals.max() / totals.sum() if totals.sum() else 0.0
    return Worst(name, len(own), share, part)
