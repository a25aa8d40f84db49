"""What servers like this one were broken by, tried on a running one."""

from __future__ import annotations

import hmac
import json
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlxlab.engine import Worker
from mlxlab.engine.working_cache import WorkingCache
from mlxlab.errors import ServerError
from mlxlab.models.encoder import Encoded, Encoder
from mlxlab.prompt import Tokens
from mlxlab.server.aliases import Aliases
from mlxlab.server.app import create_app
from mlxlab.server.auth import Authentication
from mlxlab.server.credentials import check_token
from mlxlab.server.model_pool import ModelPool
from mlxlab.server.server import Options, Server
from mlxlab.server.service import Service
from mlxlab.traces import load_trace
from mlxlab.web.background import BackgroundServer
from mlxlab.web.guard import Bounds, Guard
from tests.support.endpoint import (
    PATIENCE_S,
    TOKEN,
    Client,
    ask,
    error_of,
    served,
    words,
)

PATHS = ("/v1/messages", "/anthropic/v1/messages", "/v1/models", "/metrics", "/nowhere")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with served() as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client


@pytest.fixture(scope="module")
def stranger(server: Server) -> Iterator[httpx.Client]:
    """Somebody without a token."""
    with httpx.Client(base_url=server.url) as client:
        yield client


def no_cors(answer: httpx.Response) -> bool:
    return not any(name.startswith("access-control-") for name in answer.headers)


def own(server: Server) -> str:
    return server.url.removeprefix("http://")


# Who may ask at all


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-api-key": ""},
        {"x-api-key": TOKEN[:-1]},
        {"x-api-key": f"{TOKEN}x"},
        {"x-api-key": TOKEN.upper()},
        {"authorization": TOKEN},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": "Bearer"},
        {"cookie": f"x-api-key={TOKEN}"},
    ],
)
def test_nothing_is_told_without_the_token(
    stranger: httpx.Client, path: str, headers: dict[str, str]
) -> None:
    for method in ("GET", "POST", "OPTIONS", "HEAD"):
        answer = stranger.request(method, path, headers=headers)
        assert answer.status_code == 401
        assert no_cors(answer)
        if method != "HEAD":
            assert error_of(answer)["type"] == "authentication_error"


def test_a_token_in_the_address_is_none(stranger: httpx.Client) -> None:
    for query in (f"api_key={TOKEN}", f"token={TOKEN}", f"x-api-key={TOKEN}"):
        assert stranger.get(f"/v1/models?{query}").status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"x-api-key": TOKEN},
        {"authorization": f"Bearer {TOKEN}"},
        {"authorization": f"bearer  {TOKEN}"},
        {"x-api-key": "sk-left-over", "authorization": f"Bearer {TOKEN}"},
    ],
)
def test_either_header_lets_in(stranger: httpx.Client, headers: dict[str, str]) -> None:
    assert stranger.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("prefix", ["", "/anthropic"])
def test_what_is_open_tells_nothing(
    stranger: httpx.Client, method: str, prefix: str
) -> None:
    path = "/health" if method == "GET" else "/api/hello"
    answer = stranger.request(method, f"{prefix}{path}")
    assert answer.status_code == 200
    assert TOKEN not in answer.text
    assert "tiny" not in answer.text
    assert answer.headers["request-id"].startswith("req_")


def test_all_tokens_are_compared_in_constant_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared: list[tuple[bytes, bytes]] = []
    compare_digest = hmac.compare_digest

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return compare_digest(a, b)

    with several() as (url, _):
        monkeypatch.setattr(hmac, "compare_digest", compare)
        for given in (FIRST, SECOND, "neither-of-them"):
            compared.clear()
            with Client(url, given) as client:
                client.get("/v1/models")
            assert compared == [
                (given.encode(), token.encode()) for token in (FIRST, SECOND)
            ]


@pytest.mark.parametrize(
    "token", ["", "short", "a" * 7, "ümlaute-im-token", "with\nnewline", " padded-one "]
)
def test_a_token_that_can_be_guessed_or_not_be_sent_is_refused(token: str) -> None:
    with pytest.raises(ServerError, match="8 printable ASCII characters"):
        Options(token=token, host="0.0.0.0")
    with pytest.raises(ServerError, match="token"):
        check_token(token)


