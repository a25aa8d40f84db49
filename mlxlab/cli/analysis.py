"""Commands that replay traces and analyse the results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from pandas import DataFrame
from rich.console import Console

from mlxlab.analysis.compare import compare as compare_traces
from mlxlab.analysis.conclusion import conclude
from mlxlab.analysis.fidelity.result import Fidelity, format_findings
from mlxlab.analysis.fidelity.run import QUANTIZED, parse_quantized
from mlxlab.analysis.fidelity.run import fidelity as judge_answers
from mlxlab.analysis.forecast import forecast
from mlxlab.analysis.misses.explain import Misses, format_breaks, format_causes
from mlxlab.analysis.misses.explain import explain as explain_misses
from mlxlab.analysis.segments import count_segments
from mlxlab.analysis.tables import (
    format_ceilings,
    format_summary,
    list_ceilings,
    list_notes,
    summarize,
    title_of,
    write_json,
)
from mlxlab.cli.app import app, console, print_names, table
from mlxlab.cli.options import (
    AnyTraces,
    Capacity,
    Chunk,
    Json,
    Memory,
    Model,
    Plots,
    Rules,
    Strategies,
    Text,
    TokenBytes,
    Traces,
)
from mlxlab.models.folder import BUNDLED, find_model
from mlxlab.rendering.rules import RULES
from mlxlab.replay.cost_model import CHUNK, recall_costs
from mlxlab.replay.specs import (
    DEFAULT_SPECS,
    FIDELITY_SPECS,
)
from mlxlab.strategies import STRATEGIES
from mlxlab.strategies.base import CAPACITY
from mlxlab.traces import load_trace
from mlxlab.traces.bundled import DEFAULT_TRACE
from mlxlab.traces.open import open_traces

#: Columns that the table of ``fidelity`` needs.
_FINDINGS_WIDTH = 100


@app.command()
def compare(
    traces: Traces = None,
    model: Model = BUNDLED,
    strategies: Strategies = DEFAULT_SPECS,
    rules: Rules = "all",
    capacity: Capacity = None,
    simulate: Annotated[
        bool, typer.Option(help="Count tokens only; no model is loaded.")
    ] = False,
    chunk: Chunk = CHUNK,
    json: Json = None,
    plots: Plots = None,
) -> None:
    """Replay traces through strategies and print what each of them reused."""
    loaded = [load_trace(trace) for trace in traces or [DEFAULT_TRACE]]
    folder = find_model(model)
    costs = recall_costs(folder.digest, chunk) if simulate else None
    settings: dict[str, Any] = {
        "model": folder,
        "strategies": strategies,
        "rules": rules,
        "capacity": capacity,
        "chunk": chunk,
    }
    if not simulate:
        takes = forecast(loaded, **settings)
        console.print(f"This takes {takes}; --simulate counts tokens in seconds.")
    rows = compare_traces(loaded, simulate=simulate, costs=costs, **settings)
    _print_summary(rows)
    if simulate and costs is None:
        hint = f"No seconds: mlxlab calibrate --model {model} measures what they take."
        console.print(hint, highlight=False, soft_wrap=True)
    written = []
    if json:
        write_json(rows, json)
        written.append(json)
    if plots:
        from mlxlab.analysis.plots import save_plots

        segments = count_segments(loaded, model=model, rules=rules)
        written += save_plots(rows, segments, plots)
    _print_conclusion(rows, written)


@app.command()
def fidelity(
    traces: Traces = None,
    model: Model = BUNDLED,
    strategies: Strategies = FIDELITY_SPECS,
    rules: Rules = "all",
    edits: Annotated[
        str,
        typer.Option(help="Edits to make: classes, shifts, none, or names."),
    ] = "classes",
    quantized: Annotated[
        str, typer.Option(help="Bits to round weights to for scale, or none.")
    ] = ",".join(map(str, QUANTIZED)),
    tokens: Annotated[
        int, typer.Option(min=1, help="Most tokens of each answer to compare.")
    ] = 64,
    chunk: Chunk = CHUNK,
    by_edit: Annotated[
        bool, typer.Option("--by-edit", help="Tell the edits apart.")
    ] = False,
    json: Json = None,
    plots: Plots = None,
) -> None:
    """Score the answers that strategies give on edited traces."""
    found = judge_answers(
        [load_trace(trace) for trace in traces or [DEFAULT_TRACE]],
        model=model,
        strategies=strategies,
        rules=rules,
        edits=edits,
        quantized=parse_quantized(quantized),
        tokens=tokens,
        chunk=chunk,
    )
    _print_findings(found, by_edit=by_edit)
    if json:
        found.write_json(json)
    if plots:
        from mlxlab.analysis.plots import save_fidelity_plots

        save_fidelity_plots(found, plots)


@app.command()
def misses(
    traces: AnyTraces = None,
    strategy: Annotated[
        str, typer.Option(help="name[:key=value,...][@rules] to replay through.")
    ] = "paged",
    rules: Rules = "all",
    model: Model = BUNDLED,
    token_bytes: TokenBytes = None,
    capacity: Capacity = None,
    users: Annotated[
        int | None,
        typer.Option(min=1, help="Traces replayed at the same time into one cache."),
    ] = None,
    text: Text = "redacted",
    by_request: Annotated[
        bool, typer.Option("--by-request", help="Tell what broke each request.")
    ] = False,
    json: Json = None,
    plots: Plots = None,
) -> None:
    """Say why prompt tokens had to be computed, and what would have saved them."""
    folder = find_model(model)
    found = explain_misses(
        open_traces(traces or [DEFAULT_TRACE]),
        strategy=strategy,
        model=folder,
        token_bytes=token_bytes,
        rules=rules,
        capacity=capacity,
        users=users,
        # Of a model of other sizes nothing was measured.
        costs=None if token_bytes else recall_costs(folder.digest, CHUNK),
        text=text,
    )
    _print_misses(found, by_request=by_request)
    if json:
        found.write_json(json)
    if plots:
        from mlxlab.analysis.plots import save_misses_plots

        save_misses_plots(found, plots)


@app.command("report")
def write_report(
    traces: Traces = None,
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path(
        "report.html"
    ),
    model: Model = BUNDLED,
    strategies: Strategies = DEFAULT_SPECS,
    rules: Rules = "all",
    memory: Memory = CAPACITY,
    text: Text = "redacted",
) -> None:
    """Write a page that stands alone: what was reused, why not more, what to set."""
    from mlxlab.analysis.html_report import write_page

    folder = find_model(model)
    write_page(
        [load_trace(trace) for trace in traces or [DEFAULT_TRACE]],
        out,
        model=folder,
        strategies=strategies,
        rules=rules,
        memory=memory,
        costs=recall_costs(folder.digest, CHUNK),
        text=text,
    )
    console.print(out, highlight=False)


@app.command("strategies")
def list_strategies() -> None:
    """List the strategies, and their names in the literature."""
    print_names({s.name: f"{s.summary}\n{s.literature}" for s in STRATEGIES.values()})


@app.command("rules")
def list_rules() -> None:
    """List the canonicalisation rules, a line each."""
    print_names({rule.name: rule.summary for rule in RULES.values()})


def _print_summary(rows: DataFrame) -> None:
    console.print(f"{title_of(rows)}; each trace has its own cache", highlight=False)
    console.print(table(format_summary(summarize(rows))))
    console.print(table(format_ceilings(list_ceilings(rows))))
    for note in list_notes(rows):
        console.print(note, highlight=False)


def _print_conclusion(rows: DataFrame, written: Sequence[Path]) -> None:
    lines = conclude(rows)
    if written:
        lines.append(f"Written: {', '.join(map(str, written))}")
    for line in lines:
        console.print(line, highlight=False, markup=False)


def _print_findings(found: Fidelity, *, by_edit: bool) -> None:
    # Where there is no terminal there is no width to keep to.
    wide = console if console.is_terminal else Console(width=_FINDINGS_WIDTH)
    wide.print(found.title, highlight=False)
    if by_edit:
        for edit, summary in found.summary(("edit", "variant")).groupby("edit"):
            wide.print(f"\nedit {edit}", highlight=False)
            wide.print(table(format_findings(summary.droplevel("edit")), wide))
    else:
        wide.print(table(format_findings(found.summary()), wide))
    for note in list_notes(found.requests):
        wide.print(note, highlight=False)


def _print_misses(found: Misses, *, by_request: bool) -> None:
    console.print(found.title, highlight=False)
    causes = table(format_causes(found.summary()))
    causes.columns[-1].justify = "left"  # words, unlike the numbers before
    console.print(causes)
    for note in list_notes(found.causes):
        console.print(note, highlight=False)
    if by_request:
        # Wire text may hold what rich takes for markup.
        for line in format_breaks(found.breaks):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
