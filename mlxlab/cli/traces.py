"""Commands that make traces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from mlxlab.cli.app import app, console
from mlxlab.cli.options import Model, Rules
from mlxlab.extras import needs
from mlxlab.models.folder import BUNDLED
from mlxlab.traces import write_trace
from mlxlab.traces.importers import AUTO, IMPORTERS, Importer, import_trace


class _ImportCommand(TyperCommand):
    """Lists the formats that are registered when the help is printed."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Formats"):
            formatter.write_dl([(i.name, _description(i)) for i in IMPORTERS.values()])


def _description(importer: Importer) -> str:
    options = [f"--{name}" for name in sorted(importer.filters - Importer.filters)]
    return "; accepts ".join([importer.summary, *options])


@app.command()
def record(
    out: Annotated[Path, typer.Option(help="Write the trace to this new file.")],
    upstream: Annotated[
        str | None, typer.Option(help="Forward requests to this Messages endpoint.")
    ] = None,
    script: Annotated[
        Path | None, typer.Option(help="Answer from this script instead.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Listen on this loopback address.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, help="Listen on this port; 0 takes a free one.")
    ] = 0,
) -> None:
    """Record what a client sends to the address printed."""
    with needs("record", "serve"):
        from mlxlab.traces.recording.recorder import record as run

    run(out, script=script, upstream=upstream, host=host, port=port, ready=_print_url)


@app.command()
def anonymize(
    trace: Annotated[
        str, typer.Argument(help="A trace file, or the name of a bundled trace.")
    ],
    out: Annotated[Path, typer.Option(help="Write the anonymised trace to this file.")],
) -> None:
    """Replace all words; lengths and shared prefixes stay."""
    from mlxlab.traces.anonymize.anonymizer import anonymize as run

    write_trace(run(trace), out)


@app.command("import", cls=_ImportCommand)
def import_foreign(
    out: Annotated[Path, typer.Option(help="Write the trace to this file.")],
    path: Annotated[
        Path | None,
        typer.Argument(help="A file or folder; ~/.claude/projects by default."),
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            help="Read this format; auto recognizes it.",
            autocompletion=lambda: [AUTO, *IMPORTERS],
        ),
    ] = AUTO,
    since: Annotated[
        str | None, typer.Option(help="Leave out requests before this date or time.")
    ] = None,
    project: Annotated[
        str, typer.Option(help="Keep projects with this text in their folder's name.")
    ] = "",
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Keep this many requests, the newest ones."),
    ] = None,
) -> None:
    """Make a trace from another program's files."""
    trace = import_trace(path, format, since=since, project=project, limit=limit)
    write_trace(trace, out, progress=True)
    console.print(trace)
    for reason, times in trace.skipped.items():
        console.print(f"{reason} ({times:,} times)", highlight=False)


@app.command("export")
def export_hashes(
    trace: Annotated[
        str, typer.Argument(help="A trace file, or the name of a bundled trace.")
    ],
    out: Annotated[
        Path, typer.Option(help="Write the hashes to this file, .jsonl or .jsonl.gz.")
    ],
    model: Model = BUNDLED,
    rules: Rules = "all",
    salt: Annotated[
        str | None,
        typer.Option(help="Key the hashes with this salt; a random one by default."),
    ] = None,
) -> None:
    """Write a trace as salted hashes, without text."""
    from mlxlab.replay.export import export_trace

    written = export_trace(trace, out, model=model, rules=rules, salt=salt)
    console.print(f"{out}: units of {written.unit} tokens", highlight=False)


def _print_url(url: str) -> None:
    console.print(f"Recording. Point the client at  ANTHROPIC_BASE_URL={url}")
    console.print("Stop with Ctrl-C.")
