"""Models that cannot be cut at any token are served like any other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mlxlab import compare
from mlxlab.engine import Engine
from mlxlab.errors import StrategyError
from mlxlab.server.server import Server
from tests.server.test_cancellation import leave
from tests.support import wire
from tests.support.architectures import save_architecture
from tests.support.endpoint import PATIENCE_S, Client, ask, raw_request, served, words
from tests.support.hybrids import HYBRIDS
from tests.support.paced import Paced

ALIASES = {
    "aliases": {
        "default": {"strategy": "paged"},
        "slot": {"strategy": "prefix"},
        "whole": {"strategy": "none"},
        "sparse": {"strategy": "paged:checkpoints=prompt"},
        "moved": {"strategy": "suffix"},
        "brief": {"thinking": "on", "max_thinking_tokens": 12},
    }
}
#: Most tokens with which the template opens an answer.
GENERATION = 10
SCRIPT = {
    "conversations": [
        {
            "match": "Why does the sum fail",
            "replies": [
                [
                    {"type": "thinking", "thinking": "I run it.", "signature": ""},
                    {"type": "tool_use", "name": "Bash", "input": {"command": "make"}},
                ],
                [{"type": "tool_use", "name": "Read", "input": {"file_path": "a.py"}}],
                [{"type": "text", "text": "It subtracts."}],
            ],
        }
    ],
    "otherwise": [{"type": "text", "text": "Nothing is left to do."}],
}


#: A state and a window; the others run in make test-all.
MODELS = [
    name
    if name in ("qwen3_5", "gpt_oss")
    else pytest.param(name, marks=pytest.mark.slow)
    for name in HYBRIDS
]


@pytest.fixture(scope="module", params=MODELS)
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> str:
    folder = tmp_path_factory.mktemp(request.param) / request.param
    save_architecture(folder, HYBRIDS[request.param])
    # As many templates do, it opens the thinking that is asked for.
    template = folder / "chat_template.jinja"
    end = "{%- endif -%}\n{%- endif -%}"
    head, found, tail = template.read_text().rpartition(end)
    assert found
    assert not tail.strip()
    opened = "{%- else -%}\n{{- '<think>\\n' -}}\n"
    template.write_text(head + opened + end)
    return str(folder)


@pytest.fixture(scope="module")
def server(model: str) -> Iterator[Server]:
    with served(model, aliases=ALIASES, chunk=64) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Paced:
    return Paced(monkeypatch)


def usage(message: dict[str, Any]) -> tuple[int, int, int]:
    """Tokens of a prompt that were reused, kept, and in all."""
    counts = message["usage"]
    read, kept = (counts[f"cache_{k}_input_tokens"] for k in ("read", "creation"))
    return read, kept, read + kept + counts["input_tokens"]


def said(message: dict[str, Any]) -> list[dict[str, Any]]:
    """What an answer says, without ids of calls."""
    return [{**block, "id": ""} for block in message["content"]]


def longer(body: dict[str, Any], answer: dict[str, Any], text: str) -> dict[str, Any]:
    turns = [
        {"role": "assistant", "content": answer["content"]},
        {"role": "user", "content": text},
    ]
    return body | {"messages": [*body["messages"], *turns]}


def engine(server: Server) -> Engine:
    """Return the engine of the default alias, which has answered."""
    (loaded,) = server._service.pool._loaded.values()
    strategy = server.aliases.default.strategy
    (found,) = (e for key, e in loaded.engines.items() if key.strategy == strategy)
    return found


def test_reuse_changes_no_answer(client: Client) -> None:
    answers = {}
    for alias in ("whole", "default", "slot"):
        body = ask(words(60, 1000), temperature=0, max_tokens=8, model=alias)
        answers[alias] = [client.ask(body), client.ask(body, stream=True)]
        body = longer(body, answers[alias][0], "Go on.")
        answers[alias].append(client.ask(body))
    whole = [said(answer) for answer in answers.pop("whole")]
    assert whole[0] == whole[1]
    for own in answers.values():
        assert [said(answer) for answer in own] == whole
        (first, _, _), (again, _, prompt), (later, _, _) = map(usage, own)
        assert first == 0
        # The prompt's end is a checkpoint; the generation prompt stands behind it.
        assert prompt - GENERATION <= again < prompt
        assert later >= again


def test_what_is_said_to_be_kept_is_what_can_be_resumed(client: Client) -> None:
    body = ask(words(60, 2000), max_tokens=6, model="sparse")
    counted = client.post("/v1/messages/count_tokens", json=body).json()
    first = client.ask(body)
    read, kept, prompt = usage(first)
    assert (read, prompt) == (0, counted["input_tokens"])
    # No checkpoint behind the generation prompt, nor behind the answer.
    assert 0 < kept < prompt
    assert usage(client.ask(longer(body, first, "Go on.")))[0] == kept


def test_stop_sequences_end_answers_that_are_kept(client: Client) -> None:
    body = ask(words(40, 3000), temperature=0, max_tokens=24)
    (block,) = client.ask(body)["content"]
    middle = len(block["text"]) // 2
    end = block["text"][middle : middle + 6]
    stopped = client.ask(body, stop_sequences=[end])
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", end)
    text = "".join(block["text"] for block in stopped["content"])
    assert text == block["text"].partition(end)[0]
    assert usage(client.ask(longer(body, stopped, "Go on.")))[0] > 0


def test_forms_and_budgets_hold(client: Client) -> None:
    choice = {"type": "tool", "name": "Bash"}
    body = ask(tools=wire.TOOLS[:1], tool_choice=choice, max_tokens=40)
    assert client.ask(body)["content"][0]["name"] == "Bash"
    schema = {"enum": ["left", "right"]}
    form = {"format": {"type": "json_schema", "schema": schema}}
    (block,) = client.ask(ask(output_config=form, max_tokens=30))["content"]
    assert json.loads(block["text"]) in schema["enum"]
    for stream in (True, False):
        body = ask("Think.", model="brief", max_tokens=40, stream=stream)
        kinds = [block["type"] for block in client.ask(body)["content"]]
        assert kinds[:2] == ["thinking", "text"]


def test_leaving_in_prefill_leaves_a_checkpoint(
    server: Server, client: Client, watched: Paced
) -> None:
    body = ask(words(300, 4000), max_tokens=2, stream=True)
    connection = raw_request(server, body)
    assert watched.in_prefill.wait(PATIENCE_S)
    row = leave(server, connection)
    assert not watched.in_decode.is_set()
    watched.pace_s = 0.0
    # To the end of the last whole chunk, as the only place so far.
    assert 64 <= usage(client.ask(body))[0] < row["prompt_tokens"] - 16


def test_leaving_in_decode_leaves_the_prompt(
    server: Server, client: Client, watched: Paced
) -> None:
    body = ask(f"Go on. {words(30, 5000)}", stream=True)
    connection = raw_request(server, body | {"max_tokens": 20_000})
    assert watched.in_decode.wait(PATIENCE_S)
    row = leave(server, connection)
    assert usage(client.ask(body, max_tokens=1))[0] >= row["prompt_tokens"] - GENERATION


def test_status_and_metrics_count_checkpoints(server: Server, client: Client) -> None:
    client.ask(ask(words(60, 6000), max_tokens=4))
    own = engine(server)
    assert own.strategy.stored_checkpoints > 0
    assert own.store.nbytes == own.strategy.stored_bytes
    own.strategy.check_integrity()
    found = {
        sample.labels["strategy"]: sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
        if sample.name == "mlxlab_stored_bytes"
    }
    assert found["paged"] == own.store.nbytes
    assert f"{len(server.requests)} requests" in repr(server.status())


def test_what_means_nothing_here_is_refused_in_one_line(
    server: Server, client: Client
) -> None:
    status, message = client.refusal(ask(model="moved"))
    assert (status, "nothing can be moved" in message) == (404, True)
    for spec in ("paged:block=32", "suffix", "paged:capacity=64"):
        with pytest.raises(StrategyError, match=spec.partition(":")[0]):
            server.configure(strategy=spec)
        assert server.aliases.default.strategy == "paged"
    assert client.ask(ask(max_tokens=1))["usage"]["output_tokens"] == 1


@pytest.mark.parametrize(
    ("model", "strategy"),
    [
        ("qwen3_5", "paged"),
        ("gpt_oss", "paged"),
        *(
            pytest.param(name, "paged", marks=pytest.mark.slow)
            for name in HYBRIDS
            if name not in ("qwen3_5", "gpt_oss")
        ),
        ("qwen3_5", "prefix"),
        ("qwen3_5", "paged:checkpoints=every64"),
        ("gpt_oss", "static-prefix:windows=tokens"),
    ],
    indirect=["model"],
)
def test_a_session_is_answered_as_simulated(
    model: str, strategy: str, tmp_path: Path
) -> None:
    path, script = tmp_path / "live.jsonl", tmp_path / "script.json"
    script.write_text(json.dumps(SCRIPT))
    with (
        served(model, strategy, script=script) as server,
        Client(server.url) as client,
    ):
        server.record(path)
        for question in ("Why does the sum fail?", "And now?"):
            body = wire.first_body(question)
            for n in range(3):
                answer = client.ask(body, stream=n != 1)
                body = wire.next_body(body, answer, f"Result {n}")
        live = server.requests.reused_tokens.tolist()
        server.record(None)
    simulated = compare(
        path, model=model, strategies=strategy, simulate=True, progress=False
    )
    assert live == simulated.requests.reused_tokens.tolist()
    assert sum(live) > 0
