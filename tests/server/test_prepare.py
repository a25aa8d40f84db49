"""From a request to a job: thinking, sampling, forced calls, the window."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any, cast

import mlx.core as mx
import numpy as np
import pytest

from mlxlab.decoding import CallStart, Text
from mlxlab.engine import Engine, Runner, Worker, load_model
from mlxlab.errors import ModelError, RequestError, UnknownModelError
from mlxlab.models.folder import ModelFolder
from mlxlab.prompt import common_prefix
from mlxlab.server.aliases import Alias, Aliases
from mlxlab.server.events import AnswerWriter
from mlxlab.server.generation import Completed, Item, Job, request_of
from mlxlab.server.prepare import Preparation, Prepared
from mlxlab.server.schema import InferenceRequest, TokenCountRequest
from mlxlab.strategies import make_strategy
from mlxlab.web.sse import MessageAccumulator, frame
from tests.support.endpoint import ask
from tests.support.models import save_model
from tests.support.wire import TOOLS

#: What opens an answer in the bundled template, and in one that opens reasoning too.
PLAIN = "{{- '<|im_start|>assistant\\n' -}}\n{%- if enable_thinking"
OPENING = PLAIN.replace(
    "\n",
    "{%- if enable_thinking | default(true) -%}{{- '<think>\\n' -}}{%- endif -%}\n",
)
TOOL = {"name": "Bash", "input_schema": {"type": "object"}}


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as worker:
        yield worker


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Models by what is peculiar about them; the answers of none ever end."""
    folder = tmp_path_factory.mktemp("models")
    opening = save_model(folder / "opening")
    template = opening / "chat_template.jinja"
    head, tail = template.read_text().rsplit(PLAIN, 1)
    template.write_text(head + OPENING + tail)
    return {
        "plain": str(save_model(folder / "plain")),
        "opening": str(opening),
        "narrow": str(save_model(folder / "narrow", max_position_embeddings=60)),
    }


@cache
def preparation(model: str) -> Preparation:
    """One a model, because tokenizers take long to load."""
    return Preparation(Aliases({"default": Alias(model=model)}, {}))


class Bench:
    """Prepares, runs and writes: the server without queue and HTTP."""

    def __init__(self, worker: Worker, alias: Alias) -> None:
        self.worker = worker
        self.preparation = preparation(alias.model)
        self.preparation.aliases = Aliases({"default": alias}, {})
        self.engine: Engine | None = None

    def prepared(self, body: dict[str, Any]) -> tuple[InferenceRequest, Prepared, Job]:
        request = InferenceRequest.model_validate(body)
        prepared = self.preparation.render(request)
        return request, prepared, self.preparation.job(request, prepared, self._engine)

    def answer(self, body: dict[str, Any], most: int = 60) -> Answer:
        """An answer, cut off soon: budgets need a ``max_tokens`` over 1024."""
        request, prepared, job = self.prepared(body)
        job = replace(job, max_tokens=min(job.max_tokens, most))
        thinking = request.thinking
        writer = AnswerWriter(
            request.model,
            sign=lambda ids: self.preparation.sign(prepared, ids),
            show_thinking=not (thinking and thinking.display == "omitted"),
        )
        return self.worker.call(lambda: Answer(prepared, job, writer))

    def _engine(self, folder: ModelFolder, strategy: str) -> Engine:
        if self.engine is None:
            self.engine = Engine(load_model(folder), make_strategy(strategy))
        return self.engine


class Answer:
    """A whole answer, and what came before it was put together."""

    def __init__(self, prepared: Prepared, job: Job, writer: AnswerWriter) -> None:
        self.prompt = prepared.prompt
        accumulator = MessageAccumulator()
        self.deltas: list[str] = []
        self.ids: tuple[int, ...] = ()
        items: list[Item] = []
        request, runner = request_of(job, items.append), Runner()
        runner.add(request)
        while runner.step():
            pass
        if request.error is not None:
            raise request.error
        for item in items:
            if isinstance(item, Completed):
                self.ids = item.ids
            for event in writer.write(item):
                if event["type"] == "content_block_delta":
                    self.deltas.append(event["delta"]["type"])
                accumulator.feed(frame(**{"kind": event.pop("type"), **event}))
        assert accumulator.message
        self.message = accumulator.message

    @property
    def content(self) -> list[dict[str, Any]]:
        return list(self.message["content"])

    @property
    def kinds(self) -> list[str]:
        return [block["type"] for block in self.content]

    def said(self, at: Bench) -> str:
        """The ids as text, tags and all."""
        folder = at.preparation.folder
        return str(folder.tokenizer.decode(list(self.ids)))

    @property
    def reused(self) -> int:
        return int(self.message["usage"]["cache_read_input_tokens"])


