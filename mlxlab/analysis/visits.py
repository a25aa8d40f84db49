"""Endpoints beside strategies: a comparison's requests, sent to running servers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import pandas as pd
from tqdm.auto import tqdm

from mlxlab.extras import needs
from mlxlab.replay.requests import RenderedRequest
from mlxlab.replay.traffic import Rules, Traffic
from mlxlab.traces import Trace

if TYPE_CHECKING:
    from mlxlab.replay.endpoints.endpoint import Endpoint
    from mlxlab.replay.endpoints.visit import Reply

__all__ = ["Visited", "Visits"]

#: Most tokens of an answer where requests are sent in turn: enough for a rate.
_ANSWER_TOKENS = 16

#: Counts that an endpoint may not state.
_COUNTS = (
    *("capacity", "prompt_tokens", "reused_tokens", "disk_tokens", "computed_tokens"),
    *("stored_bytes", "evicted", "answer_tokens"),
)
#: Share of the first prompt above which a cache was not empty.
_WARM = 0.05


@dataclass(frozen=True, slots=True)
class Visited:
    """The replies of one endpoint.

    Attributes:
        requests: by number, as rendered under the default rules.
        replies: in the order of sending.
    """

    endpoint: Endpoint
    requests: Sequence[RenderedRequest]
    replies: Sequence[Reply]

    @property
    def order(self) -> tuple[int, ...]:
        """Numbers of the requests, as they were sent."""
        return tuple(reply.number for reply in self.replies)

    @property
    def states_reuse(self) -> bool:
        """Whether any answer says how much of its prompt was reused.

        Some servers leave the number out where it is 0.
        """
        return any(
            reply.answer.usage.reused is not None
            for reply in self.replies
            if reply.answer and reply.answer.usage
        )

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each request, by number."""
        replies = sorted(self.replies, key=lambda reply: reply.number)
        return [self._row(reply) for reply in replies]

    def warnings(self) -> list[str]:
        """Return what its numbers are to be read with."""
        name, failed = self.endpoint.name, [r for r in self.replies if r.failure]
        found = []
        if failed:
            found.append(
                f"{name} failed at {len(failed)} of {len(self.replies)} requests; the "
                f"first failure: {failed[0].failure}"
            )
        if len(failed) < len(self.replies) and not self.states_reuse:
            found.append(f"{name} does not state what it reused")
        if (known := self._known_before()) is not None:
            found.append(
                f"{name} had {known:,} tokens of the first prompt from before; restart "
                "it for an empty cache"
            )
        return found

    def _known_before(self) -> int | None:
        """Return what was reused of the first prompt, if that is worth a word.

        Of several that were sent at once, any may have come first.
        """
        start = self.replies[0].arrived_s
        rows = [self._row(own) for own in self.replies if own.arrived_s == start]
        first = min(rows, key=lambda row: row["reused_tokens"] or 0)
        reused = int(first["reused_tokens"] or 0)
        return reused if reused > _WARM * first["prompt_tokens"] else None

    def _row(self, reply: Reply) -> dict[str, Any]:
        request, answer = self.requests[reply.number], reply.answer
        usage = answer.usage if answer else None
        prompt = usage.prompt if usage else len(request.prompt)
        reused = usage.reused if usage else None
        if usage and reused is None and self.states_reuse:
            reused = 0
        row = {
            "strategy": self.endpoint.name,
            "rules": "as sent",
            "session": request.session,
            "request": request.id,
            "prompt_tokens": prompt,
            "reused_tokens": reused,
            "computed_tokens": None if reused is None else prompt - reused,
            "arrived_s": reply.arrived_s,
            "failure": reply.failure,
        }
        if answer and answer.tokens_s:
            row |= {
                "ttft_s": answer.ttft_s,
                "itl_s": answer.itl_s,
                "answer_tokens": answer.generated or len(answer.tokens_s),
            }
        if answer and answer.ended_s is not None and not reply.failure:
            row["total_s"] = answer.ended_s - answer.sent_s
        return row