@pytest.mark.parametrize("token", ["", "ümlaut", "new\nline", " padded "])
def test_loopback_makes_no_other_exception(token: str) -> None:
    with pytest.raises(ServerError, match="8 printable ASCII characters"):
        Options(token=token)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_a_short_token_is_refused_where_other_machines_reach(host: str) -> None:
    for short in ("sk-1234", "x"):
        with pytest.raises(ServerError, match="8 printable ASCII characters"):
            Options(token=short, host=host)
        for loopback in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
            assert Options(token=short, host=loopback).token == short


def test_a_short_token_lets_in_on_loopback_and_is_warned_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with served(token="sk-1234") as server, Client(server.url, "sk-1234") as client:
        assert client.get("/v1/models").status_code == 200
        client.headers["x-api-key"] = "sk-123"
        assert client.get("/v1/models").status_code == 401
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "short token" in warning
    assert "sk-1234" not in warning
    caplog.clear()
    with served():
        assert not [r for r in caplog.records if r.levelname == "WARNING"]


def test_there_is_always_a_token() -> None:
    with pytest.raises(ServerError, match="token"):
        Authentication(lambda scope, receive, send: None, [])  # type: ignore[arg-type,return-value]
    with served(token=None) as one, served(token=None) as other:
        assert one.token != other.token
        assert len(one.token) >= 32
        # Every one can follow --token: none begins with a hyphen.
        assert set(one.token) <= set("0123456789abcdef")
        assert httpx.get(f"{one.url}/v1/models").status_code == 401


# Web pages: DNS rebinding, cross-origin requests


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "a/?x=",
        "127.0.0.1.evil.example",
        "evil.example:80",
        "a@127.0.0.1",
    ],
)
@pytest.mark.parametrize("path", ["/v1/messages", "/health", "/"])
def test_a_foreign_host_is_refused(client: Client, host: str, path: str) -> None:
    method = {"/v1/messages": "POST", "/health": "GET", "/": "HEAD"}[path]
    answer = client.request(method, path, headers={"host": host})
    assert answer.status_code == 403
    assert no_cors(answer)
    if method != "HEAD":
        assert error_of(answer)["type"] == "permission_error"


def test_the_host_never_decides_which_path_is_asked_for(server: Server) -> None:
    """A Host with a path in it once made servers check another one."""
    request = (
        "POST /v1/messages HTTP/1.1\r\nHost: 127.0.0.1/health?x=\r\n"
        "Content-Length: 2\r\n\r\n{}"
    )
    assert sent(server, request.encode())[0] == 401
    keyed = request.replace("Content-", f"x-api-key: {TOKEN}\r\nContent-")
    assert sent(server, keyed.encode())[0] == 403


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "http://{own}.evil.example",
        "http://evil.example/{own}",
        "http://{own}@evil.example",
        "http://evil{own}",
        "https://{own}",
        "http://127.0.0.1",
        "http://localhost:3000",
        "null",
        "",
    ],
)
def test_a_foreign_origin_is_refused(
    server: Server, client: Client, origin: str
) -> None:
    headers = {"origin": origin.format(own=own(server))}
    for method in ("POST", "OPTIONS"):
        answer = client.request(method, "/v1/messages", headers=headers)
        assert answer.status_code == 403
        assert error_of(answer)["type"] == "permission_error"
        assert no_cors(answer)


def test_a_preflight_is_never_granted(server: Server, client: Client) -> None:
    wishes = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "x-api-key",
    }
    for origin in ({}, {"origin": server.url}):
        answer = client.options("/v1/messages", headers={**wishes, **origin})
        assert answer.status_code == 405
        assert no_cors(answer)
        assert error_of(answer)["type"] == "invalid_request_error"
    answer = client.get("/v1/models", headers={"origin": server.url})
    assert answer.status_code == 200
    assert no_cors(answer)


# Ids


def test_request_ids_are_the_servers_own(client: Client) -> None:
    claimed = {"request-id": "req_mine", "x-request-id": "req_mine"}
    ids = set()
    for _ in range(3):
        answer = client.post("/v1/messages", json=ask(), headers=claimed)
        ids |= {answer.headers["request-id"], answer.json()["id"]}
        assert answer.headers.get_list("request-id") == [answer.headers["request-id"]]
    assert len(ids) == 6
    assert not any("mine" in id for id in ids)


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/nowhere", 404, "not_found_error"),
        ("GET", "/v1/messages", 405, "invalid_request_error"),
        ("GET", "/v1/models/gpt-x", 404, "not_found_error"),
        ("GET", "/docs", 404, "not_found_error"),
        ("GET", "/openapi.json", 404, "not_found_error"),
        ("POST", "/v1/messages", 400, "invalid_request_error"),
    ],
)
def test_errors_have_the_apis_shape(
    client: Client, method: str, path: str, status: int, kind: str
) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, error_of(answer)["type"]) == (status, kind)


