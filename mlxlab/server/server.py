"""A running endpoint, for notebooks and the command line."""

from __future__ import annotations

import atexit
import html
import logging
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

import pandas as pd

from mlxlab.client.discovery import Endpoint, publish, withdraw
from mlxlab.client.launch import client_environment
from mlxlab.engine import Executor, Loader, Worker
from mlxlab.engine.ranks import LeadingExecutor, LeadingLoader, Ranks
from mlxlab.errors import ServerError
from mlxlab.files import write_json
from mlxlab.server.aliases import Aliases
from mlxlab.server.app import create_app
from mlxlab.server.auth import Authentication, name_of
from mlxlab.server.credentials import check_token, is_short
from mlxlab.server.event_log import EventLog
from mlxlab.server.habits import Habits
from mlxlab.server.live.description import Description
from mlxlab.server.live.html import describe_server
from mlxlab.server.live.page import page_routes
from mlxlab.server.live.selection import Selection
from mlxlab.server.live.view import View
from mlxlab.server.metrics import Served
from mlxlab.server.model_pool import ModelPool, default_budget
from mlxlab.server.notices import list_notices
from mlxlab.server.service import Service
from mlxlab.server.timeline import make_timeline
from mlxlab.server.warm_up import WarmUp
from mlxlab.strategies import check_spec
from mlxlab.traces.recording.latest import note_latest
from mlxlab.traces.recording.script import read_script
from mlxlab.traces.recording.tee import Tee
from mlxlab.traces.trace import Trace
from mlxlab.traces.writer import TraceWriter
from mlxlab.web.background import BackgroundServer
from mlxlab.web.guard import Guard

if TYPE_CHECKING:
    from mlxlab.analysis.plots.picture import Picture
    from mlxlab.server.live.panel import Panel

__all__ = ["Options", "Server", "Status", "serve"]

log = logging.getLogger(__name__)

#: Most rows and columns of a status.
_SHOWN = 20
_GIB = 2**30
_COLUMNS = [
    "request",
    "session",
    "agent",
    "strategy",
    "prompt_tokens",
    "reused_tokens",
    "queue_s",
    "ttft_s",
    "output_tokens",
    "total_s",
    "outcome",
]


