"""Planted secrets of many kinds are in no form in what is written."""

from __future__ import annotations

import json
import time
from base64 import b64encode
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlxlab.analysis.compare import compare
from mlxlab.analysis.misses.run import misses as find_misses
from mlxlab.models.folder import find_model
from mlxlab.rendering.thinking import sign, unpack_signature
from mlxlab.replay.export import export_trace
from mlxlab.traces import TraceWriter, load_trace, read_trace, write_trace
from mlxlab.traces.bundled import bundled_traces
from mlxlab.traces.id_redaction import (
    find_tokenizer,
    mask_generated,
    mask_signature,
)
from mlxlab.traces.importers import import_trace
from mlxlab.traces.masking import mask_text
from mlxlab.traces.recording.recorder import recording
from mlxlab.traces.redaction import redacted
from mlxlab.traces.schema import Generated
from mlxlab.traces.secret_patterns import compile_patterns
from tests.support.endpoint import Client, served
from tests.support.planted import KINDS, leaks, plant

MODEL = find_model()
TOKENIZER: Any = MODEL.tokenizer
OPEN, CLOSE = (TOKENIZER.convert_tokens_to_ids(tag) for tag in ("<think>", "</think>"))


def document(text: str) -> dict[str, Any]:
    data = b64encode(text.encode()).decode()
    source = {"type": "base64", "media_type": "text/plain", "data": data}
    return {"type": "document", "source": source}


def planted_body(kind: str) -> dict[str, Any]:
    """A request with a secret wherever one can be."""
    text, secret = plant(kind), "".join(KINDS[kind])
    call = {"command": f"echo {secret}", "env": {secret: [secret]}}
    blocks = [
        {"type": "text", "text": text, "cache_control": {"type": secret}},
        {"type": "text", "text": json.dumps({"nested": json.dumps({"a": text})})},
        {"type": "text", "text": "\\n" + secret + "\\n"},
        *(document("x" * shift + " " + text) for shift in range(3)),
        {"type": "text", "text": "data: " + b64encode(text.encode()).decode()},
    ]
    results = [{"type": "tool_result", "tool_use_id": "t0", "content": text}]
    return {
        "model": "default",
        "max_tokens": 512,
        "system": [{"type": "text", "text": text}],
        "metadata": {"user_id": text},
        "stop_sequences": [secret],
        "tools": [
            {"name": "Run", "description": text, "input_schema": {"default": secret}}
        ],
        "messages": [
            {"role": "user", "content": blocks},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": text, "signature": secret},
                    {"type": "tool_use", "id": "t0", "name": "Run", "input": call},
                ],
            },
            {"role": "user", "content": results},
        ],
    }


def reply(text: str, secret: str) -> list[dict[str, Any]]:
    """An answer with the secret in each kind of block."""
    return [
        {"type": "thinking", "thinking": f"Hm. {text}", "signature": "c2ln"},
        {"type": "text", "text": text},
        {"type": "tool_use", "name": "Run", "input": {"command": f"echo {secret}"}},
    ]


def script_of(tmp_path: Path, text: str, secret: str) -> Path:
    path = tmp_path / "script.json"
    content = {"conversations": [], "otherwise": reply(text, secret)}
    path.write_text(json.dumps(content))
    return path


def test_there_are_many_kinds() -> None:
    assert len(KINDS) >= 25
    for kind in KINDS:
        assert set(leaks(plant(kind))) >= {kind}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_found_and_its_length_kept(kind: str) -> None:
    for behind in (" so.", "\n", '"', "\\n", ""):
        text = plant(kind, behind=behind)
        clean, found = redacted([text])
        assert found
        assert len(clean[0]) == len(text)
        assert not leaks(clean[0], [kind])
        assert redacted(clean) == (clean, 0)


def test_a_member_is_judged_by_its_key() -> None:
    secret = "a(b),1" + "c" * 9
    clean, found = redacted({"api_key": secret, "api_key_name": secret, "n": secret})
    assert (clean["api_key"], found) == ("redacted-redact", 1)
    assert clean["n"] == clean["api_key_name"] == secret


def test_two_keys_of_a_length_both_stay() -> None:
    clean, found = redacted({"sk-" + c * 20: c for c in "ab"})
    assert found == 2
    assert list(clean.values()) == ["a", "b"]


@pytest.mark.parametrize("name", bundled_traces())
def test_recorded_traces_stay_as_they_are(name: str, tmp_path: Path) -> None:
    write_trace(load_trace(name), tmp_path / "again.jsonl")
    again = (tmp_path / "again.jsonl").read_text()
    assert "redacted-" not in again
    assert read_trace(tmp_path / "again.jsonl").digest == load_trace(name).digest


