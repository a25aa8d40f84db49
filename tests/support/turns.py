"""Requests of a coding agent that meet a cache in each way that matters."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, TypeAlias

from mlxlab.prompt import Prompt, Tokens
from mlxlab.rendering.renderer import Renderer
from tests.support import wire

__all__ = ["Turn", "turns"]

Turn: TypeAlias = tuple[Prompt, Tokens]
"""A rendered prompt and the ids of its answer."""


def turns(renderer: Renderer) -> list[Turn]:
    """Render seven requests of two sessions, about 2,000 tokens in all.

    In order: a first turn, the next through a tool's result, another session with the
    same system text, a third turn that ends in a thought and a text, a question that
    drops this thought, an edit of an early result, and the question once more.
    """
    (first, call), (second, more), *_ = wire.session(2)
    other, other_call = wire.session(1, ask="Add a test.", suffix="9ff")[0]
    third = wire.next_body(second, more, "def part1(a, b):\n    return a - b\n")
    thought = wire.answer(2, thinking="So the sign of part1 is off. " * 3)
    del thought["content"][2:]
    said = {**thought, "content": thought["content"][1:]}
    fourth = wire.next_body(third, said, "Then mend it, please.")
    edited = deepcopy(fourth)
    edited["messages"][3]["content"][0]["content"] = "[cleared]"
    last = wire.answer(3)
    asked = [
        (first, call),
        (second, more),
        (other, other_call),
        (third, thought),
        (fourth, last),
        (edited, last),
        (fourth, last),
    ]
    return [renderer.render_exchange(_short(body), reply) for body, reply in asked]


def _short(body: dict[str, Any]) -> dict[str, Any]:
    attribution, text = body["system"]
    role = {**text, "text": text["text"][: len(text["text"]) // 3]}
    return {**body, "system": [attribution, role], "tools": body["tools"][:1]}
