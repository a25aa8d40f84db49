"""Commands that make traces, and prepare them for others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

import mlxlab as ml
from mlxlab.cli.app import SHARE, app, screen_of
from mlxlab.cli.completion import complete_formats
from mlxlab.cli.options import Fill, Json, Model, OneTrace, Rules, check_file, given
from mlxlab.cli.screen import Answer


class _ImportCommand(TyperCommand):
    """Lists the formats that are registered when the help is printed."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        from mlxlab.traces.importers import IMPORTERS, Importer

        rows = []
        for importer in IMPORTERS.values():
            own = sorted(importer.filters - Importer.filters)
            options = [f"--{name}" for name in own]
            rows.append(
                (importer.name, "; accepts ".join([importer.summary, *options]))
            )
        with formatter.section("Formats"):
            formatter.write_dl(rows)


@app.command(rich_help_panel=SHARE)
def record(
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="Write the trace to this new file.")
    ],
    upstream: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Forward requests to this Messages endpoint."),
    ] = None,
    script: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Answer from this script instead."),
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Listen on this loopback address.")
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, help="Listen on this port; 0 takes a free one."
        ),
    ] = 0,
) -> None:
    """Record what a client sends, as a trace."""
    ml.record(
        out, script=script, upstream=upstream, host=host, port=port, ready=_print_url
    )


def _print_url(url: str) -> None:
    typer.echo(f"Recording. Point the client at  ANTHROPIC_BASE_URL={url}")
    typer.echo("Stop with Ctrl-C.")


@app.command("import-trace", cls=_ImportCommand, rich_help_panel=SHARE)
def import_trace(
    context: typer.Context,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE", callback=check_file, help="Write the trace to this file."
        ),
    ],
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="PATH",
            help="Read this file or folder; ~/.claude/projects by default.",
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            metavar="FORMAT",
            help="Read this format; auto, the default, recognizes it.",
            autocompletion=complete_formats,
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="DATE", help="Leave out requests before this date or time."
        ),
    ] = None,
    project: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="Keep projects with this text in their folder's name."
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Keep this many requests, the newest ones."
        ),
    ] = None,
    fill: Fill = False,
    json: Json = None,
) -> Answer:
    """Make a trace from another program's files."""
    from mlxlab.traces import write_trace

    screen = screen_of(context)
    options = given(format=format, project=project)
    trace = ml.import_trace(
        path, since=since, limit=limit, fill=fill, progress=screen.progress, **options
    )
    write_trace(trace, out, progress=screen.progress)
    left_out = [
        f"{reason} ({times:,} times)" for reason, times in trace.skipped.items()
    ]
    return Answer(trace, lambda: _describe(trace, out), json, left_out)


@app.command(rich_help_panel=SHARE)
def anonymize(
    context: typer.Context,
    trace: OneTrace,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            callback=check_file,
            help="Write the anonymised trace to this file.",
        ),
    ],
    json: Json = None,
) -> Answer:
    """Replace all words of a trace.

    Lengths and shared prefixes stay.
    """
    from mlxlab.traces import write_trace

    screen = screen_of(context)
    found = ml.anonymize(trace, progress=screen.progress)
    write_trace(found, out, progress=screen.progress)
    return Answer(found, lambda: _describe(found, out), json)


@app.command("export-trace", rich_help_panel=SHARE)
def export_trace(
    context: typer.Context,
    trace: OneTrace,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            callback=check_file,
            help="Write the hashes to this file, .jsonl or .jsonl.gz.",
        ),
    ],
    model: Model = None,
    rules: Rules = None,
    salt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Key the hashes with this salt; a random one by default.",
        ),
    ] = None,
    json: Json = None,
) -> Answer:
    """Write a trace as salted hashes, without text."""
    screen = screen_of(context)
    found = ml.export_trace(
        trace,
        out,
        salt=salt,
        progress=screen.progress,
        **given(model=model, rules=rules),
    )
    units = f"{out}: units of {found.unit} tokens"
    return Answer(found, lambda: {"trace": str(out), "unit": found.unit}, json, [units])


def _describe(trace: ml.Trace, out: Path) -> dict[str, Any]:
    """Return a written trace's file, size and what was left out of it."""
    requests = len(trace.inference)
    found = trace.completeness
    return {
        "trace": str(out),
        "requests": requests,
        "skipped": dict(trace.skipped),
        **({"completeness": found.model_dump()} if found else {}),
    }
