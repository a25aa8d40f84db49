"""The command line: reads arguments, calls the library, prints. Decides nothing."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer
from pandas import DataFrame
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from mlxlab.canonical import RULES
from mlxlab.errors import MlxlabError
from mlxlab.models import BUNDLED
from mlxlab.replay.compare import compare as compare_traces
from mlxlab.replay.contenders import DEFAULT_CONTENDERS, FIDELITY_CONTENDERS
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
from mlxlab.strategies import STRATEGIES
from mlxlab.traces import load_trace, write_trace
from mlxlab.traces.bundled import DEFAULT_TRACE

__all__ = ["main"]

app = typer.Typer(
    help="Replay coding-agent traffic through KV-cache strategies on MLX.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # it would swallow the brackets in our help texts
)
console = Console()

#: Columns that the table of ``fidelity`` needs.
_FINDINGS_WIDTH = 100


def main() -> None:
    """Run the command line; our own errors become one line and exit code 2."""
    try:
        app()
    except MlxlabError as error:
        print(f"mlxlab: {error}", file=sys.stderr)
        sys.exit(2)


@app.callback()
def configure(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log every cache hit and miss.")
    ] = False,
) -> None:
    """Set up logging."""
    handler = RichHandler(console=Console(stderr=True), show_path=False)
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", handlers=[handler])


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
    rows = compare_traces(
        loaded,
        model=model,
        strategies=strategies,
        rules=rules,
        simulate=simulate,
        chunk=chunk,
    )
    _print_summary(rows)
    if json:
        write_json(rows, json)
    if plots:
        from mlxlab.plots import save_plots

        save_plots(rows, count_segments(loaded, model=model, rules=rules), plots)


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


@app.command("strategies")
def list_strategies() -> None:
    """List the strategies, a line each."""
    _print_names({s.name: s.summary for s in STRATEGIES.values()})


@app.command("rules")
def list_rules() -> None:
    """List the canonicalisation rules, a line each."""
    _print_names({rule.name: rule.summary for rule in RULES.values()})


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


@app.command()
def serve(
    model: Annotated[
        str | None, typer.Option(help="Of the default alias: folder or repository.")
    ] = None,
    strategy: Annotated[
        str | None, typer.Option(help="Of the default alias: name[:key=value,...].")
    ] = None,
    rules: Annotated[
        str | None, typer.Option(help="all, none, names, or exceptions: -name,...")
    ] = None,
    aliases: Annotated[Path | None, typer.Option(help="model_aliases.json.")] = None,
    record: Annotated[
        Path | None, typer.Option(help="Write what clients send as a trace.")
    ] = None,
    script: Annotated[
        Path | None, typer.Option(help="Answers to give in place of sampled ones.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, help="0 takes a free one.")] = 1234,
    token: Annotated[
        str | None, typer.Option(help="What clients send; made if left out.")
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(min=0.01, max=2**20, help="GiB for models, keys and values."),
    ] = None,
    chunk: Annotated[
        int, typer.Option(min=1, help="Tokens computed at a time.")
    ] = 2048,
    queue: Annotated[int, typer.Option(min=0, help="Requests that may wait.")] = 32,
) -> None:
    """Serve the Messages API; `mlxlab claude` then starts a client on it."""
    from mlxlab.server.launch import environment_lines
    from mlxlab.server.server import Options
    from mlxlab.server.server import serve as start
    from mlxlab.web.background import wait_for_signal

    options = Options(
        host=host,
        port=port,
        token=token,
        memory=None if memory is None else int(memory * 2**30),
        chunk=chunk,
        queue=queue,
        script=script,
    )
    with start(
        model, strategy, rules=rules, aliases=aliases, record=record, options=options
    ) as server:
        shown = [*server.notices, *environment_lines(server.endpoint)]
        wait_for_signal(lambda: _print_server(repr(server), server.url, shown))


@app.command(
    "claude",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def start_client(
    context: typer.Context,
    url: Annotated[
        str | None, typer.Option(help="Endpoint to use if several run.")
    ] = None,
) -> None:
    """Start the installed Claude Code on the endpoint that runs."""
    from mlxlab.server.endpoint import find
    from mlxlab.server.launch import launch

    raise typer.Exit(launch(find(url), context.args))


@app.command("agents")
def write_agent_files(
    write: Annotated[Path, typer.Option(help="Project folder.")],
    aliases: Annotated[Path | None, typer.Option(help="model_aliases.json.")] = None,
    force: Annotated[bool, typer.Option(help="Replace files of others.")] = False,
) -> None:
    """Write .claude/agents files, one an alias, for Claude Code to delegate to."""
    from mlxlab.server.agents import write_agents
    from mlxlab.server.aliases import Aliases

    for path in write_agents(write, Aliases.load(aliases), force=force):
        console.print(path)


def _print_server(name: str, url: str, lines: list[str]) -> None:
    console.print(f"{name} at {url}", highlight=False)
    for line in lines:
        # Wrapped lines could not be copied, nor would all brackets be printed.
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print("Or run  mlxlab claude  in the project. Stop with Ctrl-C.")


def _print_url(url: str) -> None:
    console.print(f"Recording. Point the client at  ANTHROPIC_BASE_URL={url}")
    console.print("Stop with Ctrl-C.")


def _print_names(summaries: dict[str, str]) -> None:
    table = Table.grid(padding=(0, 2))
    for name, summary in summaries.items():
        table.add_row(name, summary)
    console.print(table)


def _print_summary(rows: DataFrame) -> None:
    console.print(title_of(rows), highlight=False)
    console.print(_table(format_summary(summarize(rows)), gap=1))
    for note in list_notes(rows):
        console.print(note, highlight=False)


def _print_findings(found: Fidelity, *, by_edit: bool) -> None:
    # Where there is no terminal there is no width to keep to.
    wide = console if console.is_terminal else Console(width=_FINDINGS_WIDTH)
    wide.print(found.title, highlight=False)
    if by_edit:
        for edit, summary in found.summary(("edit", "contender")).groupby("edit"):
            wide.print(f"\nedit {edit}", highlight=False)
            wide.print(_table(format_findings(summary.droplevel("edit")), gap=0))
    else:
        wide.print(_table(format_findings(found.summary()), gap=0))
    for note in list_notes(found.requests):
        wide.print(note, highlight=False)


def _table(readable: DataFrame, gap: int) -> Table:
    """A frame of text, its first column names and the others numbers."""
    table = Table(box=SIMPLE_HEAD, padding=(0, gap, 0, 0))
    for i, column in enumerate(readable.columns):
        table.add_column(column, justify="right" if i else "left", overflow="fold")
    for row in readable.itertuples(index=False):
        table.add_row(*row)
    return table