# Sizes and times


def sent(server: Server, data: bytes) -> tuple[int, str]:
    """Status and body of what comes back for bytes on a connection."""
    host, port = own(server).split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
        connection.sendall(data)
        answer = HTTPResponse(connection)
        answer.begin()
        return answer.status, answer.read().decode()


def test_large_headers_are_refused(client: Client) -> None:
    many = {f"x-{n}": "a" for n in range(200)}
    for headers in (many, {"x-long": "a" * 40_000}):
        answer = client.post("/v1/messages", json=ask(), headers=headers)
        assert answer.status_code == 431
        assert error_of(answer)["type"] == "invalid_request_error"


def test_a_large_body_is_refused_whether_announced_or_not(
    server: Server, client: Client
) -> None:
    head = "POST /v1/messages HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 67108864"
    status, text = sent(server, f"{head}\r\nx-api-key: {TOKEN}\r\n\r\n".encode())
    assert (status, json.loads(text)["error"]["type"]) == (413, "request_too_large")

    def body() -> Iterator[bytes]:
        for _ in range(40):
            yield b" " * 2**20

    try:
        streamed = client.post("/v1/messages", content=body())
    except httpx.WriteError:
        return  # the server has closed the connection before we had read its answer
    assert streamed.status_code == 413


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    with Worker() as worker:
        app = create_app(Service(Aliases.load(), worker, ModelPool(2**30)))
        guard = Authentication(Guard(app, bounds=Bounds(body_s=0.2)), [TOKEN])
        with BackgroundServer(guard) as http:
            head = (
                f"POST /v1/messages HTTP/1.1\r\nHost: 127.0.0.1\r\nx-api-key: {TOKEN}"
            )
            data = f"{head}\r\nContent-Length: 10\r\n\r\n{{".encode()
            with socket.create_connection(("127.0.0.1", http.port), 20) as connection:
                connection.sendall(data)
                assert connection.recv(65536).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"model": "default", "model": 5}',
        b'{"a": NaN}',
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b"[" * 1_000_000,
        b'{"max_tokens": 1' + b"0" * 10_000 + b"}",
        json.dumps(ask("a \ud800 b")).encode(),
        json.dumps(ask("\x00\x01")).encode()[:-1],
    ],
)
def test_a_broken_body_is_a_clean_400(client: Client, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        answer = client.post(path, content=body, headers=headers)
        assert (answer.status_code, error_of(answer)["type"]) == (
            400,
            "invalid_request_error",
        )


# Hostile schemas


def nested(depth: int, key: str) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        inner = {"a": schema} if key == "properties" else [schema]
        schema = {key: schema if key == "items" else inner}
    return schema


DEFINITIONS = {
    f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(30)
}
HOSTILE: dict[str, dict[str, Any]] = {
    "deep objects": nested(200, "properties"),
    "deep lists": nested(200, "items"),
    "deep alternatives": nested(200, "anyOf"),
    "many values": {"enum": [f"value-{n}" for n in range(5000)]},
    "many keys": {"properties": {f"p{n}": {"type": "string"} for n in range(1000)}},
    "nested repetition": {"type": "string", "pattern": "^(a+)+$"},
    "repetition of repetition": {
        "type": "string",
        "pattern": "^(([a-z]{1,1000}){1,1000}){1,1000}$",
    },
    "states without end": {"type": "string", "pattern": "(a|b)*a(a|b){200}"},
    "back reference": {"type": "string", "pattern": r"(a)\1"},
    "look-ahead": {"type": "string", "pattern": "(?=a)b"},
    "many brackets": {"type": "string", "pattern": "(" * 3000 + ")" * 3000},
    "no expression": {"type": "string", "pattern": "("},
    "itself": {"$ref": "#"},
    "a circle": {
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
        "$ref": "#/$defs/a",
    },
    "recursive": {"type": "object", "properties": {"a": {"$ref": "#"}}},
    "doubling": {"$defs": {**DEFINITIONS, "d30": {}}, "$ref": "#/$defs/d0"},
    "long list": {"type": "array", "items": {"type": "integer"}, "minItems": 10**9},
    "long text": {"type": "string", "minLength": 10**8},
    "large numbers": {"type": "integer", "minimum": 10**300},
    "small steps": {"type": "number", "multipleOf": 1e-300},
    "nothing": {"not": {}},
    "contradiction": {"allOf": [{"type": "string"}, {"type": "number"}]},
    "no type": {"type": 5},
    "no properties": {"properties": [1], "required": "x", "items": True},
}
#: What no answer can follow, or what cannot be enforced.
REFUSED = {
    "itself",
    "a circle",
    "back reference",
    "look-ahead",
    "many brackets",
    "no expression",
    "nothing",
    "contradiction",
    "no type",
    "no properties",
}
#: Seconds: generous, for a busy machine; none takes one when there is nothing else.
BOUNDED_S = 20.0


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_schemas_are_refused_or_answered_soon(
    client: Client, name: str
) -> None:
    schema = HOSTILE[name]
    tools = [{"name": "T", "input_schema": schema}]
    config = {"format": {"type": "json_schema", "schema": schema}}
    begun = time.monotonic()
    counted = client.post("/v1/messages/count_tokens", json=ask(tools=tools))
    assert counted.status_code in {200, 400}, counted.text
    if counted.status_code == 200 and counted.json()["input_tokens"] < 1000:
        choice = {"type": "tool", "name": "T"}
        assert client.ask(ask(tools=tools), tool_choice=choice)["stop_reason"]
    answer = client.post("/v1/messages", json=ask(output_config=config))
    assert answer.status_code in ({400} if name in REFUSED else {200, 400})
    if answer.status_code == 400:
        message = error_of(answer)["message"]
        place = message.partition(": ")[0]
        assert f"{place}.".startswith("output_config.format.schema.")
        assert len(message) < 400
        assert message.isprintable()
    assert time.monotonic() - begun < BOUNDED_S


def test_a_schema_that_cannot_be_followed_to_its_end_is_an_error(
    client: Client,
) -> None:
    """Rather than an answer that does not follow it."""
    schema = HOSTILE["repetition of repetition"]
    body = ask(output_config={"format": {"type": "json_schema", "schema": schema}})
    status, message = client.refusal(body, max_tokens=40)
    assert (status, "too many expressions" in message) == (400, True)


class Listener:
    """A server that nobody should come to."""

    def __enter__(self) -> Listener:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.socket.settimeout(0.0)
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.socket.getsockname()[1]}/schema.json"

    def was_visited(self) -> bool:
        try:
            self.socket.accept()[0].close()
        except BlockingIOError:
            return False
        return True


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_remote_schemas_are_never_fetched(
    client: Client, tmp_path: Path, scheme: str
) -> None:
    (tmp_path / "schema.json").write_text('{"const": "from the file"}')
    with Listener() as listener:
        path = f"file://{tmp_path / 'schema.json'}"
        schema = {"$ref": listener.url if scheme == "http" else path}
        config = {"format": {"type": "json_schema", "schema": schema}}
        status, message = client.refusal(ask(output_config=config))
        assert status == 400
        assert message.startswith("output_config.format.schema: ")
        assert client.ask(ask(tools=[{"name": "T", "input_schema": schema}]))
        assert not listener.was_visited()


