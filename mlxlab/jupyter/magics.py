"""``%serve``: a thin shell around :func:`mlxlab.server.server.serve`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring

from mlxlab.errors import MlxlabError
from mlxlab.server.server import Options, Server, Status, serve

__all__ = ["ServeMagics"]

#: What a running server can change; the rest is settled when it starts.
_LIVE = ("model", "strategy", "rules")
_SETTLED = ("port", "token", "aliases", "script", "memory")


@magics_class
class ServeMagics(Magics):
    """Holds the notebook's one server."""

    def __init__(self, shell: InteractiveShell | None = None) -> None:
        super().__init__(shell)
        self.server: Server | None = None
        self._settled: Mapping[str, Any] = {}

    @magic_arguments()
    @argument("--model", help="folder, hub repository, or tiny")
    @argument("--strategy", help="name[:key=value,...], as in paged:block=32")
    @argument("--rules", help="all, none, names, or exceptions: -name,...")
    @argument("--port", type=int, help="any free one if left out")
    @argument("--token", help="what clients send; one is made if left out")
    @argument("--aliases", help="a model_aliases.json")
    @argument("--record", metavar="FILE", help="write what clients send as a trace")
    @argument("--script", metavar="FILE", help="answers to give in place of sampled")
    @argument("--memory", type=float, help="GiB for models, keys and values")
    @argument("--status", action="store_true", help="what was served so far")
    @argument("--stop", action="store_true", help="stop the server")
    @line_magic
    def serve(self, line: str) -> Server | Status | None:
        """Serve the Messages API from this notebook, in the background.

        Point Claude Code at the address shown, or run `mlxlab claude` in a terminal.
        Given again, it changes model, strategy or rules of the running server, which
        clients do not notice, or just shows it. Cells stay usable all the time.

            %serve --strategy paged --model mlx-community/Qwen3-4B-4bit --port 1234
            %serve --strategy prefix
            %serve --status
            %serve --stop
        """
        given = parse_argstring(self.serve, line)
        try:
            return self._serve(given)
        except MlxlabError as error:
            raise UsageError(str(error)) from None

    def stop(self) -> None:
        """Stop the server if there is one."""
        if self.server is not None:
            self.server.stop()
            self.server = None

    def _serve(self, given: Namespace) -> Server | Status | None:
        if given.stop:
            self.stop()
            return None
        if given.status:
            if self.server is None:
                raise UsageError("nothing is served; start with %serve")
            return self.server.status()
        if self.server is None or not self.server.is_running:
            self._start(given)
        else:
            self._change(self.server, given)
        return self.server

    def _start(self, given: Namespace) -> None:
        options = Options(
            port=given.port or 0,
            token=given.token,
            memory=int(given.memory * 2**30) if given.memory else None,
            script=given.script,
        )
        self.server = serve(
            given.model,
            given.strategy,
            rules=given.rules,
            aliases=given.aliases,
            record=given.record,
            options=options,
        )
        self._settled = {key: getattr(given, key) for key in _SETTLED}

    def _change(self, server: Server, given: Namespace) -> None:
        for key in _SETTLED:
            value = getattr(given, key)
            if value is not None and value != self._settled[key]:
                raise UsageError(
                    f"--{key} cannot change while {server.url} is served; "
                    "%serve --stop first"
                )
        live = {key: getattr(given, key) for key in _LIVE}
        if any(value is not None for value in live.values()):
            server.configure(**live)
        if given.record and (server.trace is None or str(server.trace) != given.record):
            server.record(given.record)