@dataclass(frozen=True, slots=True)
class Options:
    """Settings of an endpoint, apart from its aliases.

    Attributes:
        host: loopback, unless other machines should reach it.
        port: 0 for any free port.
        token: the token that clients send; a new one if None. Short tokens are accepted
            on loopback only.
        memory: bytes for models, keys and values; three quarters of the device's if
            None.
        disk: bytes on disk behind memory, for exact strategies; none if None.
        disk_folder: where; a folder of the user's cache if None.
        chunk: tokens computed at a time. Cancelling waits for one chunk.
        queue: most requests that may wait.
        batch: most answers that run at once.
        script: answers that replace sampled ones.
        answer_s: most seconds from a request's arrival to the end of its answer.
        explain: whether to find out, after each answer, why tokens were computed.
        shadow: specs of strategies that are simulated beside the served one; empty for
            none. By default two of ``paged``, ``prefix`` and ``block-hash``.

    Raises:
        ServerError: a setting cannot be used.
        StrategyError: a strategy of the shadow is unknown.
    """

    host: str = "127.0.0.1"
    port: int = 0
    token: str | None = field(default=None, repr=False)
    memory: int | None = None
    disk: int | None = None
    disk_folder: Path | None = None
    chunk: int = 2048
    queue: int = 32
    batch: int = 8
    script: str | Path | None = None
    answer_s: float = 3600.0
    explain: bool = True
    shadow: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for spec in self.shadow or ():
            check_spec(spec)
        if self.token is not None:
            check_token(self.token, self.host)
        for name, least in (
            ("memory", 1),
            ("disk", 1),
            ("chunk", 1),
            ("queue", 0),
            ("batch", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ServerError(f"{name}: {value} is too little; give {least}")


@dataclass(frozen=True, slots=True)
class Status:
    """The requests that a server has served so far.

    Attributes:
        server: the text that shows the server.
        requests: the latest, one per row, oldest first: see :class:`Served`.
        running: requests that are being answered.
        waiting: requests in the queue.
        peak: most bytes of memory in use so far.
        budget: most bytes that may be in use.
        unbatched: loaded models whose answers do not share a batch.
        pinned: stored tokens that are evicted last.
        warm_up: how far the latest warm-up is; empty without one.
        failure: why the recording has stopped by itself, and where; else empty.
        stored: bytes of keys and values in memory.
        capacity: most bytes that the strategies in use may hold there.
        on_disk: bytes that are taken on disk, at most.
        disk: most bytes that may be; 0 without a disk.
    """

    server: str
    requests: pd.DataFrame
    running: int
    waiting: int
    peak: int
    budget: int
    unbatched: tuple[str, ...] = ()
    pinned: int = 0
    warm_up: str = ""
    failure: str = ""
    stored: int = 0
    capacity: int = 0
    on_disk: int = 0
    disk: int = 0

    def __repr__(self) -> str:
        prompt = int(self.requests.prompt_tokens.sum())
        share = self.requests.reused_tokens.sum() / prompt if prompt else 0.0
        return (
            f"{self.server}: {len(self.requests)} requests, {share:.1%} of {prompt:,} "
            f"prompt tokens reused, {self.running} running, {self.waiting} waiting, "
            f"{self.peak / _GIB:.2f} of {self.budget / _GIB:.1f} GiB used at most"
            + (f", {self.pinned:,} tokens pinned" if self.pinned else "")
            + (f", {self.warm_up}" if self.warm_up else "")
            + "".join(f"; answers of {m} share no batch" for m in self.unbatched)
            + (f"; the recording has stopped: {self.failure}" if self.failure else "")
        )

    def plot(self) -> Picture:
        """Draw the reused and computed tokens and the seconds of each request."""
        from mlxlab.analysis.plots import plot_served

        return plot_served(self.requests)

    def _repr_html_(self) -> str:
        summary = f"<div>{html.escape(repr(self))}</div>"
        if self.requests.empty:
            return summary
        table = self.requests[_COLUMNS].tail(_SHOWN)
        return summary + table.to_html(
            index=False, border=0, na_rep="-", float_format="{:.2f}".format
        )


class Server:
    """The Messages endpoint, in threads of this process.

    :func:`serve` makes one. Use it as a context manager, or call :meth:`stop`.

    Attributes:
        token: the token that clients send.
        trace: the recorded trace, None without a recording.
        view: what users see of it while it runs.
        is_stopped: whether :meth:`stop` was called, here or in a live view.
    """

    def __init__(
        self, aliases: Aliases, options: Options, ranks: Ranks | None = None
    ) -> None:
        script = read_script(options.script) if options.script else None
        # A token that begins with a hyphen cannot follow --token.
        self.token = options.token or secrets.token_hex(24)
        self.trace: Path | None = None
        self._endpoint: Endpoint | None = None
        self._warm_up: WarmUp | None = None
        self._worker = Worker("mlxlab-server")
        executor, loader = Executor(), Loader()
        if ranks is not None:
            loader = LeadingLoader(ranks)
            executor = LeadingExecutor(loader)
        self._disk = options.disk
        credential = name_of(self.token.encode())
        is_generated = options.token is None
        self._pool = ModelPool(
            options.memory or default_budget(),
            chunk=options.chunk,
            loader=loader,
            disk=options.disk_folder,
            credential=credential,
            generated=is_generated,
        )
        self._service = Service(
            aliases.with_disk(options.disk),
            self._worker,
            self._pool,
            queue=options.queue,
            batch=options.batch,
            executor=executor,
            script=script,
            explain=options.explain,
            shadow=options.shadow,
            habits=Habits(credential if is_generated else ""),
        )
        self.is_stopped = False
        self._changing, self._stopping = Lock(), Lock()
        self._selected: frozenset[int] = frozenset()
        self._panel: Panel | None = None
        self.view = View(self._service.events, Description(self))
        app = create_app(self._service, answer_s=options.answer_s)
        app.include_router(page_routes(self))
        self._tee = Tee(app)
        guard = Guard(self._tee, [options.host])
        protected = Authentication(guard, [self.token], options.host)
        self._http = BackgroundServer(protected, options.host, options.port)

    @property
    def url(self) -> str:
        """Base URL for clients."""
        return self._http.url

    @property
    def page(self) -> str:
        """Address of the live view for a browser; the fragment holds the token."""
        return f"{self.url}/#{quote(self.token, safe='')}"

    @property
    def aliases(self) -> Aliases:
        """Model ids and their aliases."""
        return self._service.aliases

    @property
    def is_running(self) -> bool:
        """Whether requests are answered."""
        return self._http.is_alive and self._worker.is_alive

    @property
    def events(self) -> EventLog:
        """What happens to the requests, as it happens."""
        return self._service.events

    @property
    def endpoint(self) -> Endpoint:
        """The endpoint as launchers see it.

        Raises:
            ServerError: the server does not run.
        """
        if self._endpoint is None:
            raise ServerError("the server does not run; start it")
        return self._endpoint

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that point Claude Code here."""
        return client_environment(self.endpoint, {})

    @property
    def notices(self) -> list[str]:
        """Lines on the measured fidelity of the approximate strategies in use.

        A line says so where nothing was measured. Empty if all are exact.
        """
        return list_notices(self.aliases)

    @property
    def requests(self) -> pd.DataFrame:
        """The latest requests, one per row, oldest first: see :class:`Served`."""
        columns = list(Served.__dataclass_fields__)
        rows = [asdict(served) for served in self._service.metrics.latest]
        return pd.DataFrame(rows, columns=columns)

    def configure(
        self,
        *,
        model: str | None = None,
        strategy: str | None = None,
        rules: str | None = None,
    ) -> Self:
        """Change the model, strategy or rules of later requests, unnoticed by clients.

        Returns:
            This server, so that a notebook shows it with its :attr:`notices`.

        Raises:
            MlxlabError: an unknown model, strategy or rule; then nothing changes.
        """
        with self._changing:
            changed = self.aliases.with_default(
                model=model, strategy=strategy, rules=rules
            )
            self._service.configure(changed.with_disk(self._disk))
            self._publish()
        return self

    def status(self) -> Status:
        """Return the requests served so far."""
        scheduler = self._service.scheduler
        running = scheduler.unfinished - scheduler.waiting
        memory, batched = self._service.pool.memory, self._service.pool.batched
        held = self._service.holdings
        return Status(
            repr(self),
            self.requests,
            running,
            scheduler.waiting,
            memory.peak,
            memory.budget,
            tuple(name for name, shares in batched.items() if not shares),
            held.pinned,
            str(self._warm_up or ""),
            self._tee.failure,
            stored=held.in_memory,
            capacity=held.capacity,
            on_disk=held.on_disk,
            disk=held.disk,
        )

    def meters(self) -> dict[str, Any]:
        """Return what is in use, for the live view: JSON values by name."""
        memory, held = self._service.pool.memory, self._service.holdings
        writer, failure = self._tee.writer, self._tee.failure
        recording = writer and {"file": str(writer.path), "requests": writer.requests}
        return {
            "memory": [memory.peak, memory.budget],
            "cache": [held.in_memory, held.capacity] if held.capacity else None,
            "disk": [held.on_disk, held.disk] if held.disk else None,
            "recording": {"failure": failure} if failure else recording,
            "note": str(self._warm_up or ""),
            "selected": sorted(self._selected),
        }

    def select(self, requests: Iterable[int]) -> None:
        """Choose the requests of :attr:`selected` by their numbers."""
        self._selected = frozenset(requests)

    @property
    def selected(self) -> Selection:
        """The requests that were chosen in the live view."""
        rows = self.requests
        return Selection(rows.loc[rows.request.isin(self._selected)])

    def timeline(self, path: str | Path) -> None:
        """Write what the latest requests did, and when, for Perfetto.

        Args:
            path: a JSON file, to be opened at https://ui.perfetto.dev or
                ``chrome://tracing``. It holds no text of prompts and answers.

        Raises:
            MlxlabError: the file cannot be written.
        """
        write_json(make_timeline(self.events.since()), path)

    def warm_up(self, trace: str | Path | Trace) -> None:
        """Compute what the sessions of a trace begin with, while nothing is asked.

        What is computed is pinned: it is evicted last. A request interrupts this.

        Args:
            trace: a recorded trace, by name or path; ``latest`` stands for the latest
                recording.

        Raises:
            TraceError: the trace cannot be read, or its sessions have no beginning.
            ServerError: the server does not run.
        """
        self._begin(WarmUp.of(trace))

    def _begin(self, warm_up: WarmUp) -> None:
        if self._warm_up is not None:
            self._warm_up.stop()
        self._warm_up = warm_up
        warm_up.start(self.endpoint.url, self.token)

    def record(self, path: str | Path | None) -> None:
        """Record later requests of clients in a new trace; None ends the recording.

        Raises:
            TraceError: the file exists or cannot be created.
            ServerError: the server was stopped, and ``path`` is given.
        """
        if path:
            self._service.check()
        notes, tokenizers = {"server": "mlxlab"}, self._service.tokenizer
        writer = TraceWriter(path, notes, tokenizers) if path else None
        before, self._tee.writer = self._tee.writer, writer
        self._tee.failure = ""
        self.trace = writer.path if writer else None
        if writer and writer.path.is_file():  # a pipe is not read again
            note_latest(writer.path)
        if before:
            before.close()

    def start(self) -> Self:
        """Load the default model and answer requests.

        Raises:
            ServerError: the address is in use, or the server was stopped.
            MlxlabError: the default model cannot be loaded.
        """
        try:
            self._service.load()
            self._http.start()
        except BaseException:
            self.stop()
            raise
        self._publish()
        atexit.register(self.stop)
        if is_short(self.token):
            log.warning("a short token: other users can guess it")
        return self

    def stop(self) -> None:
        """End open answers and free the models. Safe to call twice."""
        self.is_stopped = True
        with self._stopping:
            atexit.unregister(self.stop)
            if self._endpoint is not None:
                withdraw(self._endpoint)
                self._endpoint = None
            if self._warm_up is not None:
                self._warm_up.stop()
            self._http.stop()
            self.record(None)
            self._worker.close()
            self._service.close()
            self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        alias = self.aliases.default
        state = "" if self.is_running else ", stopped"
        return f"Server({alias.model}, {alias.strategy}{state})"

    def _ipython_display_(self) -> None:
        """Show the live panel in a notebook.

        Raises:
            NotImplementedError: IPython then shows the text or the HTML instead.
        """
        from IPython.core.getipython import get_ipython

        if not hasattr(get_ipython(), "kernel"):
            raise NotImplementedError
        if self._panel is None:
            try:
                from mlxlab.server.live.panel import Panel
            except ModuleNotFoundError:
                raise NotImplementedError from None
            self._panel = Panel(self)
        self._panel.show()

    def _repr_html_(self) -> str:
        return describe_server(self)

    def _publish(self) -> None:
        """Publish the endpoint for `mlxlab claude`."""
        self._endpoint = self.aliases.endpoint(
            url=self.url,
            token=self.token,
            window=self._service.preparation.folder.window,
        )
        try:
            publish(self._endpoint)
        except ServerError as error:
            log.warning("`mlxlab claude` will not find this endpoint: %s", error)


def serve(
    model: str | None = None,
    strategy: str | None = None,
    *,
    rules: str | None = None,
    aliases: str | Path | None = None,
    models: Mapping[str, str] | None = None,
    record: str | Path | None = None,
    warm: str | Path | Trace | None = None,
    options: Options | None = None,
    ranks: Ranks | None = None,
) -> Server:
    """Start a Messages endpoint in this process.

    Args:
        model: model of the default alias, see :func:`mlxlab.find_model`.
        strategy: strategy of the default alias, as ``name[:key=value,...]``.
        rules: rules of the default alias, see
            :func:`mlxlab.rendering.rules.parse_rules`.
        aliases: a ``model_aliases.json``; the one that comes with mlxlab if None.
        models: further aliases, by name; see :meth:`Aliases.with_models`.
        record: a new trace file for the requests of clients.
        warm: see :meth:`Server.warm_up`.
        options: address, token, memory, limits.
        ranks: the processes that share each model; this one is rank 0.

    Raises:
        MlxlabError: a bad argument, or an address in use; then nothing runs.
    """
    warm_up = None if warm is None else WarmUp.of(warm)
    served = (
        Aliases.load(aliases)
        .with_models(models or {})
        .with_default(model=model, strategy=strategy, rules=rules)
    )
    server = Server(served, options or Options(), ranks)
    server.start()
    try:
        server.record(record)
        if warm_up is not None:
            server._begin(warm_up)
    except BaseException:
        server.stop()
        raise
    return server
