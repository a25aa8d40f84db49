"""Audits a server: from a recording, or while a client works through a proxy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from heapq import heappop, heappush
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TypeAlias

from tqdm.auto import tqdm

from mlxlab.analysis.audit.auditor import Audited, Auditor
from mlxlab.analysis.audit.result import Audit
from mlxlab.errors import StrategyError
from mlxlab.models.folder import BUNDLED, ModelFolder, find_model
from mlxlab.replay.specs import SpecLike, parse_specs
from mlxlab.traces import Exchange, Trace, read_trace
from mlxlab.traces.open import open_one

__all__ = ["Live", "audit", "audit_live"]

Show: TypeAlias = Callable[[Audited], object]


def audit(
    trace: str | Path | Trace,
    *,
    model: str | ModelFolder = BUNDLED,
    strategy: SpecLike = "paged",
    rules: str = "all",
    progress: bool = True,
) -> Audit:
    """Hold what a server claims to have reused against what could have been.

    Args:
        trace: a recording of a client at any server: a name, a path or an opened one.
        model: name, folder or hub repository: its tokenizer and template count. The
            server's own model gives the best figures.
        strategy: what is held against the server, see
            :meth:`mlxlab.replay.specs.StrategySpec.parse`.
        rules: default rules of the strategy.
        progress: whether to show a bar.

    Raises:
        MlxlabError: an unknown name, an unreadable file, or no request to audit.
    """
    opened = open_one(trace)
    auditor = _auditor(opened.name, model, strategy, rules)
    for exchange in tqdm(opened.exchanges, desc="auditing", disable=not progress):
        auditor.take(exchange)
    return auditor.close(opened)


@contextmanager
def audit_live(
    out: Path,
    show: Show,
    *,
    model: str | ModelFolder = BUNDLED,
    strategy: SpecLike = "paged",
    rules: str = "all",
) -> Iterator[Live]:
    """Audit exchanges while a proxy records them.

    Args:
        out: the trace that is recorded.
        show: called with each audited request, in order of arrival, on another thread.
        model: see :func:`audit`.
        strategy: see :func:`audit`.
        rules: see :func:`audit`.

    Raises:
        MlxlabError: an unknown name.
    """
    live = Live(out, _auditor(out.stem, model, strategy, rules), show)
    try:
        yield live
    finally:
        live.stop()


class Live:
    """Takes exchanges as they end, and audits them in order of arrival.

    So each waits until those that arrived before have ended.
    """

    def __init__(self, out: Path, auditor: Auditor, show: Show) -> None:
        self._out = out
        self._auditor = auditor
        self._show = show
        self._ended: SimpleQueue[Exchange | None] = SimpleQueue()
        self._thread = Thread(target=self._work, daemon=True)
        self._thread.start()

    def take(self, exchange: Exchange) -> None:
        """Take an exchange; its id counts arrivals from 0."""
        self._ended.put(exchange)

    def stop(self) -> None:
        """Audit what has ended, and end. Safe to repeat."""
        self._ended.put(None)
        self._thread.join()

    def result(self) -> Audit:
        """Return the result, after :meth:`stop`.

        Raises:
            MlxlabError: no request could be audited, or the trace cannot be read.
        """
        return self._auditor.close(read_trace(self._out))

    def _work(self) -> None:
        waiting: list[tuple[int, Exchange]] = []
        following = 0
        while (exchange := self._ended.get()) is not None:
            heappush(waiting, (exchange.id, exchange))
            while waiting and waiting[0][0] == following:
                self._audit(heappop(waiting)[1])
                following += 1
        for _, exchange in sorted(waiting):
            self._audit(exchange)

    def _audit(self, exchange: Exchange) -> None:
        if (row := self._auditor.take(exchange)) is not None:
            self._show(row)


def _auditor(
    trace: str, model: str | ModelFolder, strategy: SpecLike, rules: str
) -> Auditor:
    folder = find_model(model) if isinstance(model, str) else model
    specs = parse_specs([strategy], rules)
    if len(specs) != 1:
        raise StrategyError(f"strategy {strategy!r}: {len(specs)} of them; give one")
    return Auditor(trace, folder, specs[0])
