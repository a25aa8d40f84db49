"""The real Claude Code works on our server, and live traffic is as simulated."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise, starmap
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mlxlab.cli import app
from mlxlab.models.folder import BUNDLED, find_model
from mlxlab.replay.commits import order_as_planned
from mlxlab.replay.requests import RenderedRequest
from mlxlab.server.server import Options, Server, serve
from tests.support.architectures import save_architecture
from tests.support.claude import Evidence, Workplace, simulated
from tests.support.hybrids import HYBRIDS

SCRIPTS = Path(__file__).with_name("scripts")
STRATEGY, OTHER = "paged", "prefix"
#: Fewer tools make a shorter prompt, which is all that changes.
SMALL = ("--tools", "Bash")
DELEGATE = ("--tools", "Agent,Read")


@pytest.fixture(scope="module", params=[BUNDLED, "qwen3_5", "gpt_oss"])
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """The bundled model, or a random one that cannot be cut at any token."""
    if request.param == BUNDLED:
        return BUNDLED
    folder = tmp_path_factory.mktemp("model") / request.param
    save_architecture(folder, HYBRIDS[request.param])
    return str(folder)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "live.jsonl"


def served(
    script: str, trace: Path, aliases: Path | None = None, model: str = BUNDLED
) -> Server:
    """A server that answers from a script, through the real prefill and decoding."""
    options = Options(script=SCRIPTS / f"{script}.json")
    return serve(model, STRATEGY, aliases=aliases, record=trace, options=options)


def check(evidence: Evidence) -> None:
    """What holds of any work that went well, under any strategy."""
    assert evidence.failures == []
    assert evidence.repeated == []
    assert evidence.diversions == []
    assert evidence.prompts == evidence.prompt_lengths
    # Requests that come at the same time may be counted in another order.
    counted = zip(
        evidence.requests.prompt_tokens, evidence.requests.reused_tokens, strict=True
    )
    reported = zip(evidence.prompts, evidence.reused, strict=True)
    assert sorted(reported) == sorted(counted)


def test_a_tool_loop_edits_the_file(
    workplace: Workplace, trace: Path, model: str
) -> None:
    with served("tools", trace, model=model) as server:
        said = workplace.ask(server, "The sum in calc.py is wrong. Fix it.")
    assert said == "Fixed: 2 and 3 make 5."
    assert "return a + b\n" in (workplace.project / "calc.py").read_text()
    evidence = Evidence.of(trace, server)
    check(evidence)
    assert len(evidence.rendered) == 4
    assert evidence.reused == simulated(evidence.trace, STRATEGY, model=model)


@pytest.mark.parametrize(
    ("task", "answer", "number"),
    [
        (
            "Look at both files at once.",
            "One returns a difference, one says hello.",
            2,
        ),
        (
            "Look at three things at once.",
            "A difference, a greeting, and calc.py is longer.",
            3,
        ),
    ],
    ids=["two", "three"],
)
def test_agents_work_at_the_same_time(
    workplace: Workplace, trace: Path, model: str, task: str, answer: str, number: int
) -> None:
    with served("agents", trace, model=model) as server:
        said = workplace.ask(server, task, *DELEGATE)
    assert said == answer
    evidence = Evidence.of(trace, server)
    check(evidence)
    sessions = [request.session for request in evidence.rendered]
    main, *agents = dict.fromkeys(sessions)
    assert len(agents) == number
    # The client starts an agent as soon as its call has been streamed.
    assert any(starmap(_overlap, pairwise(order_as_planned(evidence.rendered))))
    assert Counter(sessions) == dict.fromkeys([main, *agents], 2)
    assert evidence.reused == simulated(evidence.trace, STRATEGY, model=model)


def _overlap(first: RenderedRequest, second: RenderedRequest) -> bool:
    """Whether a request was planned before the one in front of it was stored."""
    assert first.order
    assert second.order
    return second.order.planned < first.order.stored[-1][0]


def test_reasoning_comes_back_id_for_id(
    workplace: Workplace, trace: Path, model: str
) -> None:
    with served("thinking", trace, model=model) as server:
        workplace.ask(server, "What does calc.py print?", *SMALL)
        said = workplace.ask(server, "And why?", *SMALL, "--continue")
    assert said == "Because it subtracts."
    evidence = Evidence.of(trace, server)
    check(evidence)
    *earlier, last = evidence.trace.inference
    assert last.body
    given = [e.response.message for e in earlier if e.response and e.response.message]
    blocks = reasoning(given)
    assert reasoning(last.body["messages"]) == blocks
    # The client wants no text; what comes back can only be from the signature.
    assert [block["thinking"] for block in blocks] == ["", ""]
    prompt = find_model().tokenizer.decode(evidence.rendered[-1].prompt.tokens)
    assert "to run it is surer.\n\nSo I do." in prompt
    assert evidence.reused == simulated(evidence.trace, STRATEGY, model=model)


def test_a_conversation_is_continued(workplace: Workplace, trace: Path) -> None:
    with served("tools", trace) as server:
        workplace.ask(server, "Say hello.", *SMALL)
        said = workplace.ask(server, "What did I ask before?", *SMALL, "--continue")
    assert said == "For a hello."
    evidence = Evidence.of(trace, server)
    check(evidence)
    assert len(evidence.rendered) == 3
    assert len({request.session for request in evidence.rendered}) == 1
    assert evidence.reused == simulated(evidence.trace, STRATEGY)


def test_the_client_does_not_notice_another_strategy(
    workplace: Workplace, trace: Path
) -> None:
    with served("tools", trace) as server:
        workplace.ask(server, "Say hello.", *SMALL)
        server.configure(strategy=OTHER)
        said = workplace.ask(server, "What did I ask before?", *SMALL, "--continue")
    assert said == "For a hello."
    evidence = Evidence.of(trace, server)
    check(evidence)
    assert evidence.requests.strategy.tolist() == [STRATEGY, OTHER, OTHER]
    # The other one begins with an empty cache.
    first, *later = evidence.trace.inference
    assert evidence.reused == [
        *simulated(evidence.trace, STRATEGY, [first]),
        *simulated(evidence.trace, OTHER, later),
    ]


def test_an_agents_file_leads_to_its_alias(
    workplace: Workplace, trace: Path, tmp_path: Path
) -> None:
    file = tmp_path / "aliases.json"
    file.write_text(
        json.dumps({"aliases": {"fast": {"strategy": OTHER, "thinking": "off"}}})
    )
    command = ["agents", "--write", str(workplace.project), "--aliases", str(file)]
    assert CliRunner().invoke(app, command).exit_code == 0
    with served("agents", trace, aliases=file) as server:
        said = workplace.ask(server, "Hand it to the fast agent.", *DELEGATE)
    assert said == "The fast one says hello."
    evidence = Evidence.of(trace, server)
    check(evidence)
    assert evidence.requests.alias.tolist() == ["default", "fast", "fast", "default"]
    main, *agents, end = evidence.trace.inference
    ours, its = (
        simulated(evidence.trace, strategy, exchanges)
        for strategy, exchanges in ((STRATEGY, [main, end]), (OTHER, agents))
    )
    assert evidence.reused == [ours[0], *its, ours[1]]


def reasoning(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The thinking blocks of the assistant's messages."""
    answers = (m["content"] for m in messages if m["role"] == "assistant")
    return [b for content in answers for b in content if b["type"] == "thinking"]
