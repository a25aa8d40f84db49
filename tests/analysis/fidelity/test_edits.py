"""Edits do what their class says, to the requests that they name, and nothing else."""

import itertools
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from mlxlab.analysis.fidelity.edits import EDITS, SHIFTS, EditedTrace, apply_edit
from mlxlab.errors import TraceError
from mlxlab.models.folder import find_model
from mlxlab.prompt import common_prefix
from mlxlab.rendering.messages import parse_request
from mlxlab.rendering.renderer import Renderer
from mlxlab.rendering.rules import RULES
from mlxlab.replay.requests import render_trace
from mlxlab.traces import Trace, bundled_traces, load_trace, read_trace, write_trace

SHORTEST, *_, LONGEST = (f"shift-{tokens}" for tokens in SHIFTS)
CLASSES = [edit for edit in EDITS if not edit.startswith("shift-")]
CASES = list(itertools.product(bundled_traces(), (*CLASSES, SHORTEST, LONGEST)))


@pytest.fixture(scope="module")
def traces() -> dict[str, Trace]:
    return {name: load_trace(name) for name in bundled_traces()}


def pairs(trace: Trace, edited: EditedTrace) -> list[tuple[Any, Any]]:
    """Bodies before and after, of what was changed."""
    before = {e.id: e.body for e in trace.exchanges}
    changed = (e for e in edited.trace.exchanges if e.id in edited.changed)
    return [(before[e.id], e.body) for e in changed]


def texts(body: Any) -> list[str]:
    system = body["system"]
    return [system] if isinstance(system, str) else [b["text"] for b in system]


@pytest.mark.parametrize(("name", "edit"), CASES)
def test_edits_are_valid_repeatable_and_leave_the_rest_alone(
    traces: dict[str, Trace], name: str, edit: str
) -> None:
    trace = traces[name]
    digest = trace.digest
    edited = apply_edit(trace, edit)
    assert trace.digest == digest
    assert Trace("", trace.exchanges).digest == digest  # recomputed
    assert apply_edit(trace, edit).trace.digest == edited.trace.digest != digest
    assert edited.changed
    assert edited.trace.exchanges[-1].id == max(edited.changed)
    before = {e.id: e for e in trace.exchanges}
    for exchange in edited.trace.exchanges:
        if exchange.id in edited.changed:
            assert exchange.body != before[exchange.id].body
            assert exchange.response == before[exchange.id].response
            parse_request(exchange.body, "edited")
            check_history(exchange.body, before[exchange.id].body)
        else:
            assert exchange == before[exchange.id]
    unedited = [e for e in edited.trace.inference if e.id not in edited.changed]
    assert unedited


def check_history(body: Any, recorded: Any) -> None:
    """Calls are followed by their results; turns alternate if they did before."""
    assert body["messages"][0]["role"] == "user"
    assert repeated_roles(body) <= repeated_roles(recorded)
    calls: set[str] = set()
    for message in body["messages"]:
        blocks = message["content"] if isinstance(message["content"], list) else []
        results = {b["tool_use_id"] for b in blocks if b["type"] == "tool_result"}
        assert results == calls or message["role"] == "system"
        if message["role"] != "system":
            calls = {b["id"] for b in blocks if b["type"] == "tool_use"}


def repeated_roles(body: Any) -> int:
    roles = [m["role"] for m in body["messages"] if m["role"] != "system"]
    return sum(a == b for a, b in itertools.pairwise(roles))


@pytest.mark.parametrize("edit", [*CLASSES, SHORTEST])
def test_later_edited_requests_extend_earlier_ones(
    traces: dict[str, Trace], edit: str
) -> None:
    edited = apply_edit(traces["thinking"], edit)
    requests = render_trace(edited.trace, Renderer(find_model(), tuple(RULES)))
    own = [request.prompt for request in requests if request.id in edited.changed]
    assert len(own) >= 2
    for earlier, later in itertools.pairwise(own):
        # All but the generation prompt, behind which the answer follows.
        assert common_prefix(earlier.tokens, later.tokens) >= len(earlier) - 8


