"""Hostile bodies: each is refused in time, by its field, and costs others nothing."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.hostile.test_json import SCHEMAS
from tests.support.endpoint import Client, ask, error_of
from tests.support.limited_server import LimitedServer, limited_server

PATHS = ("/v1/messages", "/v1/messages/count_tokens")
#: Seconds for any refusal, on a busy machine; the worst took minutes.
IN_TIME_S = 20.0
#: Seconds for ``/health`` beside any hostile request.
HEALTHY_S = 5.0
#: Bytes that a hostile body may add to the server's peak.
GROWTH = 700 * 2**20


@pytest.fixture(scope="module")
def server() -> Iterator[LimitedServer]:
    with limited_server() as server:
        with Client(server.url) as client:
            client.ask(ask())
        yield server
        assert server.process.poll() is None
        assert "Traceback" not in server.printed


@pytest.fixture
def client(server: LimitedServer) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client


def raw(**fields: str) -> bytes:
    """Return a body with fields given as JSON texts."""
    given = {
        "model": '"default"',
        "max_tokens": "4",
        "messages": '[{"role":"user","content":"hi"}]',
    } | fields
    return f"{{{','.join(f'{json.dumps(k)}:{v}' for k, v in given.items())}}}".encode()


def said(text: str) -> str:
    """Return messages with one text, given as JSON."""
    return f'[{{"role":"user","content":{text}}}]'


def many(item: str, count: int) -> str:
    """Return a JSON list that repeats an item."""
    return f"[{','.join([item] * count)}]"


def nested(depth: int) -> str:
    return '{"properties":' * depth + "{}" + "}" * depth


def send(client: Client, path: str, body: bytes) -> httpx.Response:
    """Send a body while another client asks for the health."""
    slowest, over = [0.0], threading.Event()

    def look() -> None:
        while not over.is_set():
            begun = time.monotonic()
            httpx.get(f"{client.base_url}/health", timeout=60).raise_for_status()
            slowest.append(time.monotonic() - begun)
            over.wait(0.05)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        begun = time.monotonic()
        headers = {"content-type": "application/json"}
        answer = client.post(path, content=body, headers=headers)
        taken = time.monotonic() - begun
    finally:
        over.set()
        looking.join()
    assert taken < IN_TIME_S
    assert max(slowest) < HEALTHY_S
    return answer


CALL = (
    '[{"role":"user","content":"x"},{"role":"assistant","content":'
    '[{"type":"tool_use","id":"t","name":"a","input":%s}]},{"role":"user","content":'
    '[{"type":"tool_result","tool_use_id":"t","content":"x"}]}]'
)
TOOL = '[{"name":%s,"input_schema":%s}]'
SURROGATE = '"\\ud800"'

PATTERNS = {
    "allOf": [
        {"type": "string", "pattern": f"(a|b)*{'ab'[i % 2]}(a|b){{{i}}}"}
        for i in range(20)
    ]
}


def held(schema: dict[str, Any], **fields: str) -> bytes:
    """Return a body that asks for JSON of a schema."""
    form = {"type": "json_schema", "schema": schema}
    return raw(output_config=json.dumps({"format": form}), **fields)


CHOICE = '{"type":"tool","name":"%s"}'
REFUSED: dict[str, tuple[bytes, str]] = {
    "max_tokens": (raw(max_tokens=str(2**32)), "max_tokens: "),
    "huge max_tokens": (raw(max_tokens=str(2**70)), "max_tokens: "),
    "budget": (
        raw(
            max_tokens="5000",
            thinking=f'{{"type":"enabled","budget_tokens":{2**31}}}',
        ),
        "thinking.budget_tokens: ",
    ),
    "no number": (raw(temperature="NaN"), "body: not JSON: NaN"),
    "endless number": (raw(max_tokens="1" * 5000), "body: not JSON: "),
    "numbers": (raw(messages=many("1", 9_000)), "messages.0: "),
    "many numbers": (raw(messages=many("1", 200_000)), "messages: 200,000 "),
    "most numbers": (raw(messages=many("1", 16_000_000)), "messages: the body "),
    "strings": (raw(metadata=many(SURROGATE, 300_000)), "metadata: "),
    "escaped strings": (raw(a=many('"\\\\"', 600_000)), "a: the body "),
    "objects": (raw(a=many("{}", 5_000_000)), "a: the body "),
    "tools": (raw(tools=many("0", 2_001)), "tools: 2,001 items"),
    "surrogate in a text": (
        raw(messages=said(SURROGATE)),
        "messages.0.content: half a surrogate",
    ),
    "surrogate in a stop": (raw(stop_sequences=f"[{SURROGATE}]"), "stop_sequences.0: "),
    "surrogate in a key": (raw(metadata=f"{{{SURROGATE}:1}}"), "metadata.\\ud800: "),
    "surrogate in a tool": (
        raw(tools=TOOL % (SURROGATE, "{}"), tool_choice='{"type":"any"}'),
        "tools.0.name: half",
    ),
    "surrogate in a schema": (
        raw(output_config=f'{{"format":{{"schema":{{"const":{SURROGATE}}}}}}}'),
        "output_config.format.schema.const: half",
    ),
    "raw surrogate": (
        raw(a='"_"').replace(b"_", b"\xed\xa0\x80"),
        "body: not UTF-8 at byte ",
    ),
    "UTF-16": (raw().decode().encode("utf-16"), "body: not UTF-8 at byte 0"),
    "deep schema": (raw(tools=TOOL % ('"a"', nested(700))), "tools.0.input_schema."),
    "deep input": (raw(messages=CALL % nested(700)), "messages.1.content.0.input: "),
    "deepest": (b"[" * 30_000_000, "body: lists and objects nested"),
    "empty blocks": (
        raw(messages=said(many('{"type":"text","text":""}', 30_000))),
        "messages.0.content: more than 20,000 blocks",
    ),
    "results": (
        raw(messages=said(f'[{{"content":{many("0", 30_000)}}}]')),
        "messages.0.content: more than 20,000 blocks",
    ),
    "words": (raw(messages=said(f'"{"word " * 1_600_000}"')), "prompt is too long: "),
    "texts": (
        raw(messages=said(many(f'{{"type":"text","text":"{"w " * 10_000}"}}', 300))),
        "prompt is too long: ",
    ),
    "no words": (raw(messages=said(f'"{"a" * 2**22}"')), "prompt is too long: "),
    "emoji": (raw(messages=said(f'"{"🙃" * 2**20}"')), "prompt is too long: "),
    "patterns": (held(PATTERNS), "output_config.format.schema: too complex"),
    "multiple": (
        held({"type": "integer", "multipleOf": 999_983}),
        "output_config.format.schema: too complex",
    ),
    "long schema": (
        held({"enum": [f"value {i}" for i in range(20_000)]}),
        "output_config.format.schema: 2",
    ),
    "impossible schema": (
        held({"type": "integer", "minimum": 3, "maximum": 2}),
        "output_config.format.schema: Unsatisfiable",
    ),
    "unknown reference": (
        held({"$ref": "http://127.0.0.1:1/a.json"}),
        "output_config.format.schema: ",
    ),
    "call and schema": (
        held(
            {"type": "object"}, tools=TOOL % ('"a"', "{}"), tool_choice='{"type":"any"}'
        ),
        "tool_choice: 'any' cannot be combined with output_config",
    ),
    "unknown tool": (
        raw(
            tools=json.dumps([{"name": f"tool {i}"} for i in range(2_000)]),
            tool_choice='{"type":"tool","name":"b"}',
        ),
        "tool_choice.name: no tool 'b'; given: tool 0, ",
    ),
    "long name": (
        raw(tools=TOOL % ('"a"', "{}"), tool_choice=CHOICE % ("b" * 2**20)),
        "tool_choice.name: no tool 'bbb",
    ),
    "stop of another kind": (raw(stop_sequences="[1,1]"), "stop_sequences.0: "),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_body_is_refused_by_its_field(
    name: str, path: str, server: LimitedServer, client: Client
) -> None:
    body, place = REFUSED[name]
    before = server.peak
    answer = send(client, path, body)
    assert answer.status_code == 400, answer.text[:300]
    message = error_of(answer)["message"]
    assert message.startswith(place)
    assert len(message) <= 1_000
    assert server.peak - before < GROWTH


@pytest.mark.parametrize(
    "text", [" " * 2**20, " \t" * 2**16, "\n" * 2**18, "\u00a0a" * 2**15, "1" * 2**17]
)
def test_odd_texts_are_counted_in_time(text: str, client: Client) -> None:
    answer = send(client, PATHS[1], json.dumps(ask(text)).encode())
    assert answer.status_code in {200, 400}, answer.text[:300]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "body",
    [
        raw(tools=TOOL % ('"a"', nested(120))),
        raw(messages=CALL % nested(120)),
        raw(messages=said(many('{"type":"text","text":"x"}', 4_000))),
        raw(messages=said('"\\ud83d\\ude00"')),
        raw(max_tokens="100000"),
        held(
            {"type": "object", "properties": {f"key {i}": {} for i in range(1_000)}},
            tools=TOOL % ('"a"', "{}"),
            tool_choice='{"type":"none"}',
            max_tokens="40",
        ),
    ],
    ids=["deep schema", "deep input", "blocks", "pair", "max_tokens", "properties"],
)
def test_what_is_within_the_limits_is_answered(
    body: bytes, path: str, client: Client
) -> None:
    fields: dict[str, Any] = json.loads(body) | {"stop_sequences": ["e", "a", " "]}
    answer = send(client, path, json.dumps(fields).encode())
    assert answer.status_code == 200, answer.text[:300]


_KEYWORDS = st.sampled_from(
    [
        *("type", "properties", "items", "pattern", "enum", "const", "$ref", "allOf"),
        *(
            "anyOf",
            "oneOf",
            "not",
            "if",
            "format",
            "minLength",
            "multipleOf",
            "minimum",
        ),
        *("required", "additionalProperties", "prefixItems", "$defs", "a"),
    ]
)
_JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(allow_nan=False),
        st.text(max_size=8),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(_KEYWORDS, inner, max_size=4)
    ),
    max_leaves=10,
)
_OBJECTS = st.dictionaries(_KEYWORDS, _JSON, max_size=4)


@pytest.mark.slow
@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(st.one_of(_JSON, st.builds(lambda good, odd: good | odd, SCHEMAS, _OBJECTS)))
def test_any_schema_is_refused_or_answered(
    server: LimitedServer, schema: dict[str, Any]
) -> None:
    body = held(schema)
    headers = {"content-type": "application/json"}
    with Client(server.url) as client:
        statuses = {
            client.post(path, content=body, headers=headers).status_code
            for path in PATHS
        }
    assert statuses in ({200}, {400})


UPGRADE = (
    b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\n"
    b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


@pytest.mark.parametrize(
    "request_bytes",
    [
        UPGRADE,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\r\n" * 5_000,
    ],
    ids=["websocket", "TLS", "version", "empty lines"],
)
def test_other_protocols_print_nothing(
    request_bytes: bytes, server: LimitedServer, client: Client
) -> None:
    url = httpx.URL(server.url)
    with socket.create_connection((url.host, url.port or 0), timeout=30) as connection:
        connection.sendall(request_bytes)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(2**16)
    assert not answer or b" 4" in answer.partition(b"\r\n")[0]
    client.ask(ask())
    assert not server.printed