class Visits:
    """The endpoints of a comparison, and their replies once there are some.

    Args:
        listed: ``URL[#MODEL][=NAME]`` each; none is no visit.
        taken: names of other rows.
        token: see :func:`mlxlab.compare`.
        answer_tokens: see :func:`mlxlab.compare`.

    Raises:
        ConfigError: a text is malformed, or a name is taken.
        ServerError: an endpoint does not answer.
    """

    def __init__(
        self,
        listed: Iterable[str],
        taken: Iterable[str] = (),
        token: str | None = None,
        answer_tokens: int | None = None,
    ) -> None:
        self.answer_tokens = answer_tokens
        self.replied: list[Visited] = []
        self._endpoints: list[Endpoint] = []
        if texts := tuple(listed):
            with needs("compare with endpoints", "serve"):
                from mlxlab.replay.endpoints.endpoint import connect, parse_endpoints

            specs = parse_endpoints(texts, taken)
            self._endpoints = [connect(spec, token) for spec in specs]

    def __len__(self) -> int:
        return len(self._endpoints)

    def replay(
        self, traces: Sequence[Trace], traffic: Traffic, rules: Rules, bar: tqdm[Any]
    ) -> None:
        """Send the requests of traces to each endpoint, as they were recorded.

        Args:
            traces: recorded traces.
            traffic: of these traces.
            rules: those of the prompts that endpoints stand beside.
            bar: counts the prompt tokens of each request that has ended.
        """
        exchanges = [exchange for trace in traces for exchange in trace.inference]
        requests = traffic.requests[rules]
        most = self._most(traffic.users)
        for endpoint in self._endpoints:
            from mlxlab.replay.endpoints.visit import Question, Visit

            bar.set_description(endpoint.name)
            questions = [
                Question(exchange, own.tokens, most or max(1, len(own.answer)))
                for exchange, own in zip(exchanges, requests, strict=True)
            ]
            asking = Visit(endpoint, questions, bar.update)
            if traffic.users is None:
                replies = asking.in_turn(chain.from_iterable(traffic.orders))
            else:
                replies = asking.at_once(traffic.schedule())
            self.replied.append(Visited(endpoint, requests, replies))

    def below(self, strategies: pd.DataFrame) -> pd.DataFrame:
        """Return the rows of strategies and, below them, those of endpoints.

        Counts that an endpoint does not state are missing, so their type is ``Int64``,
        or ``UInt64`` where a strategy has no limit. Without endpoints the rows stay as
        they are.
        """
        if not self.replied:
            return strategies
        rows = pd.DataFrame([row for own in self.replied for row in own.rows()])
        columns = [*strategies, "itl_s", "failure"]
        seconds = [name for name in columns if name.endswith("_s")]
        unsigned = {c for c in _COUNTS if strategies[c].dtype.kind == "u"}
        typed = {
            **{name: "UInt64" if name in unsigned else "Int64" for name in _COUNTS},
            **dict.fromkeys(seconds, "float64"),
        }
        above = strategies.reindex(columns=columns).assign(failure="")
        frames = [own.astype(typed) for own in (above, rows.reindex(columns=columns))]
        return pd.concat(frames, ignore_index=True)

    def describe(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Return a manifest with what decides the rows; as it is without endpoints."""
        if not self.replied:
            return manifest
        users = manifest.get("users")
        return {
            **manifest,
            "endpoints": [visited.endpoint.describe() for visited in self.replied],
            "answer_tokens": self._most(users),
            "warnings": [*manifest.get("warnings", ()), *self._warnings(users)],
        }

    def _most(self, users: int | None) -> int | None:
        """Return the most tokens of each answer; None for the recorded length.

        Strategies decode recorded answers only where users ask at once.
        """
        return self.answer_tokens or (_ANSWER_TOKENS if users is None else None)

    def _warnings(self, users: int | None) -> Iterator[str]:
        requests = self.replied[0].requests
        last = {own.session: own for own in requests}
        again = sum(len(own.answer) for own in requests if last[own.session] is not own)
        share = again / sum(own.tokens for own in requests)
        most = self._most(users)
        length = f"{most} tokens" if most else "the recorded length"
        yield (
            f"endpoints answer by themselves, up to {length}; the recorded answers in "
            f"later prompts are new to them: up to {again:,} tokens ({share:.1%})"
        )
        yield (
            "endpoints keep their caches from trace to trace; reused is what they "
            "claim, in their own count of tokens"
        )
        for visited in self.replied:
            yield from visited.warnings()