def bench(worker: Worker, **alias: Any) -> Bench:
    return Bench(worker, Alias(strategy="prefix", **alias))


def text_of(prepared: Prepared) -> str:
    return str(prepared.folder.tokenizer.decode(prepared.prompt.tokens.tolist()))


def thinking(budget: int = 1024, **more: Any) -> dict[str, Any]:
    return {"type": "enabled", "budget_tokens": budget} | more


# Thinking: asked for, or settled by the alias


@pytest.mark.parametrize(
    ("alias", "asked", "thinks"),
    [
        ("auto", None, False),
        ("auto", {"type": "adaptive"}, True),
        ("auto", thinking(), True),
        ("auto", {"type": "disabled"}, False),
        ("on", None, True),
        ("on", {"type": "disabled"}, True),
        ("on", thinking(), True),
        ("off", {"type": "adaptive"}, False),
        ("off", thinking(), False),
    ],
)
def test_an_alias_settles_whether_there_is_thinking(
    worker: Worker, alias: str, asked: dict[str, Any] | None, thinks: bool
) -> None:
    body = ask(thinking=asked, max_tokens=2000)
    _, prepared, _ = bench(worker, thinking=alias).prepared(body)
    assert text_of(prepared).endswith("</think>\n\n") == (not thinks)


@pytest.mark.parametrize(
    "change",
    [
        {"tools": [TOOL], "tool_choice": {"type": "any"}},
        {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "Bash"}},
        {"output_config": {"format": {"type": "json_schema", "schema": {}}}},
    ],
    ids=["any", "tool", "schema"],
)
def test_what_begins_with_a_call_or_json_does_not_think(
    worker: Worker, change: dict[str, Any]
) -> None:
    for alias in ("auto", "on"):
        body = ask(thinking={"type": "adaptive"}, **change)
        _, prepared, _ = bench(worker, thinking=alias).prepared(body)
        assert text_of(prepared).endswith("</think>\n\n")


@pytest.mark.parametrize("model", ["plain", "opening"])
@pytest.mark.parametrize("display", ["summarized", "omitted"])
def test_a_spent_budget_is_followed_by_text(
    worker: Worker, models: dict[str, str], model: str, display: str
) -> None:
    at = bench(worker, model=models[model], max_thinking_tokens=24)
    answer = at.answer(ask(thinking=thinking(display=display), max_tokens=1025))
    assert answer.kinds[:2] == ["thinking", "text"]
    thought, text = answer.content[:2]
    assert thought["signature"].startswith("mlxlab1.")
    assert bool(thought["thinking"]) == (display == "summarized")
    assert ("thinking_delta" in answer.deltas) == (display == "summarized")
    assert text["text"].strip()
    grammar = at.preparation._grammar(models[model])
    opened = model == "opening"
    assert (answer.ids[0] == grammar.think_start_ids[0]) == (not opened)
    spent = answer.ids.index(grammar.think_end_ids[0])
    assert spent <= 24 + 2


@pytest.mark.parametrize("model", ["plain", "opening"])
@pytest.mark.parametrize("max_tokens", [1, 2, 9, 10, 50])
def test_a_budget_over_max_tokens_is_cut_so_that_text_follows(
    worker: Worker, models: dict[str, str], model: str, max_tokens: int
) -> None:
    """These models never stop: what is left over is text."""
    at = bench(worker, model=models[model])
    answer = at.answer(ask(thinking=thinking(), max_tokens=max_tokens))
    assert len(answer.ids) == max_tokens
    thinks = max_tokens >= 10
    assert answer.kinds == (["thinking", "text"] if thinks else ["text"])
    assert ("thinking_delta" in answer.deltas) == thinks
    assert answer.deltas[-1] == "text_delta"
    assert answer.message["stop_reason"] == "max_tokens"


