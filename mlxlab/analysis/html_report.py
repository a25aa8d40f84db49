"""Writes one HTML file: reuse by strategy, causes of misses, recommended settings."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from mlxlab.analysis.compare import compare
from mlxlab.analysis.misses.result import MOST_STRIPS, Misses
from mlxlab.analysis.misses.run import misses
from mlxlab.analysis.plots import plot_causes, plot_strip
from mlxlab.analysis.tables import html_table
from mlxlab.analysis.tune import tune
from mlxlab.errors import MlxlabError
from mlxlab.files import written
from mlxlab.models.folder import BUNDLED, ModelFolder, find_model
from mlxlab.replay.cost_model import CostModel
from mlxlab.replay.specs import DEFAULT_SPECS, Strategies
from mlxlab.sizes import Size
from mlxlab.strategies.base import CAPACITY
from mlxlab.traces.open import Traces, open_recorded

__all__ = ["report"]

#: Strategies whose misses are explained: most local servers today, and the best exact.
EXPLAINED = ("prefix@none", "paged")


def report(
    traces: Traces,
    out: str | Path,
    *,
    strategies: Strategies = DEFAULT_SPECS,
    model: str | ModelFolder = BUNDLED,
    rules: str = "all",
    memory: Size = CAPACITY,
    costs: CostModel | None = None,
    text: str = "redacted",
    progress: bool = True,
) -> None:
    """Simulate traces and write a comparison, misses and a tuning as one HTML file.

    Args:
        traces: recorded traces: names, paths or opened ones, one or several.
        out: the file to write.
        strategies: to compare.
        model: its tokenizer and template count.
        rules: default rules, for strategies without ``@rules``.
        memory: bytes or a size such as ``16GiB``, for keys and values.
        costs: estimates seconds, see :func:`mlxlab.calibrate`.
        text: of changed blocks: ``redacted`` (secrets replaced), ``full`` or ``none``.
        progress: whether to show bars.

    Raises:
        MlxlabError: an unknown name, or a file that cannot be read or written.
    """
    recorded = open_recorded(traces)
    folder = find_model(model) if isinstance(model, str) else model
    common: dict[str, Any] = {
        "model": folder,
        "rules": rules,
        "costs": costs,
        "progress": progress,
    }
    compared = compare(recorded, strategies, capacity=memory, simulate=True, **common)
    explained = [
        misses(recorded, strategy, capacity=memory, text=text, propose=False, **common)
        for strategy in EXPLAINED
    ]
    tuned = tune(recorded, memory=memory, **common)
    page = _template().render(
        title=compared.title,
        assumed=compared.assumed,
        day=datetime.now(UTC).date(),
        tables=[html_table(table) for table in compared.tables()],
        hit_rate=compared.plot().to_svg(),
        notes=compared.notes,
        explained=[_section(result) for result in explained],
        recommended=tuned._repr_html_(),
        manifest=json.dumps(compared.manifest, indent=1),
    )
    try:
        with written(Path(out)) as file:
            file.write(page.encode())
    except OSError as error:
        raise MlxlabError(f"{out}: {error.strerror}; give a file to write") from None


def _section(result: Misses) -> dict[str, Any]:
    """Return the template's values for one strategy's misses."""
    few = len(result.requests) <= MOST_STRIPS
    return {
        "name": result.strategy,
        "title": result.title.partition("\n")[2],
        "causes": html_table(result.tables()[0]),
        "causes_plot": plot_causes(result).to_svg(),
        "strip": plot_strip(result).to_svg() if few else "",
        "requests": list(result.request_lines()),
    }


def _template() -> Any:
    source = files("mlxlab.analysis").joinpath("report.html").read_text()
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(source)
