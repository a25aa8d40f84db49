"""The grammar that is inferred from a model, and its texts."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from mlxlab.decoding import CallEnd, CallInput, CallStart, Event, Grammar, Text
from mlxlab.decoding.calls import ParsedCalls
from mlxlab.errors import ModelError
from mlxlab.models.folder import ModelFolder, find_model
from tests.support.answers import JSON, PYTHONIC, XML, decode

model = find_model()
grammar = Grammar.of(model)


def encode(text: str) -> list[int]:
    return list(model.tokenizer.encode(text, add_special_tokens=False))


def copy_with_template(folder: Path, template: str) -> ModelFolder:
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (folder / name).write_bytes((model.path / name).read_bytes())
    (folder / "chat_template.jinja").write_text(template)
    return find_model(str(folder))


def test_the_bundled_model_reasons_and_calls_in_json() -> None:
    assert (grammar.think_start, grammar.think_end) == ("<think>", "</think>")
    assert [*grammar.think_start_ids, *grammar.think_end_ids] == encode(
        "<think></think>"
    )
    assert grammar.calls == JSON


@pytest.mark.parametrize(
    ("template", "calls"),
    [
        ("<tool_call>\n<function=f>", XML),
        ("<|tool_list_start|>", PYTHONIC),
        ("no calls", None),
    ],
)
def test_the_format_of_calls_is_that_of_the_template(
    tmp_path: Path, template: str, calls: Any
) -> None:
    assert Grammar.of(copy_with_template(tmp_path, template)).calls == calls


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="mlx-lm cannot load its tokenizer"):
        Grammar.of(ModelFolder("empty", tmp_path, {}))


@pytest.mark.parametrize(
    ("tail", "open_"),
    [
        ("<|im_start|>assistant\n", False),
        ("<|im_start|>assistant\n<think>\n", True),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("</think><think>", True),
        ("", False),
    ],
)
def test_whether_a_prompt_leaves_reasoning_open(tail: str, open_: bool) -> None:
    assert grammar.opens_in_thinking(encode(tail)) is open_
    assert not Grammar(grammar.detokenizer).opens_in_thinking(encode(tail))


def test_tags_of_several_ids_are_found() -> None:
    several = Grammar(grammar.detokenizer, think_start_ids=(1, 2), think_end_ids=(1, 3))
    assert several.opens_in_thinking([1, 3, 1, 2, 1])
    assert not several.opens_in_thinking([1, 2, 1, 3])


@pytest.mark.parametrize("calls", [JSON, XML])
@pytest.mark.parametrize("name", ["Bash", 'a"é'])
def test_an_opening_begins_a_call_of_the_tool(calls: Any, name: str) -> None:
    opening = Grammar(grammar.detokenizer, calls=calls).call_opening(name)
    assert decode(opening, calls)[0] == CallStart(name)
    assert opening.startswith(
        Grammar(grammar.detokenizer, calls=calls).call_opening(None)
    )


def test_an_opening_is_cut_like_the_template_cuts_it() -> None:
    call = {"function": {"name": "Bash", "arguments": {"command": "ls"}}}
    message: Any = {"role": "assistant", "content": "", "tool_calls": [call]}
    rendered: Any = model.tokenizer.apply_chat_template([message], tokenize=False)
    for name in (None, "Bash"):
        opening = grammar.call_opening(name)
        before, rest = rendered.split(opening)
        cut = encode(before) + encode(opening) + encode(rest)
        assert cut == encode(rendered)


def test_without_calls_there_is_no_opening() -> None:
    assert Grammar(grammar.detokenizer).call_opening("Bash") == ""


# Formats that mlx-lm reads


def given(name: str, arguments: dict[str, Any]) -> list[Event]:
    written = CallInput(json.dumps(arguments))
    return [CallStart(name), written, CallEnd(complete=True)]


_KIMI_INPUT = "<|tool_call_argument_begin|>"
FORMATS = [
    ("pythonic", '[f(a="x"), g(b=[1])]', [("f", {"a": "x"}), ("g", {"b": [1]})]),
    ("mistral", 'f[ARGS]{"a": "x"}', [("f", {"a": "x"})]),
    ("gemma4", 'call:f{a:<|"|>x<|"|>}', [("f", {"a": "x"})]),
    ("glm47", "f\n<arg_key>a</arg_key>\n<arg_value>x</arg_value>", [("f", {"a": "x"})]),
    ("kimi_k2", f'f:0{_KIMI_INPUT}{{"a": "x"}}', [("f", {"a": "x"})]),
    (
        "minimax_m2",
        '<invoke name="f">\n<parameter name="a">x</parameter>\n</invoke>',
        [("f", {"a": "x"})],
    ),
]


def parsed_calls(name: str) -> ParsedCalls:
    module = import_module(f"mlx_lm.tool_parsers.{name}")
    return ParsedCalls(
        module.tool_call_start, module.tool_call_end, module.parse_tool_call
    )


@pytest.mark.parametrize(("name", "body", "expected"), FORMATS)
def test_other_formats_are_read_by_mlx_lm(
    name: str, body: str, expected: list[tuple[str, dict[str, Any]]]
) -> None:
    calls = parsed_calls(name)
    events = [event for call in expected for event in given(*call)]
    answer = f"a\n{calls.start}{body}{calls.end}"
    assert decode(answer, calls) == [Text("a"), *events]


@pytest.mark.parametrize("body", ["", "garbage(", "[]", "[f(a={1})]"])
def test_what_mlx_lm_cannot_read_is_text(body: str) -> None:
    text = f"a\n{PYTHONIC.start}{body}{PYTHONIC.end}\nb"
    assert decode(text, PYTHONIC) == [Text(text)]
    cut_off = text.removesuffix(f"{PYTHONIC.end}\nb")
    assert decode(cut_off, PYTHONIC) == [Text(cut_off)]


def test_importing_the_package_loads_no_mlx() -> None:
    code = "import sys, mlxlab.decoding; sys.exit('mlx.core' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