def test_the_cut_budget_is_that_of_the_room_in_the_window(
    worker: Worker, models: dict[str, str]
) -> None:
    at = bench(worker, model=models["narrow"])
    answer = at.answer(ask("Why?", thinking=thinking(), max_tokens=5000))
    assert answer.kinds == ["thinking", "text"]
    assert answer.deltas[-1] == "text_delta"
    assert answer.message["stop_reason"] == "model_context_window_exceeded"


@pytest.mark.parametrize("max_tokens", [1, 10, 50])
@pytest.mark.parametrize(
    "change",
    [
        {"tools": [TOOL], "tool_choice": {"type": "any"}},
        {"output_config": {"format": {"type": "json_schema", "schema": {}}}},
    ],
    ids=["any", "schema"],
)
def test_forms_are_answered_whatever_the_budget(
    worker: Worker, change: dict[str, Any], max_tokens: int
) -> None:
    """Enabled thinking with a forced call is refused, as the API does."""
    asked = thinking() if "output_config" in change else {"type": "adaptive"}
    body = ask(thinking=asked, max_tokens=max_tokens, **change)
    answer = bench(worker).answer(body)
    assert "thinking" not in answer.kinds
    assert 0 < len(answer.ids) <= max_tokens


def test_an_empty_answer_fills_the_cache_of_one_that_thinks(worker: Worker) -> None:
    at = bench(worker)
    prompts = [
        text_of(at.prepared(ask(thinking=thinking(), max_tokens=n))[1])
        for n in (0, 500)
    ]
    assert prompts[0] == prompts[1]


@pytest.mark.parametrize("budget", [None, 0, 10, 1023, -1])
def test_a_budget_that_no_client_may_ask_for_is_refused(
    worker: Worker, budget: int | None
) -> None:
    asked = {"type": "enabled", "budget_tokens": budget}
    with pytest.raises(RequestError, match=r"thinking\.budget_tokens: .* 1024"):
        bench(worker).prepared(ask(thinking=asked, max_tokens=2000))


@pytest.mark.parametrize("model", ["plain", "opening"])
@pytest.mark.parametrize("display", ["summarized", "omitted"])
@pytest.mark.parametrize("kind", ["enabled", "adaptive"])
def test_the_next_turn_extends_one_that_thought(
    worker: Worker, models: dict[str, str], model: str, display: str, kind: str
) -> None:
    at = bench(worker, model=models[model], max_thinking_tokens=16, thinking="auto")
    asked: dict[str, Any] = {"type": kind, "display": display}
    asked |= {"budget_tokens": 1024} if kind == "enabled" else {}
    body = ask("What is wrong?", thinking=asked, max_tokens=1025)
    first = at.answer(body)
    if kind == "enabled" or model == "opening":
        assert first.kinds[0] == "thinking"
    turns = [*body["messages"], {"role": "assistant", "content": first.content}]
    body["messages"] = [*turns, {"role": "user", "content": "Go on."}]
    second = at.answer(body, most=1)
    before = first.prompt.extended(np.array(first.ids, dtype=np.int32))
    shared = common_prefix(before.tokens, second.prompt.tokens)
    grammar = at.preparation._grammar(models[model])
    closed = [i for i, id in enumerate(first.ids) if id in grammar.think_end_ids]
    # Whatever the model said behind it, reasoning is restored id for id.
    assert shared >= len(first.prompt) + (closed[0] + 1 if closed else 0)
    assert second.reused >= shared - 1


# Calls and forms


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "Bash"}])
def test_a_forced_call_opens_the_answer(worker: Worker, choice: dict[str, Any]) -> None:
    body = ask(tools=[TOOL], tool_choice=choice, max_tokens=16)
    at = bench(worker)
    answer = at.answer(body)
    grammar = at.preparation._grammar("tiny")
    opening = grammar.call_opening(choice.get("name"))
    text = answer.said(at)
    assert text.startswith(opening)
    assert ("Bash" in opening) == ("name" in choice)


def test_no_call_is_made_where_none_is_wanted(worker: Worker) -> None:
    at = bench(worker)
    _, prepared, job = at.prepared(ask(tools=[TOOL], tool_choice={"type": "none"}))
    grammar = at.preparation._grammar("tiny")
    first = prepared.folder.tokenizer.encode(grammar.call_opening(None))[0]

    def given() -> int:
        likely = mx.zeros((1, 8704))
        likely[0, first] = 10.0
        return cast("int", job.sampler()(likely).item())

    assert worker.call(given) != first
    assert bench(worker).prepared(ask(tools=[TOOL]))[2].single_call is False


