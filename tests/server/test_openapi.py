"""Requests made up from the app's own OpenAPI, good and bad, through the whole stack.

Whatever is sent is answered with a documented status and a body of its schema, and
nothing breaks the server.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from mlxlab.engine import Worker
from mlxlab.server.aliases import Aliases
from mlxlab.server.app import create_app
from mlxlab.server.auth import Authentication
from mlxlab.server.model_pool import ModelPool, default_budget
from mlxlab.server.service import Service
from mlxlab.web.guard import Guard
from mlxlab.web.sse import MessageAccumulator

TOKEN = "token-of-the-tests"
#: The Host that schemathesis sends.
HOST = "testserver"
EXAMPLES = 40
#: So that most of the time is not spent on decoding.
MOST_TOKENS = 4
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
EXPECTED = {200, 400, 404}


@pytest.fixture(scope="module")
def api() -> Iterator[Any]:
    with Worker() as worker:
        app = create_app(Service(Aliases.load(), worker, ModelPool(default_budget())))
        schema = schemathesis.openapi.from_dict(app.openapi())
        schema.app = Authentication(Guard(app, [HOST]), [TOKEN])
        yield schema


def send_all(operation: Any, mode: GenerationMode) -> Counter[int]:
    """Send made-up requests, check the answers and count their statuses."""
    statuses: Counter[int] = Counter()
    good = mode is GenerationMode.POSITIVE

    @given(case=operation.as_strategy(generation_mode=mode), stream=st.booleans())
    @settings(
        max_examples=EXAMPLES,
        # Bodies are large, and what fails is told whole by the checks.
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
        database=None,
    )
    def send(case: Any, stream: bool) -> None:
        if isinstance(case.body, dict):
            shorten(case.body)
            # Good requests are of a model that is there.
            case.body |= {"model": "default", "stream": stream} if good else {}
        response = case.call(headers={"x-api-key": TOKEN})
        statuses[response.status_code] += 1
        assert response.status_code in EXPECTED, response.text
        case.validate_response(response, checks=CHECKS)
        if "event-stream" in response.headers.get("content-type", [""])[0]:
            check_stream(response.content)

    send()
    return statuses


def shorten(body: dict[str, Any]) -> None:
    """Keep the answer short."""
    most = body.get("max_tokens")
    if isinstance(most, int | float):
        body["max_tokens"] = min(most, MOST_TOKENS)


def check_stream(content: bytes) -> None:
    """A stream tells of failures in itself, behind a status of 200."""
    message = MessageAccumulator()
    message.feed(content)
    assert message.message is not None
    assert "error" not in message.message
    assert message.message["stop_reason"]
    assert content.endswith(b'data: {"type":"message_stop"}\n\n')


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_good_requests_are_answered(api: Any, path: str) -> None:
    statuses = send_all(api[path]["POST"], GenerationMode.POSITIVE)
    # The rest asks for what the schema allows and this model cannot do.
    assert statuses[200] >= EXAMPLES // 4, statuses


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_bad_requests_are_refused(api: Any, path: str) -> None:
    statuses = send_all(api[path]["POST"], GenerationMode.NEGATIVE)
    assert statuses[400] > EXAMPLES // 2, statuses


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/health"])
def test_what_takes_no_arguments_is_answered(api: Any, path: str) -> None:
    statuses = send_all(api[path]["GET"], GenerationMode.POSITIVE)
    assert set(statuses) == {200}


def test_model_ids_are_known_or_not(api: Any) -> None:
    operation = api["/v1/models/{model_id}"]["GET"]
    assert send_all(operation, GenerationMode.POSITIVE)[404]
    known = operation.Case(path_parameters={"model_id": "claude-opus-4-1"})
    response = known.call(headers={"x-api-key": TOKEN})
    assert response.status_code == 200
    known.validate_response(response, checks=CHECKS)


def test_every_route_is_described(api: Any) -> None:
    assert set(api) == {
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/models",
        "/v1/models/{model_id}",
        "/metrics",
        "/health",
    }
    for path in api:
        for operation in api[path].values():
            assert {"200", "4XX", "5XX"} <= set(operation.definition.raw["responses"])


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "body: Field required"),
        (b"{", "body: not JSON: "),
        (b'{"model": "\xff"}', "body: "),
        (b"[" * 100_000, "body: "),
        (b"[]", "body: "),
        (b"1e999", "body: "),
    ],
)
def test_what_is_no_object_is_told(api: Any, body: bytes, says: str) -> None:
    case = api["/v1/messages"]["POST"].Case()
    headers = {"x-api-key": TOKEN, "content-type": "application/json"}
    response = case.call(headers=headers, data=body)
    assert response.status_code == 400
    assert json.loads(response.content)["error"]["message"].startswith(says)


@pytest.mark.parametrize(
    "sampling",
    [
        {"top_k": 8703},
        {"top_k": 2**40},
        {"top_p": 0},
        {"top_p": 1e-300},
        {"temperature": 5e-324},
        {"temperature": 2, "top_p": 1e-7, "top_k": 1},
    ],
)
def test_extreme_sampling_is_possible(api: Any, sampling: dict[str, float]) -> None:
    form = {"type": "json_schema", "schema": {"enum": ["a", "b"]}}
    body = {
        "model": "default",
        "max_tokens": 20,
        "messages": [{"role": "user", "content": "a or b?"}],
        "output_config": {"format": form},
        "temperature": 1,
    }
    case = api["/v1/messages"]["POST"].Case(body=body | sampling)
    response = case.call(headers={"x-api-key": TOKEN})
    assert response.status_code == 200, response.text
    assert json.loads(response.content)["content"][0]["text"] in {'"a"', '"b"'}
