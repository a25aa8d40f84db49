"""How a server's protocol and model are found, and what its answers may be."""

from __future__ import annotations

import pytest

from mlxlab.errors import ConfigError, ServerError
from mlxlab.replay.endpoints.answers import WARM_UP, BrokenAnswerError, ask
from mlxlab.replay.endpoints.endpoint import EndpointSpec, connect, parse_endpoints
from tests.support.fake_server import CHAT, MESSAGES, FakeServer


def test_a_text_names_address_model_and_row() -> None:
    plain = EndpointSpec.parse("http://127.0.0.1:8080/v1/")
    assert plain == EndpointSpec("http://127.0.0.1:8080", "127.0.0.1:8080")
    full = EndpointSpec.parse("https://host/api#org/Model-4bit=name")
    assert full == EndpointSpec("https://host/api", "name", "org/Model-4bit")
    with pytest.raises(ConfigError, match="the name a is taken"):
        parse_endpoints(["http://h:1=a", "http://h:2=a"])


@pytest.mark.parametrize(
    ("paths", "found"), [((MESSAGES, CHAT), MESSAGES), ((CHAT,), CHAT)]
)
def test_messages_are_tried_before_chat_completions(
    paths: tuple[str, ...], found: str
) -> None:
    server = FakeServer(paths=paths)
    with server.running():
        endpoint = connect(EndpointSpec.parse(server.url))
    assert endpoint.dialect.path == found
    assert endpoint.model == "fake-1"
    assert [body["max_tokens"] for _, _, body in server.asked] == [1]


def test_a_server_without_either_protocol_is_refused_with_both_reasons() -> None:
    server = FakeServer(paths=())
    with (
        server.running(),
        pytest.raises(ServerError, match=r"messages .* 404 .*completions .* 404"),
    ):
        connect(EndpointSpec.parse(server.url))


def test_of_several_models_one_has_to_be_named_unless_there_is_a_default() -> None:
    server = FakeServer(models=("a", "b"))
    with server.running():
        advice = r"no such model.*; give one of its models as .*#MODEL: a, b"
        with pytest.raises(ServerError, match=advice):
            connect(EndpointSpec.parse(server.url))
        assert connect(EndpointSpec.parse(f"{server.url}#b")).model == "b"
        server.models = ("fast", "default")
        assert connect(EndpointSpec.parse(server.url)).model == "default"
        server.models = ()  # it takes any id, or none
        assert connect(EndpointSpec.parse(server.url)).model == ""
        assert server.asked[-1][2]["model"] == "any"
        server.paths = (CHAT,)
        connect(EndpointSpec.parse(server.url))
        assert "model" not in server.asked[-1][2]


def test_a_token_that_cannot_be_sent_is_not_shown() -> None:
    with pytest.raises(ServerError) as caught:
        connect(EndpointSpec.parse("http://127.0.0.1:1"), "secret\n")
    assert "secret" not in str(caught.value)


def test_a_token_that_a_server_repeats_is_not_shown() -> None:
    server = FakeServer(token="sk-secret-1", faults={0: 500, 1: 500})
    with (
        server.running(),
        pytest.raises(ServerError, match=r"500 .*\[token\]") as found,
    ):
        connect(EndpointSpec.parse(server.url), "sk-secret-1")
    assert "secret" not in str(found.value)


def test_a_stream_that_makes_no_sense_is_one_line() -> None:
    server = FakeServer(faults={1: "garbage"})
    with server.running():
        endpoint = connect(EndpointSpec.parse(f"{server.url}=fake"))
        with endpoint.client() as client, pytest.raises(BrokenAnswerError) as caught:
            ask(endpoint, client, WARM_UP)
    assert "fake broke off: an event that cannot be read" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_rate_counts_tokens_not_pieces() -> None:
    server = FakeServer(pause_s=0.05)
    with server.running():
        endpoint = connect(EndpointSpec.parse(server.url))
        with endpoint.client() as client:
            answer = ask(endpoint, client, WARM_UP, max_tokens=5)
            single = ask(endpoint, client, WARM_UP, max_tokens=1)
    assert answer.itl_s is not None
    assert answer.itl_s * 4 == pytest.approx(answer.tokens_s[-1] - answer.tokens_s[0])
    assert answer.ended_s is not None
    assert answer.ended_s >= answer.tokens_s[-1]
    assert single.itl_s is None
