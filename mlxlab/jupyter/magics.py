"""``%serve``: a thin shell around :func:`mlxlab.server.server.serve`."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments

from mlxlab.cli.options import parse_sizes
from mlxlab.errors import ConfigError, MlxlabError, ServerError
from mlxlab.jupyter.address import Address, is_free, name_notebook, recall, remember
from mlxlab.jupyter.lines import split_line
from mlxlab.server.aliases import parse_models
from mlxlab.server.credentials import find_token
from mlxlab.server.server import Options, Server, Status, serve
from mlxlab.sizes import SIZE_FORM

__all__ = ["ServeMagics"]

#: What a running server can change; the rest is settled when it starts.
_LIVE = ("model", "strategy", "rules")
_SETTLED = ("port", "token", "aliases", "alias", "script", "memory", "disk")
#: Asks for an action, so that nothing else can be meant on the same line.
_ALONE = ("stop", "status")


def _path(text: str) -> Path:
    """Return an absolute path: `%cd` does not change it."""
    return Path(text).absolute()


def _size(text: str) -> int:
    try:
        return parse_sizes(text, "size")[0]
    except ConfigError:
        raise ArgumentTypeError(f"{text!r}: give {SIZE_FORM}") from None


def _print_notices(server: Server) -> None:
    """Also where the handle is not what a cell shows."""
    for line in server.notices:
        print(line)


@magics_class
class ServeMagics(Magics):
    """Holds the notebook's one server."""

    def __init__(self, shell: InteractiveShell | None = None) -> None:
        super().__init__(shell)
        self.server: Server | None = None
        self._settled: Mapping[str, Any] = {}
        # Named now, before `%cd` changes the folder.
        self._notebook = name_notebook(shell.user_ns if shell else {})

    @magic_arguments()
    @argument(
        "--model",
        metavar="NAME",
        help="folder, GGUF file, hub repository, smollm2 or tiny",
    )
    @argument(
        "--strategy", metavar="SPEC", help="name[:key=value,...], as in paged:block=32"
    )
    @argument("--rules", help="all, none, names, or exceptions: -name,...")
    @argument("--port", type=int, help="the last one if left out; 0 for any free one")
    @argument("--token", help="what clients send; MLXLAB_TOKEN, the last, or a new one")
    @argument(
        "--token-file", metavar="FILE", type=_path, help="holds the token; mode 0600"
    )
    @argument("--aliases", metavar="FILE", type=_path, help="a model_aliases.json")
    @argument(
        "--alias",
        metavar="NAME=MODEL",
        action="append",
        help="model id to serve a model under; repeatable",
    )
    @argument(
        "--record", metavar="FILE", type=_path, help="write what clients send, a trace"
    )
    @argument(
        "--warm",
        metavar="TRACE",
        help="compute what its sessions begin with while idle; or latest",
    )
    @argument("--no-record", action="store_true", help="end the recording")
    @argument(
        "--script", metavar="FILE", type=_path, help="answers in place of sampled ones"
    )
    @argument(
        "--memory", metavar="SIZE", type=_size, help="for models, keys and values"
    )
    @argument(
        "--disk", metavar="SIZE", type=_size, help="for keys and values on disk too"
    )
    @argument("--status", action="store_true", help="what was served so far")
    @argument("--stop", action="store_true", help="stop the server")
    @line_magic
    def serve(self, line: str) -> Server | Status | None:
        """Serve the Messages API from this notebook, in the background.

        Point a client at the address shown, or run `mlxlab claude` in a terminal.
        Cells stay usable all the time.

            %serve --strategy paged --model mlx-community/Qwen3-4B-4bit --port 1234
            %serve --strategy prefix      # change it; clients notice nothing
            %serve --record today.jsonl   # for `mlxlab compare`; --no-record ends it
            %serve --status
            %serve --stop

        Model, strategy, rules and recording may change while it runs, the rest when
        it starts. Of approximate strategies it prints what was measured for them.
        Without options the running server is shown. The handle that is returned has
        .url, .token, .environment, .requests, .notices and .stop().

        Port and token are those of this notebook's last start, so that clients
        survive a restart of the kernel. They are kept in ~/.cache/mlxlab/addresses.
        The token is never shown: `mlxlab claude` finds it, and .token gives it.
        """
        try:
            return self._serve(self._parse(line))
        except MlxlabError as error:
            raise UsageError(str(error)) from None

    def stop(self) -> None:
        """Stop the server if there is one."""
        if self.server is not None:
            self.server.stop()
            self.server = None

    def _parse(self, line: str) -> Namespace:
        # Else argparse takes `--rules -name` for two options.
        line = re.sub(r"(?<!\S)--rules\s+-(?=\w)", "--rules=-", line)
        given: Namespace = self.serve.parser.parse_args(split_line(line))
        named = [name for name, value in vars(given).items() if value]
        for name in _ALONE:
            if name in named and len(named) > 1:
                raise UsageError(f"--{name} takes no other option")
        return given

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
        self.stop()  # what is left of one that ended by itself
        last = self._recall()
        port = self._port(given, last)
        self.server = server = serve(
            given.model,
            given.strategy,
            rules=given.rules,
            aliases=given.aliases,
            models=parse_models(given.alias or ()),
            record=given.record,
            warm=given.warm,
            options=Options(
                port=port,
                token=find_token(given.token, given.token_file)
                or (last.token if last else None),
                memory=given.memory,
                disk=given.disk,
                script=given.script,
            ),
        )
        address = Address(server.endpoint.port, server.token)
        settled = {key: getattr(given, key) for key in _SETTLED}
        self._settled = settled | {"port": address.port, "token": address.token}
        if port or given.port is not None or last is None:
            self._remember(address)
        _print_notices(server)

    def _port(self, given: Namespace, last: Address | None) -> int:
        """The port to bind, 0 for any free one."""
        if given.port is not None:
            return int(given.port)
        if last is None:
            return 0
        if is_free(last.port):
            return last.port
        # Another notebook of the same folder may serve there: it keeps its clients.
        print(f"port {last.port} is in use; a free one is taken this time")
        return 0

    def _recall(self) -> Address | None:
        try:
            return recall(self._notebook)
        except ServerError as error:
            print(error)
            return None

    def _remember(self, address: Address) -> None:
        try:
            remember(self._notebook, address)
        except ServerError as error:
            print(error)

    def _change(self, server: Server, given: Namespace) -> None:
        if given.token_file:
            given.token = find_token(given.token, given.token_file)
        for key in _SETTLED:
            value = getattr(given, key)
            if value and value != self._settled[key]:
                raise UsageError(
                    f"--{key} cannot change while {server.url} is served; "
                    "%serve --stop first"
                )
        live = {key: getattr(given, key) for key in _LIVE}
        if any(value is not None for value in live.values()):
            server.configure(**live)
            _print_notices(server)
        if given.no_record:
            server.record(None)
        if given.warm:
            server.warm_up(given.warm)
        if given.record and given.record != server.trace:
            server.record(given.record)
