"""Replays recorded requests against a running server: in turn, or by users at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from time import perf_counter

import httpx

from mlxlab.errors import RequestError
from mlxlab.replay.endpoints.answers import Answer, BrokenAnswerError, ask
from mlxlab.replay.endpoints.endpoint import Endpoint
from mlxlab.replay.simulator import Progress
from mlxlab.replay.turns import Schedule
from mlxlab.traces import Exchange

__all__ = ["Question", "Reply", "Visit"]

#: Most seconds between two looks at whether the replay was stopped.
_NAP_S = 0.1


@dataclass(frozen=True, slots=True)
class Question:
    """A recorded request as it is sent.

    Attributes:
        exchange: the recorded one.
        prompt: its tokens by our tokenizer, for progress.
        answer: most tokens of the answer.
    """

    exchange: Exchange
    prompt: int
    answer: int


@dataclass(frozen=True, slots=True)
class Reply:
    """One request after it was sent.

    Attributes:
        number: of the request.
        arrived_s: when it was sent, in seconds since the replay began.
        answer: what arrived; None if nothing was sent.
        failure: why there is no whole answer; empty if there is one.
    """

    number: int
    arrived_s: float
    answer: Answer | None
    failure: str = ""


class Visit:
    """Sends requests to a server. One that fails does not end the replay.

    Args:
        endpoint: the server.
        questions: by number.
        progress: called with the prompt tokens of each request that has ended.
    """

    def __init__(
        self, endpoint: Endpoint, questions: Sequence[Question], progress: Progress
    ) -> None:
        self.endpoint = endpoint
        self.questions = questions
        self._progress = progress
        self._started = perf_counter()
        self._gone = ""

    def in_turn(self, order: Iterable[int]) -> list[Reply]:
        """Send one request after the other."""
        with self.endpoint.client() as client:
            return [self._send(client, number, self._now()) for number in order]

    def at_once(self, schedule: Schedule) -> list[Reply]:
        """Send requests when users do; return the replies in the order of sending."""
        ended: SimpleQueue[Reply | Exception] = SimpleQueue()
        replies: list[Reply] = []
        running = 0
        with self.endpoint.client() as client:

            def send(number: int, due: float) -> None:
                try:
                    ended.put(self._send(client, number, due))
                except Exception as error:  # raised where the replay was started
                    ended.put(error)

            schedule.start(self._now())
            while running or schedule.next_due is not None:
                for due, number in schedule.take(self._now()):
                    # Not of a pool, which an interrupt would wait for.
                    Thread(target=send, args=(number, due), daemon=True).start()
                    running += 1
                try:
                    reply = ended.get(timeout=self._nap(schedule))
                except Empty:
                    continue
                if isinstance(reply, Exception):
                    raise reply
                running -= 1
                replies.append(reply)
                schedule.end(reply.number, self._now())
        return sorted(replies, key=lambda reply: reply.arrived_s)

    def _send(self, client: httpx.Client, number: int, due: float) -> Reply:
        question = self.questions[number]
        exchange, failure = question.exchange, self._gone
        answer: Answer | None = None
        try:
            if not failure:
                answer = ask(
                    self.endpoint,
                    client,
                    exchange.body or {},
                    max_tokens=question.answer,
                    recorded=exchange.headers,
                )
        except BrokenAnswerError as error:
            answer, failure = error.answer, error.reason
            if isinstance(error.__cause__, httpx.ConnectError | httpx.ConnectTimeout):
                self._gone = f"not sent: {failure}"
        except RequestError as error:
            failure = f"not sent: {error}"
        self._progress(question.prompt)
        return Reply(number, due, answer, failure)

    def _now(self) -> float:
        return perf_counter() - self._started

    def _nap(self, schedule: Schedule) -> float:
        due = schedule.next_due
        wait = _NAP_S if due is None else due - self._now()
        return min(max(wait, 0.001), _NAP_S)
