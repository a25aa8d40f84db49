"""The command that checks what a server claims to reuse."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

import mlxlab as ml
from mlxlab.cli.app import SEE, app, screen_of
from mlxlab.cli.completion import complete_strategies, complete_traces
from mlxlab.cli.options import Json, Model, Plots, Rules, find_folder, given
from mlxlab.cli.screen import Answer, Screen
from mlxlab.errors import ConfigError


@app.command(rich_help_panel=SEE)
def audit(
    context: typer.Context,
    trace: Annotated[
        str | None,
        typer.Argument(
            metavar="TRACE",
            help="Audit this recording; none with --upstream.",
            autocompletion=complete_traces,
        ),
    ] = None,
    upstream: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Audit this server while a client works through here."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Record into this new file; audit-DATE-TIME.jsonl by default.",
        ),
    ] = None,
    port: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, help="Listen on this port; 0 takes a free one."
        ),
    ] = 0,
    model: Model = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="Hold this strategy against the server; paged by default.",
            autocompletion=complete_strategies,
        ),
    ] = None,
    rules: Rules = None,
    json: Json = None,
    plots: Plots = None,
) -> Answer:
    """Check what a server claims to reuse.

    Each request shows what the server states, what exact reuse of the prompt as sent
    could have reused, and what a strategy with rules would have.
    """
    if (trace is None) == (upstream is None):
        raise ConfigError("audit: give either a trace or --upstream URL")
    screen = screen_of(context)
    settings = {"model": find_folder(model), **given(strategy=strategy, rules=rules)}
    if trace is not None:
        found = ml.audit(trace, progress=screen.progress, **settings)
    else:
        out = out or Path(f"audit-{datetime.now(UTC).astimezone():%Y%m%d-%H%M%S}.jsonl")
        found = _audit_live(screen, str(upstream), out, port, settings)
    written = [] if trace else [Path(str(out))]
    if plots:
        written.append(found.plot().save(plots / "audit.svg"))
    return Answer(found, found.to_dict, json, (), written)


def _audit_live(
    screen: Screen, upstream: str, out: Path, port: int, settings: Mapping[str, Any]
) -> ml.Audit:
    """Record and audit until SIGINT or SIGTERM."""
    from mlxlab.analysis.audit.run import audit_live

    def announce(url: str) -> None:
        screen.note(f"Auditing {upstream}. Point the client at  {url}")
        screen.note("Ctrl-C ends it and shows the table.")

    with audit_live(out, lambda row: screen.note(row.line()), **settings) as live:
        ml.record(out, upstream=upstream, port=port, ready=announce, listener=live.take)
    return live.result()