@pytest.mark.parametrize(
    "text",
    [
        "02281126-eb86-4b55-a97f-a1372eeac4b3",
        "commit 9a4b54b7e3c1f7b2a6d5e4c3b2a190817263544f",
        "12345678:da39a3ee5e6b4b0d3255bfef95601890afd80709",
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8A",
        'password = os.environ["DB_PASSWORD"]',
        'password = "changeme"',
        "PWD=/root/project1 OLDPWD=/root/p2",
        "api_key=config.read_key2()",
        "postgres://{user}:{password}@{host}/db",
        "https://example.org:8080/a@b",
        "MAX_TOKENS=8192 TOKENIZER=gpt2model",
        '{"secretName": "app-secret-v2", "max_tokens": 12345678}',
    ],
)
def test_what_only_looks_like_a_secret_stays(text: str) -> None:
    assert redacted([text]) == ([text], 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_recording_holds_no_secret(kind: str, tmp_path: Path) -> None:
    secret = "".join(KINDS[kind])
    path = tmp_path / "t.jsonl"
    script = script_of(tmp_path, plant(kind), secret)
    with recording(path, script=script, notes={"note": secret}) as recorder:
        for stream in (False, True):
            body = planted_body(kind) | {"stream": stream}
            response = httpx.post(
                f"{recorder.url}/v1/messages",
                params={"q": plant(kind), "api_key": secret},
                headers={"user-agent": quoted(secret), "x-api-key": quoted(secret)},
                json=body,
            )
            assert response.status_code == 200
        assert recorder.writer.secrets
    assert not leaks(path.read_text(), [kind])
    first, second = read_trace(path).exchanges
    assert first.body
    assert second.response
    assert second.response.message


def quoted(text: str) -> str:
    """As a header can carry it."""
    return text.replace("\n", " ")


#: One that stands for itself, and some that are known by what is beside them.
SERVED = ["anthropic", "assignment"]


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_signatures_hold_no_secret(kind: str, tmp_path: Path) -> None:
    reasoning, text = f"\nHm. {plant(kind)}\n", plant(kind)
    spoken = [OPEN, *cut(reasoning), CLOSE]
    ids = (*spoken, *cut(text), TOKENIZER.eos_token_id)
    signature = sign(spoken, MODEL.tokenizer_digest)
    clean = mask_signature(signature, find_tokenizer)
    unpacked = unpack_signature(clean)
    assert unpacked
    # A replay needs them as many and saying what the block beside them says.
    assert len(unpacked[1]) == len(spoken)
    assert said(unpacked[1][1:-1]) == redacted(reasoning)[0]
    generated = mask_generated(
        Generated(tokenizer=MODEL.tokenizer_digest, ids=ids),
        find_tokenizer,
        signatures=[signature],
    )
    assert generated.redacted
    assert list(generated.ids[: len(spoken)]) == unpacked[1].tolist()
    # The next prompt holds the text as the tokenizer cuts it.
    answer = generated.ids[len(spoken) : -1]
    assert list(answer) == cut(redacted(text)[0])
    assert not leaks(json.dumps(generated.to_json(), separators=(",", ":")), [kind])


def test_ids_that_cannot_be_read_go_unless_their_text_is_clean() -> None:
    signature = sign([OPEN, *cut("Hm."), CLOSE], "another")
    shown = {"type": "thinking", "thinking": "Hm.", "signature": signature}
    assert redacted(shown) == (shown, 0)
    for thinking in ("", plant("anthropic")):
        clean, found = redacted({**shown, "thinking": thinking})
        assert clean["signature"] == ""
        assert found
    generated = Generated(tokenizer="another", ids=(1, 2, 3))
    assert mask_generated(generated, find_tokenizer, is_shown=True) == generated
    assert not mask_generated(generated, find_tokenizer).ids


def test_ids_that_were_cut_unlike_their_text_stay_so() -> None:
    spelt = [i for c in plant("github") for i in cut(c)]
    generated = Generated(tokenizer=MODEL.tokenizer_digest, ids=tuple(spelt))
    masked = mask_generated(generated, find_tokenizer)
    assert len(masked.ids) == len(spelt)
    assert said(masked.ids) == redacted(plant("github"))[0]


def test_ids_without_secrets_stay() -> None:
    ids = tuple(cut("Nothing to hide: \u00e9\U0001f600."))
    for kept in (ids, ids[:-2]):  # the last character may be cut off
        generated = Generated(tokenizer=MODEL.tokenizer_digest, ids=kept)
        assert mask_generated(generated, find_tokenizer) is generated


def test_a_server_records_no_secret_and_what_it_answered_with(tmp_path: Path) -> None:
    converse(tmp_path, SERVED)
    data = (tmp_path / "t.jsonl").read_text()
    assert not leaks(data, SERVED)
    trace = read_trace(tmp_path / "t.jsonl")
    answered = [e.response for e in trace.inference]
    assert len(answered) == 2 * len(SERVED)
    for response in answered:
        assert response
        assert response.generated
        assert response.generated.ids
        assert response.generated.redacted
        assert response.configuration
        assert response.configuration.strategy == "paged"
    rows = compare(trace, "paged", simulate=True, progress=False).requests
    # What the second turn computes is what it computed; placeholders may be shorter.
    for row, response in zip(rows.to_dict("records"), answered, strict=True):
        assert response
        assert response.message
        usage = response.message["usage"]
        computed = usage["input_tokens"] + usage["cache_creation_input_tokens"]
        assert abs(row["computed_tokens"] - computed) <= 64
        if row["request"] % 2:
            reused = usage["cache_read_input_tokens"]
            assert row["reused_tokens"] > 0
            assert abs(row["reused_tokens"] - reused) <= 64


def converse(folder: Path, kinds: list[str]) -> None:
    """Record two turns each with our own server; the second repeats an answer."""
    conversations = [
        {"match": kind, "replies": [reply(plant(kind), "".join(KINDS[kind]))] * 2}
        for kind in kinds
    ]
    script = folder / "script.json"
    otherwise = [{"type": "text", "text": "No."}]
    content = {"conversations": conversations, "otherwise": otherwise}
    script.write_text(json.dumps(content))
    tool = {"name": "Run", "description": "Runs.", "input_schema": {"type": "object"}}
    with served(script=script) as server, Client(server.url) as client:
        server.record(folder / "t.jsonl")
        for kind in kinds:
            body: dict[str, Any] = {
                "model": "default",
                "max_tokens": 2048,
                "thinking": {"type": "adaptive"},
                "tools": [tool],
                "messages": [{"role": "user", "content": f"Use {kind}, please."}],
            }
            for _ in range(2):
                answer = client.ask(body, stream=True)
                results = [
                    {"type": "tool_result", "tool_use_id": b["id"], "content": "ok"}
                    for b in answer["content"]
                    if b["type"] == "tool_use"
                ]
                body["messages"] = [
                    *body["messages"],
                    {"role": "assistant", "content": answer["content"]},
                    {"role": "user", "content": results},
                ]
        server.record(None)


def test_importers_reports_and_exports_hold_no_secret(tmp_path: Path) -> None:
    lines: list[str] = []
    for kind in KINDS:
        line = {
            "t": 1.0 + len(lines),
            "method": "POST",
            "path": "/v1/messages",
            "headers": {},
            "body": planted_body(kind) | {"stream": False},
        }
        lines.append(json.dumps(line))
    (tmp_path / "capture.jsonl").write_text("\n".join(lines) + "\n")
    trace = import_trace(tmp_path / "capture.jsonl", "capture")
    write_trace(trace, tmp_path / "t.jsonl")
    assert not leaks((tmp_path / "t.jsonl").read_text())
    misses = find_misses(trace, strategy="prefix", progress=False)
    misses.to_json(tmp_path / "misses.json")
    assert not leaks((tmp_path / "misses.json").read_text())
    assert not leaks("\n".join(misses.requests.change))
    cleaned = read_trace(tmp_path / "t.jsonl")
    for source, out in ((trace, "a"), (cleaned, "b")):
        export_trace(source, tmp_path / out, salt="known", progress=False)
    # With the salt a guess could be tried out, so there is nothing to guess.
    a, b = ((tmp_path / name).read_text().split("\n")[1:] for name in "ab")
    assert a == b


#: Beginnings over and over, and ones that are never ended.
HOSTILE: list[bytes] = [
    *(
        anchor
        for p in compile_patterns()
        if isinstance(p.anchors, tuple)
        for anchor in p.anchors
    ),
    *(b"eyJ-", b"eyJaaaaaaaa.", b"\\neyJ", b"://a:", b"://" + b"a" * 250 + b":", b":"),
    *(b"a" * 32 + b"-us", b".abcdef.", b"1234567890:", b"12345678"),
    *(b"-----BEGIN PRIVATE KEY-----\n", b"-----BEGIN " + b"A" * 40, b"Bearer  "),
    *(b"password=", b'password="', b"password = '" + b"a" * 199, b"A_KEY=", b"api_"),
    *(b"secret" + b"a" * 30, b"secret_key=" + b"a" * 39, b"Authorization: Basic a"),
    *(b"c2stYW50", b"\\" * 15, b"AAAA\n", b"A" * 79 + b"\n", b"mlxlab1.", b"a", b" "),
]


@pytest.mark.parametrize(
    "size", [1 << 16, pytest.param(1 << 20, marks=pytest.mark.slow)]
)
def test_hostile_texts_take_no_longer(size: int) -> None:
    redacted("warm")
    for piece in HOSTILE:
        repeated = piece * (size // len(piece))
        begun = piece + b"a" * size
        for data in (repeated, begun, piece + b" " * size):
            begin = time.process_time()
            mask_text(data.decode())
            assert time.process_time() - begin < size / 10**5, piece


def test_a_large_body_does_not_take_seconds(tmp_path: Path) -> None:
    redacted("warm")
    text = "The key is read from ./src/config/settings.py, see L12.\n" * 600_000
    body = {"messages": [{"role": "user", "content": text[: 32 << 20]}]}
    with TraceWriter(tmp_path / "t.jsonl") as writer:
        begin = time.process_time()
        writer.request(t=0.0, method="POST", path="/v1/messages", headers={}, body=body)
    assert time.process_time() - begin < 10


def cut(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False))


def said(ids: Any) -> str:
    return str(TOKENIZER.decode(ids))
