"""Commands that help to decide: seconds, memory, the best strategy, its answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import mlxlab as ml
from mlxlab.cli.app import DECIDE, app, screen_of
from mlxlab.cli.completion import complete_edits, complete_traces
from mlxlab.cli.options import (
    AnyTraces,
    Chunk,
    Fill,
    Json,
    Layout,
    Memory,
    Model,
    Plots,
    Rules,
    Strategies,
    Traces,
    check_folder,
    find_folder,
    given,
    known_costs,
    named_traces,
    parse_counts,
    parse_sizes,
    size_option,
)
from mlxlab.cli.screen import Answer, Item

#: Columns that the table of ``fidelity`` needs.
_FIDELITY_WIDTH = 100
#: Seconds that ``calibrate`` measures for by default.
_CALIBRATION_S = 60.0


@app.command(rich_help_panel=DECIDE)
def calibrate(
    context: typer.Context,
    model: Model = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Measure prompts of up to this many tokens; 20000 by default.",
        ),
    ] = None,
    seconds: Annotated[
        float,
        typer.Option(
            metavar="N", min=0, help="Stop measuring after this many seconds."
        ),
    ] = _CALIBRATION_S,
    chunk: Chunk = None,
    check: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TRACE",
            help="Replay this trace live and simulated, and compare the seconds.",
            autocompletion=complete_traces,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a calibration with more points.")
    ] = False,
    json: Json = None,
) -> Answer:
    """Measure what prefill and restore take here.

    Simulations estimate seconds with it from then on. A calibration with more points
    stays, unless forced.
    """
    from mlxlab.analysis.calibrate import check_costs
    from mlxlab.analysis.calibration import format_check

    screen, folder = screen_of(context), find_folder(model)
    screen.note(f"This takes up to {seconds:g} s, set by --seconds.")
    found = ml.calibrate(
        folder,
        seconds=seconds,
        force=force,
        progress=screen.progress,
        **given(tokens=tokens, chunk=chunk),
    )
    tables = []
    if check:
        errors = check_costs(found.costs, check, model=folder, progress=screen.progress)
        tables.append(format_check(errors))
    return Answer(found, found.to_dict, json, tables)


@app.command(rich_help_panel=DECIDE)
def sweep(
    context: typer.Context,
    traces: AnyTraces = None,
    strategies: Strategies = None,
    capacities: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE,...",
            help="Let strategies hold these sizes in turn; 4GiB by default.",
        ),
    ] = None,
    users: Annotated[
        str | None,
        typer.Option(
            metavar="N,...",
            help="Replay these numbers of traces at a time; 1 by default.",
        ),
    ] = None,
    model: Model = None,
    layout: Layout = None,
    rules: Rules = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            callback=check_folder,
            help="Keep results in this folder; continue from them.",
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Use this Dask cluster, or this process: here. By default one "
            "process runs per core.",
        ),
    ] = None,
    fill: Fill = False,
    json: Json = None,
) -> Answer:
    """Simulate strategies by memory and users."""
    screen, folder = screen_of(context), find_folder(model)
    sizes = capacities and parse_sizes(capacities, "--capacities")
    counts = users and parse_counts(users, "--users")
    found = ml.sweep(
        named_traces(traces, screen, fill),
        model=folder,
        layout=layout,
        costs=known_costs(folder, layout=layout),
        folder=out,
        scheduler=scheduler,
        progress=screen.progress,
        **given(strategies=strategies, capacities=sizes, users=counts, rules=rules),
    )
    return Answer(found, found.to_dict, json)


@app.command(rich_help_panel=DECIDE)
def tune(
    context: typer.Context,
    traces: AnyTraces = None,
    memory: Memory = None,
    model: Model = None,
    layout: Layout = None,
    rules: Rules = None,
    users: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Replay this many traces at a time; 1 by default."
        ),
    ] = None,
    kld: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Try approximate strategies too that diverge by at most this many "
            "nats at the 99.9 % quantile, as fidelity measured.",
        ),
    ] = None,
    disk: Annotated[
        int | None,
        size_option("--disk", "Try this much disk too, and say whether it pays."),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Try this many; 60 by default."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            max=2**32 - 1,
            help="Start the search with this number; 0 by default.",
        ),
    ] = None,
    fill: Fill = False,
    json: Json = None,
) -> Answer:
    """Recommend a strategy for traces and memory."""
    screen, folder = screen_of(context), find_folder(model)
    settings = given(
        memory=memory, disk=disk, rules=rules, users=users, trials=trials, seed=seed
    )
    found = ml.tune(
        named_traces(traces, screen, fill),
        model=folder,
        layout=layout,
        costs=known_costs(folder, layout=layout),
        kld=kld,
        progress=screen.progress,
        **settings,
    )
    return Answer(found, found.to_dict, json)


@app.command(rich_help_panel=DECIDE)
def fidelity(
    context: typer.Context,
    traces: Traces = None,
    model: Model = None,
    strategies: Strategies = None,
    rules: Rules = None,
    edits: Annotated[
        str | None,
        typer.Option(
            metavar="EDIT,...",
            help="Make these edits: classes (by default), shifts, none, or names.",
            autocompletion=complete_edits,
        ),
    ] = None,
    quantized: Annotated[
        str | None,
        typer.Option(
            metavar="BITS,...",
            help="Round weights to these bits for scale, or none; 8,5,4,3 by default.",
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Compare up to this many tokens an answer; 64 by default.",
        ),
    ] = None,
    chunk: Chunk = None,
    by_edit: Annotated[
        bool, typer.Option("--by-edit", help="Print a table for each edit.")
    ] = False,
    json: Json = None,
    plots: Plots = None,
) -> Answer:
    """Score answers after approximate reuse."""
    from mlxlab.analysis.fidelity.run import parse_quantized
    from mlxlab.analysis.forecast import forecast_fidelity
    from mlxlab.traces.open import open_recorded

    screen, folder = screen_of(context), find_folder(model)
    recorded = open_recorded(named_traces(traces, screen))
    bits = None if quantized is None else parse_quantized(quantized)
    settings = given(
        strategies=strategies,
        rules=rules,
        edits=edits,
        quantized=bits,
        tokens=tokens,
        chunk=chunk,
    )
    takes = forecast_fidelity(recorded, model=folder, **settings)
    screen.note(f"This takes {takes}; fewer --edits and --strategies take less.")
    found = ml.fidelity(recorded, model=folder, progress=screen.progress, **settings)
    tables: list[Item] = []
    if by_edit:
        for edit, frame in found.edit_tables().items():
            tables += [f"\nedit {edit}", frame]
    written = []
    if plots:
        from mlxlab.analysis.plots import save_fidelity_plots

        written = save_fidelity_plots(found, plots)
    return Answer(found, found.to_dict, json, tables, written, _FIDELITY_WIDTH)
