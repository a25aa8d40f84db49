"""The disk behind a server: restarts, other tokens, other servers, other strategies."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest

from mlxlab.analysis.compare import compare
from mlxlab.server.aliases import Aliases
from mlxlab.server.server import Server
from tests.support.endpoint import Client, ask, served

SIZE = 64 << 20
SYSTEM = "You are a careful assistant. " * 60


def turn(client: Client, *texts: str) -> dict[str, Any]:
    """Return the usage of a conversation's next answer."""
    messages = [
        {"role": "user" if i % 2 == 0 else "assistant", "content": text}
        for i, text in enumerate(texts)
    ]
    body = ask(max_tokens=8, system=SYSTEM, messages=messages)
    return dict(client.ask(body)["usage"])


def talk(server: Server) -> list[dict[str, Any]]:
    with Client(server.url) as client:
        return [
            turn(client, "What is two and two?"),
            turn(client, "What is two and two?"),
            turn(client, "What is two and two?", "Four.", "And three?"),
        ]


def test_a_restart_reuses_what_was_stored(tmp_path: Path) -> None:
    first, again = tmp_path / "first.jsonl", tmp_path / "again.jsonl"
    for trace in (first, again):
        with served(disk=SIZE, disk_folder=tmp_path / "disk") as server:
            server.record(trace)
            usages = talk(server)
            assert server.aliases.default.strategy == "paged:disk=64MiB"
            loaded = server.requests.disk_tokens.tolist()
            assert (loaded[0] > 200) == (trace is again)
            assert loaded[1] == 0  # memory holds it by now
            metrics = server._service.exposition().decode()
            (line,) = re.findall(r"^mlxlab_disk_bytes (\S+)$", metrics, re.MULTILINE)
            assert 1 << 20 < float(line) <= SIZE
            status = server.status()
            assert (status.on_disk, status.disk) == (float(line), SIZE)
            capacity = 'mlxlab_capacity_bytes{tier="disk"} '
            assert float(metrics.partition(capacity)[2].split()[0]) == SIZE
            if trace is first:
                assert usages[0]["cache_read_input_tokens"] == 0
                warm = usages[1]["cache_read_input_tokens"]
            else:
                cold = usages[0]["cache_read_input_tokens"]
                assert cold >= 0.95 * warm > 200
    rows = compare([str(first)], "paged:disk=64MiB", simulate=True, progress=False)
    assert rows.requests.reused_tokens.tolist()[1] == warm


def test_tokens_and_models_share_nothing(tmp_path: Path) -> None:
    for token in ("one-of-the-tests", "two-of-the-tests"):
        with served(token=token, disk=SIZE, disk_folder=tmp_path / "disk") as server:
            with Client(server.url, token) as client:
                usage = turn(client, "What is two and two?")
            assert usage["cache_read_input_tokens"] == 0


def test_a_generated_token_finds_what_the_last_one_stored(tmp_path: Path) -> None:
    reused = []
    for _ in range(2):
        with served(token=None, disk=SIZE, disk_folder=tmp_path / "disk") as server:
            with Client(server.url, server.token) as client:
                usage = turn(client, "What is two and two?")
            reused.append(usage["cache_read_input_tokens"])
    assert reused[0] == 0
    assert reused[1] > 200


def test_strategies_of_one_model_share_a_disk(tmp_path: Path) -> None:
    with served(disk=SIZE, disk_folder=tmp_path / "disk") as server:
        warm = talk(server)[1]["cache_read_input_tokens"]
        server.configure(strategy="static-prefix")
        assert server.aliases.default.strategy == "static-prefix:disk=64MiB"
        assert talk(server)[0]["cache_read_input_tokens"] >= warm


def test_a_second_server_runs_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="mlxlab")
    given: dict[str, Any] = {"disk": SIZE, "disk_folder": tmp_path / "disk"}
    with served(**given) as one, served(**given) as two:
        talk(one)
        usages = talk(two)
        assert usages[0]["cache_read_input_tokens"] == 0
        assert usages[1]["cache_read_input_tokens"] > 0
    lines = [record.getMessage() for record in caplog.records]
    assert sum("another process uses it" in line for line in lines) == 1


def test_only_exact_strategies_get_a_disk() -> None:
    def chosen(strategy: str) -> str:
        aliases = Aliases.load().with_default(strategy=strategy)
        return aliases.with_disk(1 << 30).default.strategy

    assert chosen("paged") == "paged:disk=1GiB"
    assert chosen("paged:block=32") == "paged:block=32,disk=1GiB"
    assert chosen("paged:disk=2GiB") == "paged:disk=2GiB"
    assert chosen("suffix") == "suffix"
    assert chosen("none") == "none"
