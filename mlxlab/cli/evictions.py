"""``mlxlab evictions``: which eviction policy helps on a trace."""

from __future__ import annotations

from typing import Annotated

import typer

import mlxlab as ml
from mlxlab.cli.app import DECIDE, app, screen_of
from mlxlab.cli.completion import complete_policies, complete_strategies
from mlxlab.cli.options import (
    AnyTraces,
    Fill,
    Json,
    Layout,
    Model,
    Plots,
    Rules,
    Users,
    find_folder,
    given,
    named_traces,
    parse_sizes,
)
from mlxlab.cli.screen import Answer


@app.command(rich_help_panel=DECIDE)
def evictions(
    context: typer.Context,
    traces: AnyTraces = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="Let policies evict from this strategy; paged by default.",
            autocompletion=complete_strategies,
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE,...",
            help="Hold these sizes in turn; by default five that tell policies apart.",
        ),
    ] = None,
    policies: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Judge these policies beside lru; all by default.",
            autocompletion=complete_policies,
        ),
    ] = None,
    users: Users = None,
    model: Model = None,
    layout: Layout = None,
    rules: Rules = None,
    fill: Fill = False,
    json: Json = None,
    plots: Plots = None,
) -> Answer:
    """Say which eviction policy helps."""
    screen, folder = screen_of(context), find_folder(model)
    sizes = memory and parse_sizes(memory, "--memory")
    found = ml.evictions(
        named_traces(traces, screen, fill),
        model=folder,
        layout=layout,
        progress=screen.progress,
        **given(
            strategy=strategy,
            memory=sizes,
            policies=policies,
            users=users,
            rules=rules,
        ),
    )
    written = []
    if plots:
        from mlxlab.analysis.plots import save_eviction_plots

        written = save_eviction_plots(found, plots)
    return Answer(found, found.to_dict, json, written=written)
