"""The page at ``GET /``: open files, events and changes for those with the token."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest

from mlxlab.server.live import page
from mlxlab.server.server import Server
from tests.support.endpoint import TOKEN, Client, ask, error_of, served, until

OPEN = ("/", "/page.js", "/panel.js", "/panel.css")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with served() as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.url) as client:
        client.headers["origin"] = server.url
        yield client


def events(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in answer.iter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def test_files_are_open_and_load_nothing_from_elsewhere(server: Server) -> None:
    for path in OPEN:
        answer = httpx.get(server.url + path)
        assert answer.status_code == 200
        assert answer.content == (page.FOLDER / page.PAGE[path][0]).read_bytes()
        assert server.token not in answer.text
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; ")
        assert not re.search(r"unsafe|http|\*", policy)
        # No address but those of this server, and no script or style in the page.
        assert not re.search(r"(https?:)?//[a-z]|@import|url\(", _code(answer.text))
        assert not re.search(r"<script>|<style|\son[a-z]+=|style=", answer.text)
    assert httpx.head(server.url).content == b""
    assert httpx.post(server.url, headers={"x-api-key": TOKEN}).status_code == 405


def _code(text: str) -> str:
    return re.sub(r"^\s*//.*$|/\^https.*?/,", "", text, flags=re.MULTILINE)


def test_events_need_the_token(server: Server, client: Client) -> None:
    assert httpx.get(f"{server.url}/view").status_code == 401
    assert httpx.get(f"{server.url}/view?token={TOKEN}").status_code == 401
    client.ask(ask("Seen before", max_tokens=1))
    with client.stream("GET", "/view") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        seen = events(answer)
        first = next(seen)
        assert first["whole"]
        assert first["server"]["model"] == "tiny"
        assert first["rows"][-1]["outcome"] == "max_tokens"
        asking = Thread(target=client.ask, args=(ask("Seen live", max_tokens=1),))
        asking.start()
        stages = set()
        for change in seen:
            assert not change["whole"]
            stages |= {row["stage"] for row in change["rows"]}
            if "ended" in stages:
                break
        asking.join()
    assert TOKEN not in json.dumps(first)
    log = "\n".join(server._http.log)
    assert "GET /view 200" in log
    assert TOKEN not in log


def test_a_change_needs_the_token_and_the_own_page(
    server: Server, client: Client
) -> None:
    before = server.aliases.default
    change = {"strategy": "prefix"}
    assert httpx.post(f"{server.url}/change", json=change).status_code == 401
    foreign = {"origin": "http://example.org"}
    assert client.post("/change", json=change, headers=foreign).status_code == 403
    with Client(server.url) as program:
        assert program.post("/change", json=change).status_code == 403
    assert server.aliases.default == before

    assert client.post("/change", json=change).status_code == 204
    assert server.aliases.default.strategy == "prefix"
    assert client.post("/change", json={"rules": "none"}).status_code == 204
    assert server.aliases.default.rules == "none"
    assert server.aliases.default.strategy == "prefix"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (b'{"strategy": "nope"}', "no strategy 'nope'; choose from"),
        (b'{"rules": "nope"}', "unknown rule 'nope'"),
        (b'{"strategy": ""}', "strategy: "),
        (b'{"model": "other"}', "model: Extra inputs are not permitted"),
        (b'{"selected": ["x"]}', "selected.0: "),
        (b'{"selected": [1, %d]}' % 10**40, "selected.1: "),
        (b"{", "body: Invalid JSON"),
        (b" " * 100_000, "body: over 65,536 bytes"),
    ],
)
def test_a_bad_change_is_one_line(
    server: Server, client: Client, change: bytes, message: str
) -> None:
    before = server.aliases.default
    answer = client.post("/change", content=change)
    assert answer.status_code == 400
    assert message in error_of(answer)["message"]
    assert "\n" not in error_of(answer)["message"]
    assert server.aliases.default == before


def test_a_recording_begins_and_ends(
    server: Server, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert client.post("/change", json={"record": True}).status_code == 204
    client.ask(ask(max_tokens=1))
    [file] = tmp_path.glob("recording-*.jsonl")
    recording = {"file": str(file), "requests": 1}
    assert server.view.since()["meters"]["recording"] == recording
    assert client.post("/change", json={"record": False}).status_code == 204
    assert server.view.since()["meters"]["recording"] is None


def test_chosen_requests_are_a_result(server: Server, client: Client) -> None:
    for _ in range(3):
        client.ask(ask("Chosen", max_tokens=1))
    chosen = server.requests.request.tolist()[-2:]
    assert client.post("/change", json={"selected": chosen}).status_code == 204
    selected = server.selected
    assert selected.requests.request.tolist() == chosen
    assert repr(selected).startswith(f"2 requests selected (#{chosen[0]}, #{chosen[1]}")
    assert "<svg" in selected.plot().to_svg()
    server.select(())
    assert "0 requests selected (none): 0.0%" in repr(server.selected)


def test_few_pages_may_be_open_at_once(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "VIEWS", 2)

    def status() -> int:
        with client.stream("GET", "/view") as answer:
            return answer.status_code

    with ExitStack() as stack:
        pages = [stack.enter_context(client.stream("GET", "/view")) for _ in range(2)]
        streams = [events(page) for page in pages]
        assert all(next(stream)["whole"] for stream in streams)
        assert status() == 429
    until(lambda: status() == 200)  # those that left make room
