"""Commands that make traces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlxlab.cli.app import app, console
from mlxlab.models import BUNDLED
from mlxlab.traces import load_trace, write_trace


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
    from mlxlab.traces.record import record as run

    run(out, script=script, upstream=upstream, host=host, port=port, ready=_print_url)


@app.command()
def anonymize(
    trace: Annotated[str, typer.Argument(help="Trace file.")],
    out: Annotated[Path, typer.Option(help="Anonymised trace to write.")],
) -> None:
    """Replace words so that nothing can be read back and all lengths stay."""
    from mlxlab.traces.anonymize import anonymize as run

    write_trace(run(load_trace(trace)), out)


@app.command("import")
def import_trace(
    capture: Annotated[Path, typer.Argument(help="HTTP capture, an object a line.")],
    out: Annotated[Path, typer.Option(help="Trace to write.")],
) -> None:
    """Turn a plain HTTP capture into a trace."""
    from mlxlab.traces.importers.capture import import_capture

    trace = import_capture(capture)
    write_trace(trace, out)
    console.print(trace)


@app.command("export")
def export_hashes(
    trace: Annotated[
        str, typer.Argument(help="Trace file, or name of a recorded one.")
    ],
    out: Annotated[Path, typer.Option(help="Hashed trace to write: .jsonl, .jsonl.gz")],
    model: Annotated[str, typer.Option(help="Folder or hub repository.")] = BUNDLED,
    rules: Annotated[
        str, typer.Option(help="all, none, names, or exceptions: -name,...")
    ] = "all",
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
