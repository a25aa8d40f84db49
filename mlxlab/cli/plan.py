"""``mlxlab plan``: how many agents this machine carries."""

from __future__ import annotations

from typing import Annotated

import typer

import mlxlab as ml
from mlxlab.cli.app import DECIDE, app, screen_of
from mlxlab.cli.completion import complete_strategies
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
    find_folder,
    given,
    known_costs,
    named_traces,
    parse_seconds,
)
from mlxlab.cli.screen import Answer


@app.command(rich_help_panel=DECIDE)
def plan(
    context: typer.Context,
    traces: AnyTraces = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="Serve with this strategy, name[:key=value,...][@rules]; paged by "
            "default.",
            autocompletion=complete_strategies,
        ),
    ] = None,
    memory: Memory = None,
    ttft: Annotated[
        str | None,
        typer.Option(
            metavar="SECONDS",
            help="Let 90 % of the first tokens come within this, such as 5s; 5s by "
            "default.",
        ),
    ] = None,
    most: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Try this many agents; 64 by default."),
    ] = None,
    model: Model = None,
    layout: Layout = None,
    rules: Rules = None,
    chunk: Chunk = None,
    fill: Fill = False,
    json: Json = None,
    plots: Plots = None,
) -> Answer:
    """Find how many agents this machine carries."""
    limit = None if ttft is None else parse_seconds(ttft, "--ttft")
    screen, folder = screen_of(context), find_folder(model)
    found = ml.plan(
        named_traces(traces, screen, fill),
        model=folder,
        layout=layout,
        costs=known_costs(folder, chunk=chunk, layout=layout),
        progress=screen.progress,
        **given(strategy=strategy, memory=memory, ttft=limit, most=most, rules=rules),
    )
    written = []
    if plots:
        from mlxlab.analysis.plots import save_capacity_plots

        written = save_capacity_plots(found, plots)
    return Answer(found, found.to_dict, json, written=written)
