"""From exchanges to prompts and answers."""

from dataclasses import replace

import pytest
from pydantic import ValidationError

from mlxlab.errors import ModelError, RequestError
from mlxlab.models.folder import ModelFolder, find_model
from mlxlab.rendering.renderer import Renderer
from mlxlab.replay.requests import render_trace
from mlxlab.traces import Exchange, Response, Trace
from mlxlab.traces.schema import Generated
from tests.support import wire
from tests.support.exchanges import exchange, small_trace


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(find_model())


def without_answers(trace: Trace) -> Trace:
    return Trace(
        trace.name,
        tuple(exchange(e.id, e.body or {}, None, e.session, e.agent) for e in trace),
    )


def test_sub_agents_are_sessions_of_their_own(renderer: Renderer) -> None:
    requests = render_trace(small_trace(), renderer)
    assert {s.session for s in requests} == {
        "aaaaaaaa",
        "aaaaaaaa/ag1",
        "bbbbbbbb",
        "cccccccc",
    }
    assert [s.id for s in requests] == list(range(10))


def test_computed_is_all_but_the_last_token(renderer: Renderer) -> None:
    request = render_trace(small_trace(), renderer)[0]
    assert len(request.computed) == len(request.prompt) + len(request.answer) - 1


def test_an_answer_not_recorded_is_read_off_the_next_request(
    renderer: Renderer,
) -> None:
    recorded = render_trace(small_trace(), renderer)
    inferred = render_trace(without_answers(small_trace()), renderer)
    for a, b in zip(recorded[:3], inferred[:3], strict=True):
        assert a.answer.tolist() == b.answer.tolist()
    assert len(inferred[8].answer) == 0  # the session's last


def test_failed_responses_are_no_answers(renderer: Renderer) -> None:
    request = render_trace(Trace("t", (small_trace().exchanges[0],)), renderer)[0]
    assert len(request.answer)
    failed = exchange(0, wire.first_body(), {"type": "error"})
    object.__setattr__(failed.response, "status", 529)
    assert len(render_trace(Trace("t", (failed,)), renderer)[0].answer) == 0


def test_reasoning_that_the_server_forbade_is_not_rendered(renderer: Renderer) -> None:
    asked = exchange(0, wire.first_body(), None)
    generated = Generated(
        tokenizer=renderer.model.tokenizer_digest, ids=(1,), thinking=False
    )
    answered = replace(asked, response=Response(0.0, 200, 0.0, generated=generated))
    off = replace(asked, body={**wire.first_body(), "thinking": {"type": "disabled"}})
    requests = (
        render_trace(Trace("t", (e,)), renderer)[0] for e in (asked, answered, off)
    )
    as_asked, as_done, as_off = (request.prompt.tokens.tolist() for request in requests)
    assert as_done == as_off != as_asked


def test_recorded_ids_are_those_of_the_model(renderer: Renderer) -> None:
    generated = Generated(
        tokenizer=renderer.model.tokenizer_digest, ids=(5, 9_000_000), thinking=None
    )
    asked = exchange(0, wire.first_body(), None)
    answered = replace(asked, response=Response(0.0, 200, 0.0, generated=generated))
    with pytest.raises(ModelError, match=r"id 9000000 .* vocab_size of 8704"):
        render_trace(Trace("t", (answered,)), renderer)


@pytest.mark.parametrize("id", [-1, 2**31, 2**70])
def test_recorded_ids_fit_into_32_bits(id: int) -> None:
    with pytest.raises(ValidationError, match="ids"):
        Generated(tokenizer="any", ids=(id,))


def test_empty_messages_name_the_request(renderer: Renderer) -> None:
    body = {**wire.first_body(), "messages": []}
    with pytest.raises(RequestError, match="trace t: request 3: messages is empty"):
        render_trace(Trace("t", (exchange(3, body, None),)), renderer)


def test_a_trace_without_inference_is_refused(renderer: Renderer) -> None:
    ping = Exchange(0, 0.0, "HEAD", "/api/hello", {}, None)
    with pytest.raises(RequestError, match="no POST /v1/messages"):
        render_trace(Trace("t", (ping,)), renderer)


def test_a_prompt_beyond_the_window_names_the_request() -> None:
    tiny = find_model()
    narrow = ModelFolder(
        tiny.name, tiny.path, {**tiny.config, "max_position_embeddings": 64}
    )
    with pytest.raises(
        ModelError, match=r"trace small: request 0: prompt is too long: \d+ tokens > 64"
    ):
        render_trace(small_trace(), Renderer(narrow))
