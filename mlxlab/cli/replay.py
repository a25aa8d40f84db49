"""Commands that replay traces and judge what comes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pandas import DataFrame
from rich.console import Console

from mlxlab.canonical import RULES
from mlxlab.cli.app import (
    app,
    console,
    parse_counts,
    parse_sizes,
    print_names,
    table,
)
from mlxlab.models import BUNDLED, find_model
from mlxlab.replay.compare import compare as compare_traces
from mlxlab.replay.contenders import (
    DEFAULT_CONTENDERS,
    EXACT_CONTENDERS,
    FIDELITY_CONTENDERS,
)
from mlxlab.replay.costs import format_check, format_costs, recall_costs
from mlxlab.replay.fidelity import RULER, parse_ruler
from mlxlab.replay.fidelity import fidelity as judge_answers
from mlxlab.replay.findings import Fidelity, format_findings
from mlxlab.replay.report import (
    format_summary,
    list_notes,
    summarize,
    title_of,
    write_json,
)
from mlxlab.replay.segments import count_segments
from mlxlab.replay.sweep import format_sweep, sweep_title
from mlxlab.replay.sweep import sweep as run_sweep
from mlxlab.strategies import STRATEGIES
from mlxlab.traces import load_trace
from mlxlab.traces.bundled import DEFAULT_TRACE
from mlxlab.traces.opening import open_traces

#: Tokens computed at a time where nobody says otherwise.
CHUNK = 2048

#: Columns that the table of ``fidelity`` needs.
_FINDINGS_WIDTH = 100


@app.command()
def compare(
    traces: Annotated[
        list[str] | None,
        typer.Argument(help="Trace files, or names of recorded traces."),
    ] = None,
    model: Annotated[str, typer.Option(help="Folder or hub repository.")] = BUNDLED,
    strategies: Annotated[
        str, typer.Option(help="name[:key=value,...][@rules],... to compare.")
    ] = DEFAULT_CONTENDERS,
    rules: Annotated[
        str, typer.Option(help="all, none, names, or exceptions: -name,...")
    ] = "all",
    simulate: Annotated[
        bool, typer.Option(help="Count tokens only; no model is loaded.")
    ] = False,
    chunk: Annotated[
        int, typer.Option(min=1, help="Tokens computed at a time.")
    ] = 2048,
    json: Annotated[
        Path | None, typer.Option(help="Write manifest and rows here.")
    ] = None,
    plots: Annotated[
        Path | None, typer.Option(help="Write PNG plots into this folder.")
    ] = None,
) -> None:
    """Replay traces through strategies and print what each of them reused."""
    loaded = [load_trace(trace) for trace in traces or [DEFAULT_TRACE]]
    folder = find_model(model)
    costs = recall_costs(folder.digest, chunk) if simulate else None
    rows = compare_traces(
        loaded,
        model=folder,
        strategies=strategies,
        rules=rules,
        simulate=simulate,
        costs=costs,
        chunk=chunk,
    )
    _print_summary(rows)
    if simulate and costs is None:
        hint = f"No seconds: mlxlab calibrate --model {model} measures what they take."
        console.print(hint, highlight=False, soft_wrap=True)
    if json:
        write_json(rows, json)
    if plots:
        from mlxlab.plots import save_plots

        save_plots(rows, count_segments(loaded, model=model, rules=rules), plots)


@app.command()
def calibrate(
    model: Annotated[str, typer.Option(help="Folder or hub repository.")] = BUNDLED,
    tokens: Annotated[
        int, typer.Option(min=1, help="Of the longest prompt to measure.")
    ] = 20_000,
    seconds: Annotated[
        float, typer.Option(min=0, help="After which no more is measured.")
    ] = 60.0,
    chunk: Annotated[
        int, typer.Option(min=1, help="Tokens computed at a time.")
    ] = 2048,
    check: Annotated[
        list[str] | None,
        typer.Option(help="Trace to replay live too, to see how far off it is."),
    ] = None,
) -> None:
    """Measure what prefill and restore take here, so that simulations tell seconds."""
    from mlxlab.replay.calibrate import calibrate as measure
    from mlxlab.replay.calibrate import check_costs

    folder = find_model(model)
    costs = measure(folder, chunk=chunk, tokens=tokens, seconds=seconds)
    console.print(table(format_costs(costs), gap=1))
    points = f"{len(costs.points)} points, {costs.error:.1%} off in the median"
    console.print(f"{points}; {costs.device}, BLAS: {costs.blas}", highlight=False)
    if check:
        loaded = [load_trace(trace) for trace in check]
        console.print(table(format_check(check_costs(costs, loaded, model=folder)), 1))


@app.command()
def fidelity(
    traces: Annotated[
        list[str] | None,
        typer.Argument(help="Trace files, or names of recorded traces."),
    ] = None,
    model: Annotated[str, typer.Option(help="Folder or hub repository.")] = BUNDLED,
    strategies: Annotated[
        str, typer.Option(help="name[:key=value,...][@rules],... to judge.")
    ] = FIDELITY_CONTENDERS,
    rules: Annotated[
        str, typer.Option(help="all, none, names, or exceptions: -name,...")
    ] = "all",
    edits: Annotated[
        str,
        typer.Option(help="Edits to make: classes, shifts, none, or names."),
    ] = "classes",
    ruler: Annotated[
        str, typer.Option(help="Bits to round weights to for scale, or none.")
    ] = ",".join(map(str, RULER)),
    tokens: Annotated[
        int, typer.Option(min=1, help="Most tokens of each answer to compare.")
    ] = 64,
    chunk: Annotated[
        int, typer.Option(min=1, help="Tokens computed at a time.")
    ] = 2048,
    by_edit: Annotated[
        bool, typer.Option("--by-edit", help="Tell the edits apart.")
    ] = False,
    json: Annotated[
        Path | None, typer.Option(help="Write manifest and rows here.")
    ] = None,
    plots: Annotated[
        Path | None, typer.Option(help="Write PNG plots into this folder.")
    ] = None,
) -> None:
    """Judge the answers that strategies give on edited traces."""
    found = judge_answers(
        [load_trace(trace) for trace in traces or [DEFAULT_TRACE]],
        model=model,
        strategies=strategies,
        rules=rules,
        edits=edits,
        ruler=parse_ruler(ruler),
        tokens=tokens,
        chunk=chunk,
    )
    _print_findings(found, by_edit=by_edit)
    if json:
        found.write_json(json)
    if plots:
        from mlxlab.plots import save_fidelity_plots

        save_fidelity_plots(found, plots)


@app.command()
def sweep(
    traces: Annotated[
        list[str],
        typer.Argument(help="Recorded or hashed traces, or folders of them."),
    ],
    strategies: Annotated[
        str, typer.Option(help="name[:key=value,...][@rules],... to simulate.")
    ] = EXACT_CONTENDERS,
    capacities: Annotated[
        str, typer.Option(help="Bytes that strategies may hold: 1GiB,4GiB,...")
    ] = "4GiB",
    users: Annotated[
        str, typer.Option(help="Traces replayed at the same time: 1,8,...")
    ] = "1",
    model: Annotated[str, typer.Option(help="Folder or hub repository.")] = BUNDLED,
    token_bytes: Annotated[
        str | None,
        typer.Option(help="Keys and values of one token, if other than the model's."),
    ] = None,
    rules: Annotated[
        str, typer.Option(help="all, none, names, or exceptions: -name,...")
    ] = "all",
    out: Annotated[
        Path | None, typer.Option(help="Keep results here, and go on from them.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a Dask cluster, or here.")
    ] = None,
) -> None:
    """Simulate strategies by capacities and users, beside what is possible."""
    frame = run_sweep(
        open_traces(traces),
        strategies=strategies,
        capacities=parse_sizes(capacities, "capacities"),
        users=parse_counts(users, "users"),
        model=model,
        token_bytes=parse_sizes(token_bytes, "token-bytes")[0] if token_bytes else None,
        rules=rules,
        folder=out,
        scheduler=scheduler,
    )
    console.print(sweep_title(frame), highlight=False)
    console.print(table(format_sweep(frame), gap=1))


@app.command()
def tune(
    traces: Annotated[
        list[str],
        typer.Argument(help="Recorded or hashed traces, or folders of them."),
    ],
    memory: Annotated[str, typer.Option(help="For keys and values: 16GiB.")],
    model: Annotated[str, typer.Option(help="Folder or hub repository.")] = BUNDLED,
    token_bytes: Annotated[
        str | None,
        typer.Option(help="Keys and values of one token, if other than the model's."),
    ] = None,
    rules: Annotated[
        str, typer.Option(help="all, none, names, or exceptions: -name,...")
    ] = "all",
    users: Annotated[
        int, typer.Option(min=1, help="Traces replayed at the same time.")
    ] = 1,
    kld: Annotated[
        float | None,
        typer.Option(
            min=0, help="Accept approximate strategies measured to be below: 99.9 %."
        ),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="How many to try.")] = 60,
    seed: Annotated[int, typer.Option(help="Of the search.")] = 0,
) -> None:
    """Recommend strategy and parameters for traffic under a memory budget."""
    from mlxlab.replay.tune import tune as search

    folder = find_model(model)
    found = search(
        open_traces(traces),
        memory=parse_sizes(memory, "memory")[0],
        model=folder,
        token_bytes=parse_sizes(token_bytes, "token-bytes")[0] if token_bytes else None,
        rules=rules,
        users=users,
        costs=recall_costs(folder.digest, CHUNK),
        kld=kld,
        trials=trials,
        seed=seed,
    )
    for line in found.lines():
        console.print(line, highlight=False, markup=False, soft_wrap=True)


@app.command("strategies")
def list_strategies() -> None:
    """List the strategies, a line each."""
    print_names({s.name: s.summary for s in STRATEGIES.values()})


@app.command("rules")
def list_rules() -> None:
    """List the canonicalisation rules, a line each."""
    print_names({rule.name: rule.summary for rule in RULES.values()})


def _print_summary(rows: DataFrame) -> None:
    console.print(title_of(rows), highlight=False)
    console.print(table(format_summary(summarize(rows)), gap=0))
    for note in list_notes(rows):
        console.print(note, highlight=False)


def _print_findings(found: Fidelity, *, by_edit: bool) -> None:
    # Where there is no terminal there is no width to keep to.
    wide = console if console.is_terminal else Console(width=_FINDINGS_WIDTH)
    wide.print(found.title, highlight=False)
    if by_edit:
        for edit, summary in found.summary(("edit", "contender")).groupby("edit"):
            wide.print(f"\nedit {edit}", highlight=False)
            wide.print(table(format_findings(summary.droplevel("edit")), gap=0))
    else:
        wide.print(table(format_findings(found.summary()), gap=0))
    for note in list_notes(found.requests):
        wide.print(note, highlight=False)
