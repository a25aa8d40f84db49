"""Renders a trace to replayable requests: prompts and recorded answers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from mlxlab.errors import ModelError, RequestError
from mlxlab.prompt import Prompt, Tokens, common_prefix
from mlxlab.rendering.renderer import Renderer
from mlxlab.strategies.use import UNKNOWN, Use
from mlxlab.traces import Exchange, Trace
from mlxlab.traces.schema import Json, Order

__all__ = ["RenderedRequest", "label_sessions", "render_exchange", "render_trace"]


@dataclass(frozen=True, slots=True)
class RenderedRequest:
    """One recorded exchange, rendered for a model.

    Attributes:
        session: session id, ``/`` and the agent's id for a sub-agent.
        id: the exchange's id in its trace.
        answer: ids of the answer, the end of turn included; empty if the trace has no
            answer.
        unit: tokens that an id of the prompt stands for.
        trace: name of the trace.
        order: when it was planned and stored among other requests of its trace, if our
            own server recorded it.
        use: what an eviction policy is told of it, when its answer has ended.
    """

    session: str
    id: int
    prompt: Prompt
    answer: Tokens
    unit: int = 1
    trace: str = ""
    order: Order | None = None
    use: Use = UNKNOWN

    @property
    def tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt)

    @property
    def answer_tokens(self) -> int:
        """Tokens of the answer; 0 if it is not known."""
        return len(self.answer)

    @property
    def only_fills(self) -> bool:
        """Whether no answer was asked for, only that the cache be filled."""
        return self.prompt.pinned and not self.answer_tokens

    def tokens_between(self, start: int, stop: int) -> int:
        """Return the tokens at positions ``[start, stop)`` of the prompt, in units."""
        return min(stop * self.unit, self.tokens) - min(start * self.unit, self.tokens)

    @property
    def cut_off(self) -> int | None:
        """Tokens computed of a prompt whose client left; None of a whole prompt."""
        if self.order is None or len(self.answer):
            return None
        end = max((length for _, length in self.order.stored), default=0)
        return end if end < len(self.prompt) - 1 else None

    @property
    def computed(self) -> Prompt:
        """The sequence fed to the model: prompt and answer, without the last id."""
        length = len(self.prompt) + len(self.answer) - 1
        return self.prompt.extended(self.answer).head(length)

    def shifted(self, seconds: float) -> Self:
        """Return the request on a clock that is ahead by this much."""
        return replace(self, use=self.use.shifted(seconds))

    def without_tokens(self) -> RenderedRequest:
        """Return the request by name only."""
        none = np.empty(0, np.int32)
        return replace(self, prompt=Prompt(none), answer=none)


def render_trace(
    trace: Trace,
    renderer: Renderer,
    progress: Callable[[int], object] = lambda requests: None,
) -> list[RenderedRequest]:
    """Return a trace's inference requests in order of arrival.

    An answer that was not recorded is read from a later request that repeats it.

    Args:
        trace: a recorded trace.
        renderer: a renderer for the model and rules of the prompts.
        progress: called with the number of requests just rendered.

    Raises:
        RequestError: a request is not a valid Messages request, or there is none.
        ModelError: a prompt is longer than the model's window, or cannot be rendered.
    """
    requests: list[RenderedRequest] = []
    equipped = {e.session for e in trace.inference if e.body and e.body.get("tools")}
    for exchange in trace.inference:
        requests.append(render_exchange(trace.name, exchange, renderer, equipped))
        progress(1)
    if not requests:
        raise RequestError(
            f"trace {trace.name}: no POST /v1/messages in it; record one with a client "
            "that sends some"
        )
    end = renderer.tokenizer.eos_token_id
    return [
        request
        if len(request.answer)
        else replace(request, answer=_repeated_answer(request, requests[i:], end))
        for i, request in enumerate(requests, start=1)
    ]


def render_exchange(
    trace: str, exchange: Exchange, renderer: Renderer, equipped: Collection[str]
) -> RenderedRequest:
    """Return one inference request, with its answer if that was recorded.

    Args:
        trace: name of its trace.
        exchange: what was recorded.
        renderer: a renderer for the model and rules of the prompt.
        equipped: sessions that have tools.

    Raises:
        RequestError, ModelError: see :func:`render_trace`.
    """
    where = f"trace {trace}: request {exchange.id}"
    response = exchange.response
    body = _request_body(exchange)
    prompt: Prompt
    answer: Tokens = np.empty(0, dtype=np.int32)
    if response and response.status == 200 and response.message:
        prompt, answer = renderer.render_exchange(body, response.message, where)
    else:
        prompt = renderer.render(body, where)
    generated = response.generated if response else None
    is_ours = generated and generated.tokenizer == renderer.model.tokenizer_digest
    if generated and is_ours and (generated.ids or not generated.redacted):
        answer = np.array(generated.ids, dtype=np.int32)
        renderer.model.require_ids(answer)
    length, window = len(prompt) + len(answer), renderer.model.window
    if length > window:
        raise ModelError(
            f"{where}: prompt is too long: {length} tokens > {window} maximum of "
            f"model {renderer.model.name}"
        )
    agent = f"/{exchange.agent[:8]}" if exchange.agent else ""
    session = exchange.session + agent
    return RenderedRequest(
        session,
        exchange.id,
        prompt,
        answer,
        trace=trace,
        order=response.order if response else None,
        use=_use(exchange, session, side=_is_side_request(exchange, equipped)),
    )


def label_sessions(
    traces: Sequence[Trace], rendered: Sequence[list[RenderedRequest]]
) -> list[list[RenderedRequest]]:
    """Put trace names before session ids if there are several traces."""
    if len(traces) == 1:
        return list(rendered)
    return [
        [_labelled(request, f"{trace.name}:{request.session}") for request in requests]
        for trace, requests in zip(traces, rendered, strict=True)
    ]


def _labelled(request: RenderedRequest, session: str) -> RenderedRequest:
    return replace(request, session=session, use=replace(request.use, agent=session))


def _use(exchange: Exchange, agent: str, *, side: bool) -> Use:
    """Return what our server told its policy, else what the recording shows."""
    response = exchange.response
    if response is None:
        return Use(agent, exchange.t, side=side)
    message = response.message or {}
    if (told := response.told) is not None:
        tools = tuple(_called(message)) if told.stop else ()
        times = told.arrived, told.ended
        return Use(
            agent, *times, told.stop, tools, told.side, told.running, told.learned
        )
    # Where a history lacks the end of an answer, the request's time stands there.
    ended = response.t if response.t > exchange.t else None
    stop = message.get("stop_reason")
    tools = tuple(_called(message))
    if not isinstance(stop, str):  # many histories do not keep it
        stop = "tool_use" if tools else ""
    return Use(agent, exchange.t, ended, stop, tools, side)


def _called(message: Mapping[str, Json]) -> Iterator[str]:
    """Yield the names of the tools that an answer calls."""
    blocks = message.get("content")
    for block in blocks if isinstance(blocks, list) else ():
        if isinstance(block, dict) and block.get("type") == "tool_use":
            yield str(block.get("name"))


def _is_side_request(exchange: Exchange, equipped: Collection[str]) -> bool:
    """Return whether a request asks for JSON, or lacks its session's tools."""
    body = exchange.body or {}
    output = body.get("output_config")
    form = output.get("format") if isinstance(output, dict) else None
    asks_json = isinstance(form, dict) and form.get("type") == "json_schema"
    return asks_json or (exchange.session in equipped and not body.get("tools"))


def _request_body(exchange: Exchange) -> dict[str, Json] | None:
    """Return the request body, with the server's decision about thinking."""
    generated = exchange.response.generated if exchange.response else None
    if exchange.body is None or generated is None or generated.thinking is None:
        return exchange.body
    kind = "adaptive" if generated.thinking else "disabled"
    return {**exchange.body, "thinking": {"type": kind}}


def _repeated_answer(
    request: RenderedRequest, later: Sequence[RenderedRequest], end: int | None
) -> Tokens:
    """Return the answer from the first later prompt that begins with this one."""
    own = request.prompt.tokens
    for other in later:
        ids = other.prompt.tokens
        if other.session == request.session and common_prefix(own, ids) == len(own):
            ends = np.flatnonzero(ids[len(own) :] == end)
            if len(ends):
                return ids[len(own) : len(own) + ends[0] + 1]
    return request.answer
