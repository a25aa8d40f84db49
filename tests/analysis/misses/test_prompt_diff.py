"""Edits of recorded traces as ground truth: each comes out as its cause."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache

import pytest

from mlxlab.analysis.fidelity.edits import EDIT_GROUPS, apply_edit
from mlxlab.analysis.misses.attribution import RequestAttribution, attribute
from mlxlab.analysis.misses.causes import BY_STRATEGY, Cause
from mlxlab.models.folder import find_model
from mlxlab.prompt import Tokens
from mlxlab.rendering.renderer import Renderer
from mlxlab.rendering.rules import RULES, parse_rules
from mlxlab.replay.requests import render_trace
from mlxlab.strategies import make_strategy
from mlxlab.traces import load_trace

CAUSES = {
    "header": Cause.HEADER,
    "date": Cause.ENVIRONMENT,
    "tool-added": Cause.TOOLS,
    "tool-removed": Cause.TOOLS,
    "tools-reordered": Cause.ORDER,
    "message-edited": Cause.EDITED,
    "history-cut": Cause.CUT,
    "compaction": Cause.CUT,
    "block-moved": Cause.MOVED,
    "shift-256": Cause.SYSTEM,
}


def test_every_class_of_edits_is_tried() -> None:
    assert set(EDIT_GROUPS["classes"]) < set(CAUSES)


@cache
def first_changed(trace: str, edit: str, rules: str) -> RequestAttribution:
    """The first edited request, and what became of it."""
    edited = apply_edit(load_trace(trace), edit)
    last = min(edited.changed)
    kept = tuple(e for e in edited.trace.exchanges if e.id <= last)
    renderer = Renderer(find_model(), parse_rules(rules))

    def decode(tokens: Tokens) -> str:
        return str(renderer.tokenizer.decode(tokens, skip_special_tokens=True))

    requests = render_trace(replace(edited.trace, exchanges=kept), renderer)
    *_, attribution = attribute(requests, make_strategy("prefix"), decode)
    assert attribution.request.id == last
    return attribution


@pytest.mark.parametrize(
    ("trace", "rules"), [("resume", "none"), ("resume", "all"), ("sessions", "all")]
)
@pytest.mark.parametrize("edit", CAUSES)
def test_an_edit_comes_out_as_its_cause(trace: str, edit: str, rules: str) -> None:
    attribution = first_changed(trace, edit, rules)
    tokens: Counter[Cause] = Counter()
    for part in attribution.parts:
        if part.cause and part.cause not in BY_STRATEGY:
            tokens[part.cause] += len(part)
    if edit == "header" and "drop-attribution" in parse_rules(rules):
        assert Cause.HEADER not in tokens
        return
    assert attribution.change is not None
    assert attribution.change.cause is CAUSES[edit]
    # What was recorded has a change of its own at its end: what it answered came back
    # in other tokens. All else was invalidated by the edit, or is new.
    assert set(tokens) <= {CAUSES[edit], Cause.FRESH, Cause.ANSWER}
    assert tokens[CAUSES[edit]] > 0


@pytest.mark.parametrize(
    ("edit", "least"),
    [
        # Nearly all of the prompt stands behind these, and it was all there before.
        ("header", 0.9),
        ("date", 0.85),
        ("shift-256", 0.9),
        ("tools-reordered", 0.4),
        ("tool-removed", 0.4),
    ],
)
def test_what_stands_behind_an_edit_is_due_to_it(edit: str, least: float) -> None:
    attribution = first_changed("resume", edit, "none")
    invalidated = sum(len(p) for p in attribution.parts if p.cause is CAUSES[edit])
    assert invalidated / len(attribution.request.prompt) >= least


def test_a_break_names_its_block_and_how_it_changed() -> None:
    change = first_changed("resume", "tool-added", "all").change
    assert change is not None
    assert change.label.endswith(":mcp__notes__find")
    assert (change.old, "mcp__notes__find" in change.new) == ("", True)
    gone = first_changed("resume", "tool-removed", "all").change
    assert gone is not None
    assert gone.label.startswith("tools[3]:")
    assert gone.label.endswith(" (gone)")
    dated = first_changed("resume", "date", "all").change
    assert dated is not None
    assert dated.label == "system[2]"
    assert "2031-07-19" in dated.new


def test_a_deferred_tool_is_known_as_one() -> None:
    renderer = Renderer(
        find_model(), [name for name in RULES if name != "deferred-tools"]
    )
    requests = render_trace(load_trace("deferred"), renderer)
    attributions = attribute(
        requests,
        make_strategy("prefix"),
        lambda ids: str(renderer.tokenizer.decode(ids)),
    )
    changes = [attribution.change for attribution in attributions if attribution.change]
    assert [c.cause for c in changes if c.rule == "deferred-tools"] == [Cause.TOOLS]
