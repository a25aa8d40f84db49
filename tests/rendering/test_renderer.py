"""Rendering: tokens extend from turn to turn, and every token has its origin."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mlxlab.errors import ModelError, RequestError
from mlxlab.models.folder import ModelFolder, find_model
from mlxlab.prompt import Prompt, Role, common_prefix
from mlxlab.rendering.renderer import Renderer
from mlxlab.rendering.rules import RULES
from mlxlab.rendering.template_process import TEMPLATE_PROCESS
from tests.support import wire

#: Other families' conventions, in short.
TEMPLATES = {
    "xml-tools": """
{%- for t in tools %}<function>
<name>{{ t.function.name }}</name>
<description>{{ t.function.description | trim }}</description>
{%- for name, field in t.function.parameters.properties | items %}
<parameter><name>{{ name }}</name></parameter>
{%- endfor %}
</function>
{% endfor %}
{%- for m in messages %}[{{ m.role }}]
{{ m.content | trim }}
{%- for c in m.tool_calls %}
<function={{ c.function.name }}>
{%- for name, value in c.function.arguments | items %}
<parameter={{ name }}>
{{ value }}
</parameter>{% endfor %}</function>{% endfor %}[/]
{% endfor %}{% if add_generation_prompt %}[assistant]
{% endif %}""",
    "tools-last": """
{%- for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.tool_calls %}
{%- for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}{% endif %}</>
{%- endfor %}
{{- tools | tojson(indent=2) }}{% if add_generation_prompt %}<assistant>{% endif %}""",
}
OPENING = "{% if add_generation_prompt %}assistant: {% endif %}"
REFUSING = """{% for m in messages %}
{%- if m.role == 'system' and not loop.first %}
{{- raise_exception('system comes first') }}{% endif %}
{{- m.role }}: {{ m.content }}
{% endfor %}"""
REFUSING += OPENING
REWRITING = (
    "{% for m in messages %}{{ m.role }}: {{ m.content | length }}\n{% endfor %}"
)
REWRITING += OPENING


#: A mark around a block, as JSON prints it.
MARK = "\\udb80"
USES = {"type": "clear_tool_uses_20250919", "keep": {"value": 1}}
ALWAYS = {**USES, "trigger": {"type": "tool_uses", "value": 0}}
NEVER = {**USES, "trigger": {"type": "input_tokens", "value": 99_999}}
THINKING = {"type": "clear_thinking_20251015"}


@pytest.fixture(scope="module")
def tiny() -> ModelFolder:
    return find_model()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> tuple[Renderer, Counter[str]]:
    """A renderer, and how often its template has run, by kind of text."""
    renderer, runs = Renderer(find_model()), Counter[str]()
    render = TEMPLATE_PROCESS.render

    def count(**arguments: Any) -> str:
        marked = MARK in json.dumps(arguments["conversations"])
        runs["marked" if marked else "plain"] += 1
        return render(**arguments)

    monkeypatch.setattr(TEMPLATE_PROCESS, "render", count)
    return renderer, runs


def with_template(template: str) -> Renderer:
    folder = find_model()
    folder.tokenizer.chat_template = template
    return Renderer(folder)


def text_of(renderer: Renderer, prompt: Prompt, label: str) -> str:
    ids = [
        token
        for segment in prompt.segments
        if segment.label == label
        for token in prompt.tokens[segment.start : segment.stop].tolist()
    ]
    return str(renderer.tokenizer.decode(ids))


def covers(prompt: Prompt) -> bool:
    edges = [0, *(s.stop for s in prompt.segments)]
    starts = [s.start for s in prompt.segments]
    return starts == edges[:-1] and edges[-1] == len(prompt)


def test_each_turn_extends_the_last_one_and_its_answer(tiny: ModelFolder) -> None:
    renderer = Renderer(tiny)
    before = None
    for body, reply in wire.session(6):
        prompt, answer = renderer.render_exchange(body, reply)
        if before is not None:
            assert common_prefix(before.tokens, prompt.tokens) == len(before)
        before = prompt.extended(answer)
    assert not renderer.notes


@pytest.mark.parametrize(("most", "pinned"), [(0, True), (1, False), (None, False)])
def test_a_request_without_an_answer_is_pinned(
    tiny: ModelFolder, most: int | None, pinned: bool
) -> None:
    body = wire.first_body("Why does the sum fail?", "a1b") | {"max_tokens": most}
    assert Renderer(tiny).render(body).pinned == pinned


def test_a_new_session_shares_all_but_the_users_words(tiny: ModelFolder) -> None:
    renderer = Renderer(tiny)
    a = renderer.render(wire.first_body("Why does the sum fail?", "a1b"))
    b = renderer.render(wire.first_body("Add a test.", "9ff"))
    words = next(s for s in a.segments if s.role is Role.USER)
    assert common_prefix(a.tokens, b.tokens) >= words.start


def test_without_rules_a_new_session_shares_nothing_but_the_header(
    tiny: ModelFolder,
) -> None:
    renderer = Renderer(tiny, rules=())
    a, b = (renderer.render(wire.first_body(suffix=s)) for s in ("a1b", "9ff"))
    assert a.segments[1].role is Role.ATTRIBUTION
    assert common_prefix(a.tokens, b.tokens) < a.segments[1].stop


@pytest.mark.parametrize("template", [None, *TEMPLATES])
def test_segments_hold_their_blocks_under_any_template(template: str | None) -> None:
    renderer = (
        with_template(TEMPLATES[template]) if template else Renderer(find_model())
    )
    body = wire.session(3)[2][0]
    prompt = renderer.render(body)
    assert prompt.exact_segments
    assert not renderer.notes
    assert covers(prompt)
    for label, text in {
        "system[1]": wire.ROLE.strip(),
        "tools[0]:Bash": "Run a command.",
        "tools[2]:Read": "Read a file.",
        "messages[0].text[0]": "Why does the sum fail?",
        "messages[1].text[0]": "The folder is /tmp/demo.",
        "messages[2].tool_use[1]:Bash": "cat part0.py",
        "messages[3].tool_result[0]": "return a - b * 0",
    }.items():
        assert text in text_of(renderer, prompt, label)
    assert prompt.segments[-1].role is Role.GENERATION


def test_static_part_is_system_and_tools(tiny: ModelFolder) -> None:
    prompt = Renderer(tiny).render(wire.first_body())
    tools = [s for s in prompt.segments if s.role is Role.TOOLS]
    assert prompt.static_length == tools[-1].stop


def test_a_template_that_hides_blocks_gets_coarse_segments_and_says_so() -> None:
    renderer = with_template(REWRITING)
    prompt = renderer.render(wire.session(2)[1][0])
    assert not prompt.exact_segments
    assert covers(prompt)
    assert len(prompt.segments) > 3
    assert any("coarse" in note for note in renderer.notes)


def test_private_use_characters_in_the_text_do_not_mislead() -> None:
    renderer = Renderer(find_model())
    prompt = renderer.render(wire.first_body(ask="a \U000f0000 b"))
    assert not prompt.exact_segments
    assert covers(prompt)


def test_inline_system_becomes_a_user_turn_where_the_template_refuses_it() -> None:
    renderer = with_template(REFUSING)
    body = wire.first_body()
    body["messages"].append({"role": "system", "content": "A nudge."})
    renderer.rules = tuple(r for r in RULES if r != "environment-first")
    prompt = renderer.render(body)
    assert "user: A nudge." in renderer.tokenizer.decode(prompt.tokens.tolist())
    assert any("inline system" in note for note in renderer.notes)


def test_a_template_that_fails_is_named() -> None:
    with pytest.raises(ModelError, match="model tiny: its chat template cannot"):
        with_template("{{ raise_exception('no') }}").render(wire.first_body())


def test_text_that_is_no_unicode_is_refused(tiny: ModelFolder) -> None:
    with pytest.raises(RequestError, match="trace t: half a surrogate pair"):
        Renderer(tiny).render(wire.first_body(ask="a \ud800 b"), "trace t")


def test_answer_ends_with_the_end_of_turn(tiny: ModelFolder) -> None:
    renderer = Renderer(tiny)
    _, answer = renderer.render_exchange(wire.first_body(), wire.answer())
    assert answer[-1] == renderer.tokenizer.eos_token_id
    assert "RenderedRequest 0" in renderer.tokenizer.decode(answer.tolist())


def test_thinking_switch_reaches_the_template(tiny: ModelFolder) -> None:
    def rendered(thinking: dict[str, Any] | None) -> str:
        prompt = Renderer(tiny).render({**wire.first_body(), "thinking": thinking})
        return str(tiny.tokenizer.decode(prompt.tokens.tolist()))

    assert rendered({"type": "adaptive"}).endswith("assistant\n")
    assert rendered(None).endswith("</think>\n\n")


def test_a_folder_without_a_template_is_refused(
    tiny: ModelFolder, tmp_path: Path
) -> None:
    for file in tiny.path.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ModelError, match=r"needs a tokenizer.json and a chat template"):
        Renderer(find_model(str(tmp_path))).render(wire.first_body())


@pytest.mark.parametrize(
    ("edits", "runs"),
    [
        (None, 1),
        ([], 1),
        ([{"type": "compact_20260112"}], 1),
        ([{**THINKING, "keep": "all"}], 1),
        ([NEVER], 2),
        ([ALWAYS], 3),
        ([NEVER, ALWAYS], 3),
        ([THINKING, ALWAYS], 4),
    ],
)
def test_a_template_runs_once_and_once_for_each_prompt_that_is_counted(
    counted: tuple[Renderer, Counter[str]], edits: list[Any] | None, runs: int
) -> None:
    renderer, found = counted
    body = wire.session(4)[-1][0]
    body["messages"] += [
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm."}]},
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "So."}]},
        {"role": "user", "content": "Go on."},
    ]
    if edits is not None:
        body["context_management"] = {"edits": edits}
    renderer.render(body)
    # One more run, with marks, shows where the blocks are in the final prompt.
    assert found == {"plain": runs, "marked": 1}


def test_an_exchange_adds_one_run_for_its_answer(
    counted: tuple[Renderer, Counter[str]],
) -> None:
    renderer, found = counted
    renderer.render_exchange(wire.first_body(), wire.answer())
    assert found == {"plain": 2, "marked": 2}
