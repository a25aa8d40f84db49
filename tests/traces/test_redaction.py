"""Nothing of a credential reaches a trace."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from mlxlab.traces import TraceWriter, read_trace
from mlxlab.traces.redaction import kept_headers, kept_path, redacted
from mlxlab.traces.secret_patterns import Haystack, SecretPattern, compile_patterns
from tests.support.trace_samples import HEADERS, SESSION

# Put together here, so that no scanner takes this file for a leak.
SECRETS = [
    "sk-" + "ant-api03-AbCdEfGhIjKlMnOpQrStUv",
    "AKIA" + "IOSFODNN7EXAMPLE",
    "ghp" + "_0123456789abcdefghijABCDEFGHIJ",
    "xoxb" + "-123456789012-abcdefghij",
    "Bearer " + "abc123.def456.ghi789",
    "-----BEGIN RSA PRIVATE" + " KEY-----\nMIIEow\nabc=\n-----END RSA PRIVATE KEY-----",
    "-----BEGIN PRIVATE" + " KEY-----\nMIIEow==",
    "-----BEGIN EC PRIVATE" + " KEY-----\n2\tDEK-Info: AES-128-CBC\n3\tMII\n"
    "4\t-----END EC PRIVATE KEY-----",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_becomes_a_placeholder_of_its_length(secret: str) -> None:
    clean, found = redacted({"a": [f"before {secret} after"]})
    text = clean["a"][0]
    assert found == 1
    assert len(text) == len(f"before {secret} after")
    assert text.startswith("before redacted-")
    assert text.endswith(" after")
    assert redacted(clean) == (clean, 0)


@pytest.mark.parametrize("pattern", compile_patterns(), ids=str)
@settings(max_examples=20, suppress_health_check=[HealthCheck.filter_too_much])
@given(data=st.data())
def test_no_form_of_a_secret_is_overlooked(
    pattern: SecretPattern, data: st.DataObject
) -> None:
    # Drawn as text, because not all bytes are one.
    source = pattern.regex.pattern.decode()
    regex = re.compile(source, pattern.regex.flags | re.ASCII)
    secret = data.draw(st.from_regex(regex, alphabet=st.characters(codec="ascii")))
    spans = [*pattern.find(Haystack(secret.encode()))]
    assume(spans)
    clean, found = redacted(secret)
    assert len(clean) == len(secret)
    for start, stop in spans:
        hidden = clean[start:stop]
        assert hidden in "redacted-" * len(secret)
        assert found or hidden == secret[start:stop]


@pytest.mark.parametrize(
    "text",
    ["task-ant-and-bee-and-more-words", "Bearer of the ring", "AKIA", "sk-learn"],
)
def test_other_text_stays(text: str) -> None:
    assert redacted([text]) == ([text], 0)


def test_only_listed_headers_stay() -> None:
    assert kept_headers(HEADERS | {"x-claude-code-token": "t", "X-Other": "o"}) == {
        "user-agent": "client/1.0",
        "x-claude-code-session-id": SESSION,
        "anthropic-version": "2023-06-01",
    }


def test_credentials_in_an_address_go() -> None:
    assert kept_path("/v1/messages?beta=true&api_key=x") == "/v1/messages?beta=true"
    assert kept_path("/v1/messages?a=%20&b") == "/v1/messages?a=%20&b"
    assert kept_path("//[?key=1") == "//["
    assert kept_path("//[/\ud800?a=\ud800&key=1") == "//[/\ud800?a=%3F"


def test_the_file_holds_no_secret_and_the_log_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "t.jsonl"
    body = {"messages": [{"role": "user", "content": s} for s in SECRETS]}
    with caplog.at_level(logging.WARNING), TraceWriter(path) as writer:
        for _ in range(2):
            writer.request(
                t=0.0, method="POST", path="/v1/messages", headers=HEADERS, body=body
            )
        assert writer.secrets == len(SECRETS)
    assert "secrets replaced" in caplog.text
    raw = path.read_text()
    for secret in [*SECRETS, "sk-dummy", "abc123def456ghi789"]:
        assert secret not in raw
    sent, read = body["messages"], read_trace(path).exchanges[0].body
    assert read is not None
    lengths = [len(m["content"]) for m in read["messages"]]
    assert lengths == [len(m["content"]) for m in sent]