@pytest.mark.parametrize("kind", ["image", "document"])
def test_remote_contents_are_never_fetched(client: Client, kind: str) -> None:
    with Listener() as listener:
        block = {"type": kind, "source": {"type": "url", "url": listener.url}}
        status, message = client.refusal(ask([block]))
        assert (status, kind in message) == (400, True)
        assert not listener.was_visited()


# Neighbours: caches are not shared between credentials


FIRST, SECOND = "the-first-token", "the-second-token"


@contextmanager
def several() -> Iterator[tuple[str, Service]]:
    """An endpoint with two tokens, put together as a server is with one."""
    with Worker() as worker:
        service = Service(Aliases.load(), worker, ModelPool(2**30))
        service.load()
        app = Authentication(Guard(create_app(service)), [FIRST, SECOND])
        with BackgroundServer(app) as http:
            yield http.url, service


@pytest.mark.parametrize("strategy", ["paged", "static-prefix", "mlx-lm"])
def test_one_credential_learns_nothing_of_anothers_prompts(
    strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed: list[int] = []
    compute = WorkingCache.compute

    def counted(self: WorkingCache, model: Any, tokens: Tokens) -> Any:
        if fed:  # a model that is being loaded is tried out on some tokens
            fed[-1] += len(tokens)
        return compute(self, model, tokens)

    monkeypatch.setattr(WorkingCache, "compute", counted)
    body, read = ask(words(300), max_tokens=1), []
    with (
        several() as (url, service),
        Client(url, FIRST) as first,
        Client(url, SECOND) as second,
    ):
        service.configure(service.aliases.with_default(strategy=strategy))
        for client in (first, first, second, second, first):
            fed.append(0)
            read.append(client.ask(body)["usage"]["cache_read_input_tokens"])
    assert read[0] == read[2] == 0
    assert min(read[1], read[3], read[4]) > 800
    # The same work, so that time tells nothing either.
    assert fed[2] == fed[0] > 900 > max(fed[1], fed[3], fed[4])


def test_one_credential_encodes_again_what_another_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoded: list[str] = []
    encode = Encoder._encode_whole

    def noted(self: Encoder, text: str) -> Encoded:
        encoded.append(text)
        return encode(self, text)

    body = ask("Only one of them may know this.", max_tokens=1)
    with (
        several() as (url, _),
        Client(url, FIRST) as first,
        Client(url, SECOND) as second,
    ):
        monkeypatch.setattr(Encoder, "_encode_whole", noted)
        times = []
        for client in (first, second, first, second):
            client.post("/v1/messages/count_tokens", json=body).raise_for_status()
            client.ask(body)
            times.append(sum("may know this" in text for text in encoded))
    assert times == [1, 2, 2, 2]


def test_claims_of_a_client_do_not_choose_a_cache(client: Client) -> None:
    body = ask(words(300, first=7000), max_tokens=1)
    claims = (
        {"x-claude-code-session-id": "a", "x-session-id": "a"},
        {"x-claude-code-session-id": "b", "request-id": "req_a"},
    )
    read = []
    for headers in claims:
        answer = client.post("/v1/messages", json=body, headers=headers)
        read.append(answer.json()["usage"]["cache_read_input_tokens"])
    assert read[0] < 100 < read[1]


# Traces


SECRETS = (
    "sk-" + "a1B2c3D4" * 4,
    "ghp_abcdefghijklmnopqrstuvwxyz0123",
    "AKIAABCDEFGHIJKLMNOP",
)


def test_recorded_traffic_is_private_and_without_secrets(
    server: Server, client: Client, tmp_path: Path
) -> None:
    path = tmp_path / "today.jsonl"
    server.record(path)
    keys = {"cookie": "session=cookie-secret", "authorization": f"Bearer {TOKEN}"}
    text = " and ".join(SECRETS)
    client.post("/v1/messages?key=query-secret", json=ask(text), headers=keys)
    client.post("/v1/messages", json=ask(text, stream=True), headers=keys)
    client.get("/v1/models", headers={"x-api-key": "wrong-token-here"})
    server.record(None)
    data = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for secret in (*SECRETS, TOKEN, "cookie-secret", "query-secret", "wrong-token"):
        assert secret not in data
    trace = load_trace(path)
    assert len(trace.inference) == 2
    assert "redacted-" in json.dumps(trace.inference[0].body)


def test_the_endpoint_file_and_the_shown_forms_keep_the_token(server: Server) -> None:
    files = list(Path("~/.cache/mlxlab/endpoints").expanduser().glob("*.json"))
    assert len(files) == 1
    assert stat.S_IMODE(files[0].stat().st_mode) == 0o600
    assert stat.S_IMODE(files[0].parent.stat().st_mode) == 0o700
    shown = (
        repr(server),
        str(server),
        repr(server.endpoint),
        repr(server.status()),
        server.status()._repr_html_(),
        repr(Options(token=TOKEN)),
        server.requests.to_string(),
        server._repr_html_(),
        repr(server.environment),
        *server._http.log,
    )
    assert not any(TOKEN in text for text in shown)
    assert server.environment["ANTHROPIC_AUTH_TOKEN"] == TOKEN
