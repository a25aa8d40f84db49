"""What a running server says of itself: counts, models, metrics, health."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mlxlab.engine import Request
from mlxlab.errors import OUT_OF_MEMORY
from mlxlab.server.generation import Item, Job, request_of
from mlxlab.server.server import Server
from tests.support import wire
from tests.support.architectures import save_architecture
from tests.support.endpoint import Client, ask, error_of, served, until, words

ALIASES = {
    "aliases": {
        "default": {"strategy": "paged:block=16"},
        "fast": {"strategy": "prefix", "thinking": "off"},
    },
    "tiers": {"haiku": "fast"},
}
#: mlx-lm batches its answers wrongly.
GEMMA2 = {
    "model_type": "gemma2",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "vocab_size": 8704,
    "max_position_embeddings": 4096,
    "dtype": "float32",
    "eos_token_id": 8697,
}
SESSION = [body for body, _ in wire.session(5)]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with served(aliases=ALIASES) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client


def prompt_tokens(message: dict[str, Any]) -> int:
    usage = message["usage"]
    kinds = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    assert min(usage[kind] for kind in kinds) >= 0
    assert usage["cache_creation"] == {
        "ephemeral_5m_input_tokens": usage["cache_creation_input_tokens"],
        "ephemeral_1h_input_tokens": 0,
    }
    return sum(usage[kind] for kind in kinds)


# Counting


@pytest.mark.parametrize("model", ["default", "fast", "claude-opus-9", "claude-haiku"])
def test_counts_equal_the_usage_that_follows(client: Client, model: str) -> None:
    for body in SESSION:
        body = body | {"model": model, "max_tokens": 2}
        counted = client.post("/v1/messages/count_tokens", json=body).json()
        assert set(counted) == {"input_tokens"}
        for stream in (True, False):
            assert (
                prompt_tokens(client.ask(body, stream=stream))
                == (counted["input_tokens"])
            )


@pytest.mark.parametrize("max_tokens", [1, 9, 10, 500])
def test_counts_equal_the_usage_where_a_budget_is_cut(
    client: Client, max_tokens: int
) -> None:
    thinking = {"type": "enabled", "budget_tokens": 1024}
    body = ask(thinking=thinking, max_tokens=max_tokens)
    counted = client.post("/v1/messages/count_tokens", json=body)
    assert counted.status_code == 200, counted.text
    usage = client.ask(body)["usage"]
    sent = [n for key, n in usage.items() if key.endswith("input_tokens")]
    assert sum(sent) == counted.json()["input_tokens"]


def test_the_usage_is_known_from_the_first_event_on(client: Client) -> None:
    body = SESSION[2] | {"max_tokens": 3, "stream": True}
    text = client.post("/v1/messages", json=body).text
    frames = text.strip().split("\n\n")
    first, last = frames[0], frames[-2]
    assert first.startswith("event: message_start\n")
    assert last.startswith("event: message_delta\n")
    for kind in ("input_tokens", "cache_read_input_tokens"):
        field = f'"{kind}":'
        values = [part.split(field)[1].split(",")[0] for part in (first, last)]
        assert values[0] == values[1]


# Models


def test_models_are_the_aliases(client: Client) -> None:
    for prefix in ("", "/anthropic"):
        listed = client.get(f"{prefix}/v1/models", params={"limit": 1000}).json()
        assert [model["id"] for model in listed["data"]] == ["default", "fast"]
        assert (listed["first_id"], listed["last_id"]) == ("default", "fast")
        assert listed["has_more"] is False
    for model in listed["data"]:
        assert set(model) == {"id", "type", "display_name", "created_at"}
        assert client.get(f"/v1/models/{model['id']}").json() == model


def test_any_id_of_the_clients_maker_is_answered(client: Client) -> None:
    for asked, alias in {"claude-opus-9": "default", "claude-haiku-9": "fast"}.items():
        assert client.get(f"/v1/models/{asked}").json()["id"] == alias
        # The answer names the model that was asked for.
        assert client.ask(ask(model=asked))["model"] == asked
    status, message = client.refusal(ask(model="gpt-x"))
    assert status == 404
    assert "known: default, fast" in message


# Metrics


def samples(client: Client) -> dict[tuple[str, ...], float]:
    """Metric values by name, model, strategy and outcome."""
    text = client.get("/metrics").text
    labels = ("model", "strategy", "outcome")
    return {
        (sample.name, *(sample.labels.get(label, "") for label in labels)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_add_up_with_the_requests() -> None:
    with served(aliases=ALIASES) as server, Client(server.url) as client:
        for body in SESSION[:3]:
            client.ask(body, max_tokens=3)
            client.ask(body, max_tokens=2, model="fast", stream=True)
        client.refusal(ask(model="gpt-x"))
        found, rows = samples(client), server.requests
        assert len(rows) == 6
        for strategy, own in rows.groupby("strategy"):
            at = ("tiny", str(strategy), "")
            for name, column in {
                "prompt_tokens": "prompt_tokens",
                "hit_tokens": "reused_tokens",
                "output_tokens": "output_tokens",
            }.items():
                assert found[f"mlxlab_{name}_total", *at] == own[column].sum()
            assert found["mlxlab_ttft_seconds_count", *at] == len(own)
            assert found["mlxlab_ttft_seconds_sum", *at] == pytest.approx(
                own.ttft_s.sum()
            )
            for outcome, count in own.outcome.value_counts().items():
                assert found["mlxlab_requests_total", *at[:2], str(outcome)] == count
            assert found["mlxlab_stored_bytes", *at] > 0
        assert found["mlxlab_queue_depth", "", "", ""] == 0
        assert rows.reused_tokens.sum() > 0
        assert (rows.ttft_s <= rows.total_s).all()
        shown = repr(server.status())
        assert (
            f"6 requests, {rows.reused_tokens.sum() / rows.prompt_tokens.sum():.1%}"
            in shown
        )


def test_models_whose_answers_share_no_batch_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "<gemma2>"
    save_architecture(folder, GEMMA2)
    aliases = {"aliases": {"default": {}, "other": {"model": str(folder)}}}
    with served(aliases=aliases) as server, Client(server.url) as client:
        at = "mlxlab_model_batched"
        assert samples(client)[at, "tiny", "", ""] == 1
        assert "share no batch" not in repr(server.status())
        client.ask(ask(model="other", max_tokens=1))
        assert samples(client)[at, "tiny", "", ""] == 1
        assert samples(client)[at, str(folder), "", ""] == 0
        status = server.status()
        assert status.unbatched == (str(folder),)
        assert repr(status).endswith(f"; answers of {folder} share no batch")
        assert "&lt;gemma2&gt; share no batch" in status._repr_html_()
        server.configure(model=str(folder))
        assert str(folder) in repr(server.status())
    with served(str(folder)) as server, Client(server.url) as client:
        assert server.status().unbatched == (str(folder),)
        assert (at, "tiny", "", "") not in samples(client)


def test_metrics_forget_caches_that_are_gone(client: Client, server: Server) -> None:
    at = ("mlxlab_stored_bytes", "tiny", "block-hash:block=32,minimum=32", "")
    server.configure(strategy=at[2])
    client.ask(ask(words(100)))
    assert samples(client)[at] > 0
    server.configure(strategy="paged:block=16")
    until(lambda: at not in samples(client))


# Health


def test_health_is_the_workers_health() -> None:
    with served() as server, Client(server.url) as client:
        assert client.get("/health").json() == {"status": "ok", "queue": 0}
        assert client.ask(ask(max_tokens=1))
        server._worker.close()
        assert not server.is_running
        for path in ("/health", "/anthropic/health"):
            answer = client.get(path)
            assert answer.status_code == 500
            assert error_of(answer)["type"] == "api_error"
            assert "worker has stopped" in error_of(answer)["message"]
        for stream in (True, False):
            status, message = client.refusal(ask(stream=stream))
            assert (status, "worker has stopped" in message) == (500, True)
        assert server.requests.outcome.tolist() == ["max_tokens"]


def test_requests_that_wait_when_the_worker_ends_are_answered() -> None:
    """Nothing hangs: the worker finishes what it has taken, and takes no more."""
    with served(chunk=64) as server, Client(server.url) as client:
        answers: list[httpx.Response] = []
        body = ask(words(400), max_tokens=2)
        threads = [
            threading.Thread(
                target=lambda: answers.append(client.post("/v1/messages", json=body))
            )
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        until(lambda: server._service.scheduler.unfinished == 3)
        server._worker.close()
        for thread in threads:
            thread.join(30)
        assert [answer.status_code for answer in answers] == [200] * 3
        assert client.refusal(body)[0] == 500


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (LookupError("on purpose"), 500, "internal error: LookupError; see the log"),
        (MemoryError("on purpose"), 529, OUT_OF_MEMORY),
    ],
)
def test_a_call_that_fails_on_the_worker_is_one_failed_request(
    error: Exception,
    status: int,
    said: str,
    server: Server,
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(job: Job, put: Callable[[Item], object]) -> Request:
        raise error

    monkeypatch.setattr("mlxlab.server.service.request_of", broken)
    assert client.refusal(ask()) == (status, said)
    assert server.requests.outcome.iloc[-1] == "error"
    monkeypatch.undo()
    assert client.get("/health").status_code == 200
    assert client.ask(ask())["stop_reason"]


def test_an_error_in_the_middle_of_a_stream_is_an_event(
    server: Server, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaking(job: Job, put: Callable[[Item], object]) -> Request:
        seen = count()

        def fail_at_last(item: Item) -> None:
            put(item)
            if next(seen) == 4:
                raise LookupError("on purpose")

        return request_of(job, fail_at_last)

    monkeypatch.setattr("mlxlab.server.service.request_of", breaking)
    answer = client.post("/v1/messages", json=ask(stream=True))
    assert answer.status_code == 200
    *_, last = answer.text.strip().split("\n\n")
    assert last.startswith("event: error\n")
    assert '"type":"api_error"' in last
    assert answer.headers["request-id"] in last
    assert server.requests.outcome.iloc[-1] == "error"


# Scripted answers


def test_a_script_is_recited_through_the_real_path(tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    script.write_text(
        """{"conversations": [{"match": "sum", "replies": [
            [{"type": "thinking", "thinking": "Look first.", "signature": "x"},
             {"type": "tool_use", "name": "Bash", "input": {"command": "ls"}}],
            [{"type": "text", "text": "Done."}]]}],
          "otherwise": [{"type": "text", "text": "What?"}]}"""
    )
    with served(script=script) as server, Client(server.url) as client:
        body = wire.first_body() | {"max_tokens": 200}
        first = client.ask(body)
        assert [block["type"] for block in first["content"]] == ["thinking", "tool_use"]
        assert first["content"][1]["input"] == {"command": "ls"}
        assert first["stop_reason"] == "tool_use"
        second = client.ask(wire.next_body(body, first, "calc.py"), stream=True)
        assert [block["text"] for block in second["content"]] == ["Done."]
        assert second["stop_reason"] == "end_turn"
        rows = server.requests
        ended = rows.prompt_tokens.iloc[0] + rows.output_tokens.iloc[0]
        # All but the last token of what was said and heard, in whole blocks.
        assert rows.reused_tokens.iloc[1] >= ended - 64
        assert client.ask(ask("Hello"))["content"][0]["text"] == "What?"
