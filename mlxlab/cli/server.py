"""Commands that serve, and start the client."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from mlxlab.cli.activity import shown_requests
from mlxlab.cli.app import SERVE, app
from mlxlab.cli.completion import complete_strategies, complete_traces
from mlxlab.cli.options import Chunk, Model, Rules, given, size_option
from mlxlab.extras import needs
from mlxlab.printable import printable

_EXPOSED = (
    "--token: other users can read it in the process list; set MLXLAB_TOKEN, or give "
    "--token-file"
)


@app.command(rich_help_panel=SERVE)
def serve(
    model: Model = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="Serve with this strategy, name[:key=value,...]; paged by default.",
            autocompletion=complete_strategies,
        ),
    ] = None,
    rules: Rules = None,
    aliases: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Read this model_aliases.json."),
    ] = None,
    alias: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=MODEL", help="Serve this model under this id; repeatable."
        ),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write what clients send as a trace."),
    ] = None,
    warm: Annotated[
        str | None,
        typer.Option(
            metavar="TRACE",
            help="While nothing is asked, compute what the sessions of this trace "
            "begin with; latest stands for the latest recording.",
            autocompletion=complete_traces,
        ),
    ] = None,
    script: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Answer from this script, do not sample."),
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Listen on this address.")
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, help="Listen on this port; 0 takes a free one."
        ),
    ] = 1234,
    token: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Accept this token of clients. Prefer MLXLAB_TOKEN or --token-file; "
            "a random one by default.",
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Read the token from this file, mode 0600."),
    ] = None,
    memory: Annotated[
        int | None,
        size_option(
            "--memory",
            "Hold this much models, keys and values; three quarters of the device's "
            "memory by default.",
        ),
    ] = None,
    disk: Annotated[
        int | None,
        size_option(
            "--disk",
            "Keep this much of keys and values on disk too, across restarts.",
        ),
    ] = None,
    chunk: Chunk = None,
    queue: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=0, help="Let this many requests wait; 32 by default."
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Answer this many requests at once; 8 by default."
        ),
    ] = None,
) -> None:
    """Serve the Messages API.

    `mlxlab claude` then starts a client on it. Started by `mlx.launch`, it serves a
    model on several machines.
    """
    from mlxlab.client.discovery import TOKEN_VARIABLE
    from mlxlab.client.launch import environment_lines

    with needs("serve"):
        from mlxlab.engine.ranks import Follower, Ranks
        from mlxlab.server.aliases import parse_models
        from mlxlab.server.credentials import find_token
        from mlxlab.server.server import Options
        from mlxlab.server.server import serve as start
        from mlxlab.web.background import wait_for_signal

    with Ranks.join() or nullcontext() as ranks:
        if ranks is not None and ranks.rank > 0:
            Follower(ranks).run()
            return
        if token is not None:
            typer.echo(_EXPOSED, err=True)
        options = Options(
            host=host,
            port=port,
            token=find_token(token, token_file),
            memory=memory,
            disk=disk,
            script=script,
            **given(chunk=chunk, queue=queue, batch=batch),
        )
        models = parse_models(alias or ())
        os.environ.pop(TOKEN_VARIABLE, None)  # what the server starts does not need it
        with start(
            model,
            strategy,
            rules=rules,
            aliases=aliases,
            models=models,
            record=record,
            warm=warm,
            options=options,
            ranks=ranks,
        ) as server:
            shown = [*server.notices, *environment_lines(server.endpoint)]
            shown.append(f"Watch it at {server.page}")
            with shown_requests(server):
                wait_for_signal(
                    lambda: _print_server(repr(server), server.url, shown),
                    lambda: server.is_stopped,
                )


@app.command(
    "claude",
    rich_help_panel=SERVE,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def start_client(
    context: typer.Context,
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Use this endpoint if several run."),
    ] = None,
    as_is: Annotated[
        bool,
        typer.Option(
            "--as-is", help="Let it send its billing header and token reminders."
        ),
    ] = False,
) -> None:
    """Start Claude Code on the running endpoint.

    Its billing header and its reminders of the tokens left are switched off, because
    they differ between sessions; variables that you have set win.
    """
    from mlxlab.client.discovery import find
    from mlxlab.client.launch import launch

    raise typer.Exit(launch(find(url), context.args, steady=not as_is))


@app.command("agents", rich_help_panel=SERVE)
def write_agent_files(
    write: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Write to this project folder.")
    ],
    aliases: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Read this model_aliases.json."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace files of other programs.")
    ] = False,
) -> None:
    """Write .claude/agents files, one per alias.

    Claude Code delegates to them.
    """
    from mlxlab.server.agents import write_agents
    from mlxlab.server.aliases import Aliases

    for path in write_agents(write, Aliases.load(aliases), force=force):
        typer.echo(printable(str(path)))


def _print_server(name: str, url: str, lines: list[str]) -> None:
    for line in (f"{name} at {url}", *lines):
        typer.echo(printable(line))
    typer.echo("Or run  mlxlab claude  in the project. Stop with Ctrl-C.")
