"""Commands that make traces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlxlab.cli.app import app, console
from mlxlab.cli.options import Model, Rules
from mlxlab.errors import TraceError
from mlxlab.extras import needs
from mlxlab.models.folder import BUNDLED
from mlxlab.traces import load_trace, write_trace
from mlxlab.traces.importers import (
    AUTO,
    IMPORTERS,
    Selection,
    import_trace,
    parse_date,
)
from mlxlab.traces.open import is_hashed


@app.command()
def record(
    out: Annotated[Path, typer.Option(help="Trace to write; must not exist.")],
    upstream: Annotated[
        str | None, typer.Option(help="Messages endpoint to forward to.")
    ] = None,
    script: Annotated[
        Path | None, typer.Option(help="Script of answers to give instead.")
    ] = None,
    host: Annotated[str, typer.Option(help="Loopback address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, help="0 takes a free one.")] = 0,
) -> None:
    """Record what a client sends: point its base URL at the address printed."""
    with needs("record", "serve"):
        from mlxlab.traces.recording.recorder import record as run

    run(out, script=script, upstream=upstream, host=host, port=port, ready=_print_url)


@app.command()
def anonymize(
    trace: Annotated[str, typer.Argument(help="Trace file.")],
    out: Annotated[Path, typer.Option(help="Anonymised trace to write.")],
) -> None:
    """Replace words so that nothing can be read back and all lengths stay."""
    from mlxlab.traces.anonymize.anonymizer import anonymize as run

    write_trace(run(load_trace(trace)), out)


@app.command("import")
def import_foreign(
    out: Annotated[Path, typer.Option(help="Trace to write.")],
    path: Annotated[
        Path | None,
        typer.Argument(help="File or folder; ~/.claude/projects by default."),
    ] = None,
    format: Annotated[
        str, typer.Option(help=f"{', '.join((AUTO, *IMPORTERS))}.")
    ] = AUTO,
    since: Annotated[
        str | None, typer.Option(help="Leave out requests before this date or time.")
    ] = None,
    project: Annotated[
        str, typer.Option(help="Only projects whose folder's name contains this.")
    ] = "",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the newest so many requests.")
    ] = None,
) -> None:
    """Turn what another program kept of its requests into a trace."""
    if path and is_hashed(path):
        raise TraceError(f"{path}: hashed, and used as it is: mlxlab sweep {path}")
    start = parse_date(since) if since else float("-inf")
    trace = import_trace(path, format, Selection(start, project, limit))
    write_trace(trace, out, progress=True)
    console.print(trace)
    for reason, times in trace.skipped.items():
        console.print(f"{reason} ({times:,} times)", highlight=False)


@app.command("export")
def export_hashes(
    trace: Annotated[
        str, typer.Argument(help="Trace file, or name of a recorded one.")
    ],
    out: Annotated[Path, typer.Option(help="Hashed trace to write: .jsonl, .jsonl.gz")],
    model: Model = BUNDLED,
    rules: Rules = "all",
    salt: Annotated[
        str | None, typer.Option(help="To compare files; a secret thrown away if none.")
    ] = None,
) -> None:
    """Write a trace as salted hashes, which tell what recurs and not what was said."""
    from mlxlab.replay.export import export_trace

    written = export_trace(load_trace(trace), out, model=model, rules=rules, salt=salt)
    console.print(f"{out}: units of {written.unit} tokens", highlight=False)


def _print_url(url: str) -> None:
    console.print(f"Recording. Point the client at  ANTHROPIC_BASE_URL={url}")
    console.print("Stop with Ctrl-C.")
