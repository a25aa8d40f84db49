"""Text rendered by the bundled template decodes to the blocks it came from."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mlxlab.decoding import (
    CallInput,
    CallStart,
    Decoder,
    Event,
    Grammar,
    Text,
    Thinking,
    ThinkingEnd,
    join_pieces,
)
from mlxlab.models.folder import find_model
from mlxlab.rendering.renderer import Renderer
from tests.support.answers import VALUE

model = find_model()
renderer = Renderer(model)
grammar = Grammar.of(model)

WORDS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="<")
    | st.sampled_from("\n\r \t"),
    max_size=12,
)
#: Newlines at its beginning are the template's.
TEXT = WORDS.map(lambda text: text.lstrip("\r\n")).filter(str.strip)
THINKING = WORDS.map(lambda text: text.strip("\r\n")).filter(str.strip)
CALL = st.tuples(
    st.sampled_from(["Bash", "Read"]), st.dictionaries(WORDS, VALUE, max_size=3)
)


def blocks(events: list[Event]) -> list[dict[str, Any]]:
    """Content of the message that a server makes of the events."""
    content: list[dict[str, Any]] = []
    for event in join_pieces(events):
        match event:
            case Thinking(text):
                content.append(thinking(text))
            case Text(text):
                content.append({"type": "text", "text": text})
            case CallStart(name):
                content.append(tool_use(len(content), name, {}))
            case CallInput(written):
                content[-1]["input"] = json.loads(written)
            case _:
                pass
    return content


def thinking(text: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": text, "signature": ""}


def tool_use(index: int, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"c{index}", "name": name, "input": arguments}


def request(reasons: bool) -> dict[str, Any]:
    mode = (
        {"type": "enabled", "budget_tokens": 1024} if reasons else {"type": "disabled"}
    )
    return {
        "model": "claude",
        "max_tokens": 2048,
        "thinking": mode,
        "messages": [{"role": "user", "content": "go"}],
    }


@given(st.none() | THINKING, st.none() | TEXT, st.lists(CALL, max_size=2))
def test_blocks_survive_being_rendered_and_decoded(
    reasoning: str | None, text: str | None, calls: list[tuple[str, dict[str, Any]]]
) -> None:
    content: list[dict[str, Any]] = [thinking(reasoning)] if reasoning else []
    content += [{"type": "text", "text": text}] if text else []
    for name, arguments in calls:
        content.append(tool_use(len(content), name, arguments))
    if not content:
        return
    body = request(reasons=reasoning is not None)
    answer = {"role": "assistant", "content": content}
    prompt, ids = renderer.render_exchange(body, answer)
    assert ids[-1] == model.tokenizer.eos_token_id

    decoder = Decoder(grammar, thinking=grammar.opens_in_thinking(prompt.tokens))
    events = [event for token in ids[:-1] for event in decoder.feed(int(token))]
    events += decoder.finish()
    assert blocks(events) == content
    for event in events:
        if isinstance(event, ThinkingEnd):
            closed = ids.tolist().index(grammar.think_end_ids[0]) + 1
            assert list(event.tokens) == ids[:closed].tolist()
    again = renderer.render_exchange(body, {**answer, "content": blocks(events)})[1]
    assert again.tolist() == ids.tolist()
