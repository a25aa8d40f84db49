"""Explains requests while others are served: causes, and strategies in the shadow.

A thread follows the plans and commits of all caches in their order. It works while no
request waits for its first token. If requests come faster than that, it follows without
explaining; if that is too slow as well, it begins anew.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from threading import Condition, Thread
from typing import TypeVar
from weakref import WeakKeyDictionary

import numpy as np

from mlxlab.analysis.misses.attribution import History
from mlxlab.analysis.misses.horizon import Horizon
from mlxlab.engine import Engine, Stored
from mlxlab.limits import (
    EXPLAINED_CACHES,
    EXPLAINED_REQUESTS,
    EXPLAINED_SEQUENCES,
    EXPLAINED_TOKENS,
    EXPLAINED_WAITING,
)
from mlxlab.prompt import Prompt
from mlxlab.replay.requests import RenderedRequest
from mlxlab.server.event_log import EventLog, Stage
from mlxlab.server.explanation import Explanation
from mlxlab.server.lanes import Followed, Lane, Setting
from mlxlab.server.metrics import Metrics, Served
from mlxlab.strategies import Plan
from mlxlab.strategies.use import Use

__all__ = ["Asked", "Explainer"]

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds between two looks at the backlog, while requests wait for their first token.
_LOOK_S = 0.5
#: Seconds without such requests; a client's next turn often comes at once.
_SETTLED_S = 0.1
#: As many tokens take as much memory as what waits beside them: a plan, a commit.
_NOTE = 256

HORIZON = Horizon(EXPLAINED_TOKENS, EXPLAINED_SEQUENCES, EXPLAINED_REQUESTS)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it was rendered.

    Attributes:
        number: of the request.
        use: as it is known before its answer.
    """

    number: int
    prompt: Prompt
    setting: Setting
    use: Use

    @property
    def rendered(self) -> RenderedRequest:
        """The request without its answer."""
        none = np.empty(0, np.int32)
        return RenderedRequest(
            self.use.agent, self.number, self.prompt, none, use=self.use
        )


class Explainer:
    """Follows the requests of one server.

    Args:
        events: take the explanations.
        metrics: likewise.
        shadow: see :class:`~mlxlab.server.lanes.Lane`.
        waiting: most tokens of prompts that wait to be followed.
    """

    def __init__(
        self,
        events: EventLog,
        metrics: Metrics,
        shadow: Sequence[str] | None = None,
        *,
        waiting: int = EXPLAINED_WAITING,
    ) -> None:
        self._events = events
        self._metrics = metrics
        self._shadow = shadow
        self._most = waiting
        self._changed = Condition()
        self._backlog: deque[tuple[int, Callable[[], None]]] = deque()
        self._waiting = 0  # tokens
        self._has_gap = False  # something had no room in the backlog
        self._is_closed = False
        self._thread: Thread | None = None
        # Used by the worker only.
        self._engines: WeakKeyDictionary[Engine, int] = WeakKeyDictionary()
        self._numbers = count()
        # Used by the thread only.
        self._lanes: OrderedDict[int, Lane] = OrderedDict()
        self._histories: OrderedDict[tuple[str, str], History] = OrderedDict()
        self._open: dict[int, Followed] = {}

    def plan(self, asked: Asked, engine: Engine, plan: Plan) -> None:
        """Note that a request was planned; on the worker."""
        cache = self._engines.setdefault(engine, next(self._numbers))
        self._put(len(asked.prompt), partial(self._plan, asked, cache, plan))

    def store(self, number: int, stored: Stored, answer: Sequence[int]) -> None:
        """Note a commit of a request; on the worker.

        Args:
            number: of the request.
            stored: what was stored.
            answer: its ids so far.
        """
        ids = tuple(answer)
        call = partial(self._store, number, stored.length, ids, stored.use)
        self._put(len(ids), call)

    def end(self, served: Served) -> None:
        """Note the end of a request that was planned."""
        self._put(0, partial(self._end, served))

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _put(self, tokens: int, call: Callable[[], None]) -> None:
        with self._changed:
            if self._is_closed:
                return
            size = tokens + _NOTE
            if tokens and self._waiting + size > self._most:
                self._has_gap = True
                return
            self._backlog.append((size, call))
            self._waiting += size
            if self._thread is None:
                self._thread = Thread(
                    target=self._run, name="mlxlab-explainer", daemon=True
                )
                self._thread.start()
            self._changed.notify()

    def _run(self) -> None:
        while (call := self._next()) is not None:
            try:
                call()
            except Exception as error:
                log.error("a request was not explained", exc_info=error)
                self._forget()

    def _next(self) -> Callable[[], None] | None:
        """Wait for something to do, and for a quiet time; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._backlog or self._is_closed)
        while not (self._is_closed or self._is_late or self._is_quiet()):
            pass
        with self._changed:
            if self._is_closed:
                return None
            if self._has_gap:
                self._has_gap = False
                self._forget()
            size, call = self._backlog.popleft()
            self._waiting -= size
            return call

    def _is_quiet(self) -> bool:
        return self._events.wait_for_quiet(_LOOK_S, settled=_SETTLED_S)

    @property
    def _is_late(self) -> bool:
        """Whether there is no time to explain."""
        return self._waiting > self._most // 2

    def _forget(self) -> None:
        """Begin anew: what is followed no longer equals what is served."""
        self._lanes.clear()
        self._histories.clear()
        self._open.clear()

    def _plan(self, asked: Asked, cache: int, plan: Plan) -> None:
        at = asked.setting
        key = at.folder.name, at.credential
        history = _latest(self._histories, key, lambda: History(HORIZON))
        lane = _latest(self._lanes, cache, lambda: Lane(at, history, self._shadow))
        request, explain = asked.rendered, not self._is_late
        self._open[asked.number] = lane.plan(request, plan, explain=explain)

    def _store(self, number: int, length: int, answer: Sequence[int], use: Use) -> None:
        own = self._open.get(number)
        if own is not None and length:
            own.lane.commit(own, length, answer, use)

    def _end(self, served: Served) -> None:
        own = self._open.pop(served.request, None)
        explained = Explanation() if own is None else own.lane.explain(own)
        computed = served.prompt_tokens - served.reused_tokens
        seconds = served.prefill_s / max(computed, 1)
        self._metrics.explain(served, explained, seconds)
        self._events.add(served.request, Stage.EXPLAINED, **explained.facts(seconds))


K = TypeVar("K", bound=Hashable)


def _latest(kept: OrderedDict[K, T], key: K, make: Callable[[], T]) -> T:
    """Return what is kept under a key, made if need be; the least recent goes."""
    if key not in kept:
        kept[key] = make()
    kept.move_to_end(key)
    if len(kept) > EXPLAINED_CACHES:
        kept.popitem(last=False)
    return kept[key]
