"""Commands that replay traces and analyse the results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from mlxlab.analysis.compare import compare as compare_traces
from mlxlab.analysis.fidelity.run import QUANTIZED, parse_quantized
from mlxlab.analysis.fidelity.run import fidelity as measure_fidelity
from mlxlab.analysis.forecast import forecast
from mlxlab.analysis.misses.run import misses as find_misses
from mlxlab.analysis.tables import lay_out
from mlxlab.cli.app import app, console, print_names, print_result
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
from mlxlab.traces.bundled import DEFAULT_TRACE
from mlxlab.traces.open import open_recorded

#: Characters that the table of ``fidelity`` needs.
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
    folder = find_model(model)
    costs = recall_costs(folder.digest, chunk) if simulate else None
    settings: dict[str, Any] = {
        "model": folder,
        "strategies": strategies,
        "rules": rules,
        "capacity": capacity,
        "chunk": chunk,
    }
    recorded = open_recorded(traces or [DEFAULT_TRACE])
    if not simulate:
        takes = forecast(recorded, **settings)
        console.print(f"This takes {takes}; --simulate counts tokens in seconds.")
    found = compare_traces(recorded, simulate=simulate, costs=costs, **settings)
    print_result(found)
    if simulate and costs is None:
        hint = f"No seconds: mlxlab calibrate --model {model} measures what they take."
        console.print(hint, highlight=False, soft_wrap=True)
    written = []
    if json:
        found.to_json(json)
        written.append(json)
    if plots:
        from mlxlab.analysis.plots import save_plots

        written += save_plots(found, plots)
    if written:
        names = ", ".join(map(str, written))
        console.print(f"Written: {names}", highlight=False, markup=False)


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
        bool, typer.Option("--by-edit", help="Print a table for each edit.")
    ] = False,
    json: Json = None,
    plots: Plots = None,
) -> None:
    """Score the answers that strategies give on edited traces."""
    found = measure_fidelity(
        traces or [DEFAULT_TRACE],
        model=model,
        strategies=strategies,
        rules=rules,
        edits=edits,
        quantized=parse_quantized(quantized),
        tokens=tokens,
        chunk=chunk,
    )
    # Where there is no terminal there is no width to keep to.
    wide = console if console.is_terminal else Console(width=_FINDINGS_WIDTH)
    print_result(found, wide)
    if by_edit:
        for edit, frame in found.edit_tables().items():
            wide.print(f"\nedit {edit}", highlight=False)
            wide.print(lay_out(frame, wide.width))
    if json:
        found.to_json(json)
    if plots:
        from mlxlab.analysis.plots import save_fidelity_plots

        save_fidelity_plots(found, plots)


@app.command()
def misses(
    traces: AnyTraces = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="name[:key=value,...][@rules]; as served when recorded, else paged."
        ),
    ] = None,
    rules: Annotated[
        str | None,
        typer.Option(help="As for other commands; as served when recorded, else all."),
    ] = None,
    model: Model = BUNDLED,
    token_bytes: TokenBytes = None,
    capacity: Capacity = None,
    users: Annotated[
        int | None,
        typer.Option(min=1, help="Traces replayed at the same time into one cache."),
    ] = None,
    text: Text = "redacted",
    by_request: Annotated[
        bool, typer.Option("--by-request", help="Print what broke each request.")
    ] = False,
    json: Json = None,
    plots: Plots = None,
) -> None:
    """Say why prompt tokens had to be computed, and what would have saved them."""
    folder = find_model(model)
    found = find_misses(
        traces or [DEFAULT_TRACE],
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
    print_result(found)
    if by_request:
        for line in found.request_lines():
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    if json:
        found.to_json(json)
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
    from mlxlab.analysis.html_report import report

    folder = find_model(model)
    report(
        traces or [DEFAULT_TRACE],
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
