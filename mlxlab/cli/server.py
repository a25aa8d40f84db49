"""Commands that serve, and start the client."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from mlxlab.cli.app import app, console
from mlxlab.cli.options import Chunk
from mlxlab.extras import needs

_EXPOSED = (
    "--token: other users can read it in the process list; set MLXLAB_TOKEN, or give "
    "--token-file"
)


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
    alias: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=MODEL", help="Model id to serve a model under; repeatable."
        ),
    ] = None,
    record: Annotated[
        Path | None, typer.Option(help="Write what clients send as a trace.")
    ] = None,
    script: Annotated[
        Path | None, typer.Option(help="Answers to give in place of sampled ones.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, help="0 takes a free one.")] = 1234,
    token: Annotated[
        str | None,
        typer.Option(
            help="What clients send, in place of MLXLAB_TOKEN; made if neither."
        ),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File of mode 0600 that holds the token.")
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(min=0.01, max=2**20, help="GiB for models, keys and values."),
    ] = None,
    chunk: Chunk = 2048,
    queue: Annotated[int, typer.Option(min=0, help="Requests that may wait.")] = 32,
) -> None:
    """Serve the Messages API; `mlxlab claude` then starts a client on it."""
    from mlxlab.client.discovery import TOKEN_VARIABLE
    from mlxlab.client.launch import environment_lines

    with needs("serve"):
        from mlxlab.server.aliases import parse_models
        from mlxlab.server.credentials import find_token
        from mlxlab.server.server import Options
        from mlxlab.server.server import serve as start
        from mlxlab.web.background import wait_for_signal

    if token is not None:
        typer.echo(_EXPOSED, err=True)
    options = Options(
        host=host,
        port=port,
        token=find_token(token, token_file),
        memory=None if memory is None else int(memory * 2**30),
        chunk=chunk,
        queue=queue,
        script=script,
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
        options=options,
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
    from mlxlab.client.discovery import find
    from mlxlab.client.launch import launch

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
