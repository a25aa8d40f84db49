"""When requests that ran at once were stored: a replay follows the recorded order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, Protocol, TypeVar

from mlxlab.replay.requests import RenderedRequest
from mlxlab.strategies.use import Use

__all__ = ["Commits", "Store", "order_as_planned"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Store(Protocol[T_co]):
    """Stores the first tokens of a request that has been planned."""

    def __call__(self, length: int, use: Use, /) -> T_co:
        """Store as many as ``length``; ``use`` is what is known of the request then."""


def order_as_planned(requests: Sequence[RenderedRequest]) -> list[RenderedRequest]:
    """Return the requests of a trace in the order in which they were planned.

    Where the trace has recorded it, requests without an order were never planned: they
    were refused, or their client left the queue. They are left out.

    Args:
        requests: in order of arrival.
    """
    planned = [(own.order.planned, own) for own in requests if own.order]
    if not planned:
        return list(requests)
    return [own for _, own in sorted(planned, key=lambda pair: pair[0])]


class Commits(Generic[T]):
    """Stores requests in the order in which they were stored when they were recorded.

    A request without a recorded order is stored before the next one is planned.
    """

    def __init__(self) -> None:
        self._due: dict[str, dict[int, Callable[[], T]]] = {}  # by trace and number

    def before(self, request: RenderedRequest) -> list[T]:
        """Store what had been stored when a request was planned.

        Returns:
            What storing returned, in order.
        """
        if request.order is None:
            return []
        due = self._due.get(request.trace, {})
        numbers = sorted(n for n in due if n < request.order.planned)
        return [due.pop(number)() for number in numbers]

    def after(self, request: RenderedRequest, store: Store[T]) -> list[T]:
        """Store what was stored between a request's plan and the next one.

        Args:
            request: has just been planned.
            store: is called for each of its commits, now or later.

        Returns:
            What storing returned, in order.
        """
        if request.order is None:
            return [store(len(request.computed), request.use)]
        due = self._due.setdefault(request.trace, {})
        for number, length in request.order.stored:
            is_last = number == request.order.stored[-1][0]
            use = request.use if is_last else request.use.unfinished
            due[number] = partial(store, length, use)
        done = []
        number = request.order.planned + 1
        while number in due:
            done.append(due.pop(number)())
            number += 1
        return done
