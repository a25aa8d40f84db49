"""A strip shows what a prompt consists of, and how much of each part is reused."""

from __future__ import annotations

from mlxlab.prompt import Prompt, Role, Segment
from mlxlab.server.strip import make_strip
from mlxlab.strategies import Plan, Span


def prompt_of(*parts: tuple[Role, int]) -> Prompt:
    segments: list[Segment] = []
    for i, (role, length) in enumerate(parts):
        start = segments[-1].stop if segments else 0
        segments.append(Segment(f"{role}[{i}]", role, start, start + length))
    return Prompt(Prompt.of(range(segments[-1].stop)).tokens, tuple(segments))


PARTS = (
    (Role.TEMPLATE, 2),
    (Role.SYSTEM, 10),
    (Role.SYSTEM, 5),
    (Role.TEMPLATE, 3),
    (Role.TOOLS, 20),
    (Role.USER, 6),
    (Role.GENERATION, 4),
)


def test_neighbours_are_joined_and_text_of_the_template_belongs_to_them() -> None:
    plan = Plan(50, (Span(1, 0, 0, 25), Span(2, 0, 30, 12)))
    strip = make_strip(prompt_of(*PARTS), plan)
    assert strip == [("system", 20, 20), ("tools", 20, 15), ("user", 10, 2)]
    assert sum(reused for _, _, reused in strip) == plan.reused


def test_a_long_conversation_is_a_short_strip() -> None:
    turns = [(role, 3) for _ in range(100) for role in (Role.USER, Role.ASSISTANT)]
    prompt = prompt_of((Role.SYSTEM, 9), *turns)
    strip = make_strip(prompt, Plan(len(prompt), (Span(1, 0, 0, 300),)))
    assert len(strip) == 32
    assert [kind for kind, _, _ in strip].count("messages") == 1
    assert sum(tokens for _, tokens, _ in strip) == len(prompt)
    assert sum(reused for _, _, reused in strip) == 300
