"""From traces to one HTML file: what was reused, why the rest was not, what to set.

Puts together results and the figures of :mod:`mlxlab.analysis.plots`; computes
nothing itself.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from mlxlab.analysis.compare import compare
from mlxlab.analysis.misses.explain import Misses, explain, format_breaks, format_causes
from mlxlab.analysis.plots import plot_causes, plot_hit_rate, plot_strip
from mlxlab.analysis.tables import (
    format_ceilings,
    format_summary,
    list_ceilings,
    list_notes,
    summarize,
    title_of,
)
from mlxlab.analysis.tune import tune
from mlxlab.errors import MlxlabError
from mlxlab.files import replaced
from mlxlab.models.folder import BUNDLED, ModelFolder, find_model
from mlxlab.replay.cost_model import CostModel
from mlxlab.replay.specs import DEFAULT_SPECS
from mlxlab.strategies.base import CAPACITY
from mlxlab.traces import Trace

__all__ = ["write_page"]

#: What most local servers do today, and what they could do.
EXPLAINED = ("prefix@none", "paged")
_DPI = 110
#: Rows of strips that can still be read.
_MOST_STRIPS = 80


def write_page(
    traces: Trace | Sequence[Trace],
    path: str | Path,
    *,
    model: str | ModelFolder = BUNDLED,
    strategies: str = DEFAULT_SPECS,
    rules: str = "all",
    memory: int = CAPACITY,
    costs: CostModel | None = None,
    text: str = "redacted",
    progress: bool = True,
) -> None:
    """Simulate traces and write what comes of it as one HTML file.

    Args:
        traces: one or more.
        path: the file.
        model: whose tokenizer and template count.
        strategies: to compare.
        rules: for strategies that name none of their own.
        memory: bytes for keys and values.
        costs: what seconds are estimated by.
        text: of blocks that changed: ``redacted`` (secrets replaced), ``full`` or
            ``none``.
        progress: whether to show bars.

    Raises:
        MlxlabError: anything unknown or unreadable, or the file cannot be written.
    """
    traces = [traces] if isinstance(traces, Trace) else list(traces)
    folder = find_model(model) if isinstance(model, str) else model
    common: dict[str, Any] = {"model": folder, "rules": rules, "costs": costs}
    rows = compare(
        traces,
        strategies=strategies,
        capacity=memory,
        simulate=True,
        progress=progress,
        **common,
    )
    explained = [
        explain(
            traces,
            strategy=strategy,
            capacity=memory,
            text=text,
            progress=progress,
            **common,
        )
        for strategy in EXPLAINED
    ]
    found = tune(traces, memory=memory, progress=progress, **common)
    page = _template().render(
        title=f"{title_of(rows)}; each trace has its own cache",
        day=datetime.now(UTC).date(),
        summary=_table(format_summary(summarize(rows))),
        possible=_table(format_ceilings(list_ceilings(rows))),
        hit_rate=_picture(plot_hit_rate(rows)),
        notes=list_notes(rows),
        explained=[_section(misses) for misses in explained],
        recommended=found._repr_html_(),
        manifest=json.dumps(rows.attrs["manifest"], indent=1),
    )
    try:
        with replaced(Path(path)) as file:
            file.write(page.encode())
    except OSError as error:
        raise MlxlabError(f"{path}: {error.strerror}; give a file to write") from None


def _section(misses: Misses) -> dict[str, Any]:
    """What the page says of one strategy's misses."""
    few = len(misses.breaks) <= _MOST_STRIPS
    return {
        "name": misses.strategy,
        "title": misses.title.partition("\n")[2],
        "causes": _table(format_causes(misses.summary())),
        "causes_plot": _picture(plot_causes(misses)),
        "strip": _picture(plot_strip(misses)) if few else "",
        "breaks": list(format_breaks(misses.breaks)),
    }


def _table(frame: pd.DataFrame) -> str:
    heading = {"-\n": "", "\n": " "}
    shown = frame.copy()
    for old, new in heading.items():
        shown.columns = shown.columns.str.replace(old, new)
    return str(shown.to_html(index=False, border=0))


def _picture(figure: Figure) -> str:
    """A figure as the address of an image that is in the page itself."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _template() -> Any:
    source = files("mlxlab.analysis").joinpath("report.html").read_text()
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(source)