def test_each_class_changes_what_it_says(traces: dict[str, Trace]) -> None:
    trace = traces["loop"]

    def changes(edit: str) -> list[tuple[Any, Any]]:
        return pairs(trace, apply_edit(trace, edit))

    for old, new in changes("header"):
        assert new["system"][0] != old["system"][0]
        assert new["system"][0]["text"].startswith("x-anthropic-billing-header:")
        assert {**new, "system": new["system"][1:]} == {
            **old,
            "system": old["system"][1:],
        }
    for old, new in changes("date"):
        differing = [a != b for a, b in zip(texts(old), texts(new), strict=True)]
        assert sum(differing) == 1
        assert "2031-07-19" in texts(new)[differing.index(True)]
    for old, new in changes("tool-added"):
        assert len(new["tools"]) == len(old["tools"]) + 1
        assert [t for t in new["tools"] if t in old["tools"]] == old["tools"]
    for old, new in changes("tool-removed"):
        assert len(new["tools"]) == len(old["tools"]) - 1
        assert [t for t in old["tools"] if t in new["tools"]] == new["tools"]
    for old, new in changes("tools-reordered"):
        names = [[t["name"] for t in body["tools"]] for body in (old, new)]
        assert sorted(names[0]) == sorted(names[1])
        assert sum(a != b for a, b in zip(*names, strict=True)) == 2
    for old, new in changes("message-edited"):
        differing = [
            a != b for a, b in zip(old["messages"], new["messages"], strict=True)
        ]
        assert sum(differing) == 1
        assert 0 < differing.index(True) < len(differing) - 1
    for old, new in changes("history-cut"):
        cut = len(old["messages"]) - len(new["messages"])
        assert cut >= 2
        first = next(
            i for i, m in enumerate(old["messages"]) if m["role"] == "assistant"
        )
        assert (
            new["messages"] == old["messages"][:first] + old["messages"][first + cut :]
        )
    for old, new in changes("compaction"):
        kept = new["messages"][1:]
        assert kept == old["messages"][-len(kept) :]
        assert len(new["messages"]) < len(old["messages"])
    for old, new in changes("block-moved"):
        moved = old["messages"][0]["content"][0]
        assert moved not in new["messages"][0]["content"]
        later = [m["content"] for m in new["messages"][1:]]
        assert sum(moved in c for c in later if isinstance(c, list)) == 1


@pytest.mark.parametrize("tokens", SHIFTS)
def test_a_shift_is_about_as_long_as_its_name_says(
    traces: dict[str, Trace], tokens: int
) -> None:
    edited = apply_edit(traces["thinking"], f"shift-{tokens}")
    tokenizer: Any = find_model().tokenizer
    for old, new in pairs(traces["thinking"], edited)[:1]:
        (added,) = [text for text in texts(new) if text not in texts(old)]
        length = len(tokenizer.encode(added, add_special_tokens=False))
        assert 0.7 * tokens < length < 1.4 * tokens


def test_where_it_starts_can_be_said(traces: dict[str, Trace]) -> None:
    trace = traces["thinking"]
    loop = [e.id for e in trace.inference]
    for start in (1, 3, len(loop) - 1):
        assert apply_edit(trace, "date", start=start).changed == set(loop[start:])
    for start in (0, len(loop)):
        with pytest.raises(TraceError, match="a request before the edit"):
            apply_edit(trace, "date", start=start)


def test_other_sessions_and_agents_are_left_alone() -> None:
    trace = load_trace("subagents")
    edited = apply_edit(trace, "date")
    changed = [e for e in edited.trace.exchanges if e.id in edited.changed]
    assert not any(e.agent for e in changed)
    assert len({e.session for e in changed}) == 1


@pytest.mark.parametrize(
    "edit", ["message-edited", "history-cut", "compaction", "block-moved"]
)
def test_a_history_begun_anew_is_left_alone(
    traces: dict[str, Trace], edit: str
) -> None:
    trace = traces["compact"]
    session, _ = trace.sessions
    loop = [e for e in trace.inference if e.session == session]
    lengths = [len(e.body["messages"]) for e in loop if e.body]
    anew = next(i for i, (a, b) in enumerate(itertools.pairwise(lengths), 1) if b < a)
    edited = apply_edit(trace, edit, start=anew - 2)
    assert edited.changed == {e.id for e in loop[anew - 2 : anew]}
    assert edited.trace.exchanges[-1].id == loop[anew - 1].id


