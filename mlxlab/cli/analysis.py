"""Commands that show what a cache reuses, and why it misses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

import mlxlab as ml
from mlxlab.cli.app import SEE, app, screen_of
from mlxlab.cli.completion import complete_rules, complete_strategies
from mlxlab.cli.options import (
    AnyTraces,
    Capacity,
    Chunk,
    Fill,
    Json,
    Layout,
    Memory,
    Model,
    OneTrace,
    Plots,
    Rules,
    Strategies,
    Text,
    Traces,
    Users,
    check_file,
    find_folder,
    given,
    known_costs,
    named_traces,
)
from mlxlab.cli.screen import Answer
from mlxlab.extras import needs

_COUNTED = "No seconds: mlxlab calibrate --model {} measures what they take."


@app.command("strategies", rich_help_panel=SEE)
def list_strategies(json: Json = None) -> Answer:
    """List the strategies."""
    found = {s.name: (s.summary, s.literature) for s in ml.STRATEGIES.values()}
    return _list_names(found, json)


@app.command("placements", rich_help_panel=SEE)
def list_placements(json: Json = None) -> Answer:
    """List where checkpoints can be kept."""
    found = {}
    for name, placement in ml.PLACEMENTS.items():
        shown = name if placement.spacing is None else f"{name}[N]"
        found[shown] = tuple(filter(None, (placement.summary, placement.source)))
    return _list_names(found, json)


@app.command("rules", rich_help_panel=SEE)
def list_rules(json: Json = None) -> Answer:
    """List the canonicalisation rules."""
    found = {}
    for rule in ml.RULES.values():
        clients = f" ({rule.clients})" if rule.clients else ""
        named = "" if rule.default else f"; off by default: all,{rule.name}"
        why = f"{rule.place}: {rule.reason}{clients}"
        found[rule.name] = (rule.summary, why, f"{rule.effect}{named}")
    return _list_names(found, json)


def _list_names(names: Mapping[str, tuple[str, ...]], json: Path | None) -> Answer:
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    for name, texts in names.items():
        grid.add_row(name, "\n".join(texts))
    return Answer(content=lambda: dict(names), json=json, after=[grid])


@app.command("read-trace", rich_help_panel=SEE)
def read_trace(trace: OneTrace, fill: Fill = False, json: Json = None) -> Answer:
    """Count the requests of a trace."""
    found = ml.read_trace(trace, fill=fill)
    requests = found.inference if isinstance(found, ml.Trace) else found
    count = sum(1 for _ in requests)
    return Answer(found, lambda: {"trace": found.name, "requests": count}, json)


@app.command(rich_help_panel=SEE)
def misses(
    context: typer.Context,
    traces: AnyTraces = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="Replay through this strategy, name[:key=value,...][@rules]. By "
            "default the one that served a recording, else paged.",
            autocompletion=complete_strategies,
        ),
    ] = None,
    rules: Annotated[
        str | None,
        typer.Option(
            metavar="RULES",
            help="Apply these rules: all, none, names, exceptions such as -name, or "
            "all,name. By default those that served a recording, else all.",
            autocompletion=complete_rules,
        ),
    ] = None,
    model: Model = None,
    layout: Layout = None,
    capacity: Capacity = None,
    users: Users = None,
    text: Text = None,
    fill: Fill = False,
    by_request: Annotated[
        bool, typer.Option("--by-request", help="Print what broke each request.")
    ] = False,
    json: Json = None,
    plots: Plots = None,
) -> Answer:
    """Explain why prompt tokens were computed."""
    screen, folder = screen_of(context), find_folder(model)
    found = ml.misses(
        named_traces(traces, screen, fill),
        model=folder,
        layout=layout,
        capacity=capacity,
        users=users,
        costs=known_costs(folder, layout=layout),
        progress=screen.progress,
        **given(strategy=strategy, rules=rules, text=text),
    )
    written = []
    if plots:
        from mlxlab.analysis.plots import save_misses_plots

        written = save_misses_plots(found, plots)
    lines = list(found.request_lines()) if by_request else []
    return Answer(found, found.to_dict, json, lines, written)


@app.command(rich_help_panel=SEE)
def compare(
    context: typer.Context,
    traces: Traces = None,
    model: Model = None,
    strategies: Strategies = None,
    rules: Rules = None,
    capacity: Capacity = None,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Count tokens only; load no model.")
    ] = False,
    layout: Layout = None,
    chunk: Chunk = None,
    users: Users = None,
    think_times: Annotated[
        float | None,
        typer.Option(
            metavar="FACTOR",
            min=0.0,
            help="Multiply the recorded think times of live users; 1 by default, 0 "
            "for none.",
        ),
    ] = None,
    endpoint: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL[#MODEL][=NAME]",
            help="Send the requests to this running server too; repeatable.",
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Read the endpoints' token from this file, mode 0600; MLXLAB_TOKEN by "
            "default.",
        ),
    ] = None,
    answer_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Let endpoints answer with this many tokens at most; 16 by default, "
            "with users as many as recorded.",
        ),
    ] = None,
    fill: Fill = False,
    json: Json = None,
    plots: Plots = None,
) -> Answer:
    """Compare what strategies reuse of traces."""
    from mlxlab.traces.open import open_recorded

    screen, folder = screen_of(context), find_folder(model)
    recorded = open_recorded(named_traces(traces, screen, fill))
    settings = given(
        strategies=strategies,
        rules=rules,
        capacity=capacity,
        chunk=chunk,
        users=users,
        think_times=think_times,
    )
    costs = known_costs(folder, chunk=chunk, layout=layout) if simulate else None
    if not simulate and layout is None:
        from mlxlab.analysis.forecast import forecast

        takes = forecast(recorded, model=folder, **settings)
        screen.note(f"This takes {takes}; --simulate counts tokens in seconds.")
    found = ml.compare(
        recorded,
        model=folder,
        simulate=simulate,
        costs=costs,
        layout=layout,
        progress=screen.progress,
        **settings,
        **_endpoints(endpoint, token_file, answer_tokens),
    )
    written = []
    if plots:
        from mlxlab.analysis.plots import save_plots

        written = save_plots(found, plots)
    lines = [_COUNTED.format(folder.name)] if simulate and costs is None else []
    return Answer(found, found.to_dict, json, lines, written)


def _endpoints(
    endpoints: list[str] | None, token_file: Path | None, answer_tokens: int | None
) -> dict[str, Any]:
    """Return the settings of endpoints for a comparison; none without endpoints."""
    if not endpoints:
        return {}
    with needs("compare with endpoints", "serve"):
        from mlxlab.server.credentials import find_token

    token = find_token(file=token_file)
    return given(endpoints=endpoints, token=token, answer_tokens=answer_tokens)


@app.command(rich_help_panel=SEE)
def report(
    context: typer.Context,
    traces: Traces = None,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            callback=check_file,
            help="Write the page to this HTML file.",
        ),
    ] = Path("report.html"),
    model: Model = None,
    layout: Layout = None,
    strategies: Strategies = None,
    rules: Rules = None,
    memory: Memory = None,
    text: Text = None,
    fill: Fill = False,
    json: Json = None,
) -> Answer:
    """Write verdict, advice and evidence as HTML."""
    screen = screen_of(context)
    ml.report(
        named_traces(traces, screen, fill),
        out,
        progress=screen.progress,
        **given(
            model=model,
            layout=layout,
            strategies=strategies,
            rules=rules,
            memory=memory,
            text=text,
        ),
    )
    return Answer(out, lambda: {"report": str(out)}, json)