@pytest.mark.parametrize("kind", ["auto", "any", "tool"])
def test_one_call_at_a_time_is_asked_for_anywhere(worker: Worker, kind: str) -> None:
    choice = {"type": kind, "name": "Bash", "disable_parallel_tool_use": True}
    _, _, job = bench(worker).prepared(ask(tools=[TOOL], tool_choice=choice))
    assert job.single_call


@pytest.mark.parametrize("given", [True, False])
def test_a_call_is_text_if_the_client_has_no_tools(worker: Worker, given: bool) -> None:
    tools = [TOOL] if given else []
    _, prepared, job = bench(worker).prepared(ask(tools=tools))
    call = '<tool_call>\n{"name": "Bash", "arguments": {}}\n</tool_call>'
    decoder = job.decoder()
    events = [
        event
        for id in prepared.folder.tokenizer.encode(call)
        for event in decoder.feed(id)
    ]
    kinds = {type(event) for event in [*events, *decoder.finish()]}
    assert (CallStart in kinds, Text in kinds) == (given, not given)


# The window


def test_an_answer_ends_where_the_window_does(
    worker: Worker, models: dict[str, str]
) -> None:
    at = bench(worker, model=models["narrow"])
    body = ask("Why? " * 5, max_tokens=500)
    _, prepared, _ = at.prepared(body)
    answer = at.answer(body)
    assert answer.message["stop_reason"] == "model_context_window_exceeded"
    assert len(prepared.prompt) + len(answer.ids) == 60 + 1
    fits = at.answer(body, most=3)
    assert len(fits.ids) == 3
    room = 60 - len(prepared.prompt) + 1
    for tokens, reason in ((room, "max_tokens"), (room - 1, "max_tokens")):
        message = at.answer(body | {"max_tokens": tokens}).message
        assert message["stop_reason"] == reason
        assert message["usage"]["output_tokens"] == tokens


def test_a_prompt_beyond_the_window_is_refused_in_the_clients_words(
    worker: Worker, models: dict[str, str]
) -> None:
    at = bench(worker, model=models["narrow"])
    body = ask("Why? " * 100)
    tokens = len(at.preparation.render(InferenceRequest(**body)).prompt)
    assert tokens > 60
    with pytest.raises(RequestError) as caught:
        at.prepared(body)
    assert str(caught.value) == f"prompt is too long: {tokens} tokens > 60 maximum"


# How answers end


def test_a_stop_sequence_ends_the_answer_and_is_left_out(worker: Worker) -> None:
    at = bench(worker)
    body = ask("Tell me more.", max_tokens=40)
    whole = at.answer(body).content[-1]["text"]
    sequence = whole[len(whole) // 2 :][:5]
    cut = at.answer(body | {"stop_sequences": ["nowhere in it", sequence]})
    assert cut.message["stop_reason"] == "stop_sequence"
    assert cut.message["stop_sequence"] == sequence
    assert cut.content[-1]["text"] == whole[: whole.index(sequence)].rstrip("\n")
    assert len(cut.ids) < 40


def test_no_tokens_fill_the_cache_only(worker: Worker) -> None:
    at = bench(worker)
    answer = at.answer(ask(max_tokens=0))
    assert (answer.content, answer.ids) == ([], ())
    assert answer.message["stop_reason"] == "max_tokens"
    assert at.answer(ask(max_tokens=1)).reused > 0


# What cannot be prepared


def test_models_that_are_not_there_are_named(worker: Worker) -> None:
    at = bench(worker)
    with pytest.raises(UnknownModelError, match="known: default"):
        at.prepared(ask(model="gpt-x"))
    with pytest.raises(ModelError, match="unknown model 'nowhere'"):
        bench(worker, model="nowhere").prepared(ask())


def test_counting_and_answering_render_the_same(worker: Worker) -> None:
    at = bench(worker)
    body = ask(tools=TOOLS, thinking={"type": "adaptive"}, system="Be short.")
    counted = at.preparation.render(TokenCountRequest.model_validate(body)).prompt
    assert counted.tokens.tolist() == at.prepared(body)[1].prompt.tokens.tolist()