@pytest.mark.parametrize("edit", CLASSES)
def test_the_form_of_a_message_does_not_matter(
    traces: dict[str, Trace], edit: str
) -> None:
    """The client's mark moves on, and what was a string may come back in blocks."""
    trace = deepcopy(traces["thinking"])
    last = trace.inference[-1]
    assert last.body is not None
    for message in last.body["messages"]:
        if isinstance(message["content"], str):
            message["content"] = [{"type": "text", "text": message["content"]}]
        message["content"][-1]["cache_control"] = {"type": "ephemeral"}
    assert last.id in apply_edit(trace, edit).changed


@pytest.mark.parametrize(("name", "start"), [("resume", 4), ("compact", 5)])
def test_a_moved_block_stays_where_it_came_to(
    traces: dict[str, Trace], name: str, start: int
) -> None:
    """Though it becomes a string in one, and gets one more block in the other."""
    bodies = pairs(traces[name], apply_edit(traces[name], "block-moved", start=start))
    place = len(bodies[0][0]["messages"]) - 1
    recorded = [old["messages"][place]["content"] for old, _ in bodies]
    assert any(content != recorded[0] for content in recorded)
    moved = bodies[0][0]["messages"][0]["content"][0]
    places = {new["messages"][place]["content"].index(moved) for _, new in bodies}
    assert len(places) == 1


def test_a_tool_is_known_by_its_name(traces: dict[str, Trace]) -> None:
    """In this trace a tool is loaded on the way, in the middle of the list."""
    trace = traces["deferred"]

    def names(body: Any) -> list[str]:
        return [tool["name"] for tool in body["tools"]]

    for edit in ("tool-added", "tool-removed", "tools-reordered"):
        lists = [
            (names(old), names(new))
            for old, new in pairs(trace, apply_edit(trace, edit, start=1))
        ]
        assert len({len(old) for old, _ in lists}) == 2
        gone = {frozenset(old) - frozenset(new) for old, new in lists}
        assert len(gone) == 1


def test_an_edited_trace_can_be_written_and_read(
    traces: dict[str, Trace], tmp_path: Path
) -> None:
    edited = apply_edit(traces["thinking"], "compaction").trace
    assert edited.name == "thinking~compaction"
    assert edited.header.notes["edit"] == "compaction"
    write_trace(edited, tmp_path / "edited.jsonl")
    again = read_trace(tmp_path / "edited.jsonl")
    assert again.digest == edited.digest
    assert again.header.notes["edit"] == "compaction"


@pytest.mark.parametrize(
    ("edit", "body", "says"),
    [
        ("date", {"system": []}, "no system text"),
        ("tool-added", {"tools": []}, "0 tools"),
        ("tool-removed", {"tools": None}, "0 tools"),
        ("history-cut", {"messages": [{"role": "user", "content": "a"}]}, "0 answers"),
        (
            "message-edited",
            {"messages": [{"role": "user", "content": "a"}]},
            "between the user's first and last",
        ),
        (
            "block-moved",
            {"messages": [{"role": "user", "content": "a"}]},
            "not two blocks",
        ),
    ],
)
def test_what_has_no_such_place_is_refused(
    traces: dict[str, Trace], edit: str, body: dict[str, Any], says: str
) -> None:
    trace = deepcopy(traces["thinking"])
    for exchange in trace.inference:
        assert exchange.body is not None
        exchange.body.update(body)
    with pytest.raises(TraceError, match=f"thinking: {edit}: .*{says}"):
        apply_edit(trace, edit)


def test_unknown_edits_are_refused(traces: dict[str, Trace]) -> None:
    with pytest.raises(TraceError, match="no edit 'rot13'; choose from header, date"):
        apply_edit(traces["loop"], "rot13")
