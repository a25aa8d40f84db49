"""Applies edits to a recorded trace, as they happen to real prompts.

From one request on, every request carries the edit: a changed header or date, a newly
connected tool server, a cut history. Edits change request bodies only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

from mlxlab.errors import TraceError
from mlxlab.traces.schema import Json
from mlxlab.traces.trace import Exchange, Trace

__all__ = ["EDITS", "EDIT_GROUPS", "SHIFTS", "Edit", "EditedTrace", "apply_edit"]

Body: TypeAlias = dict[str, Json]
Change: TypeAlias = Callable[[Body], None]
"""Edits a body in place. LookupError: the body has no place for the edit."""

#: Approximate tokens that the ``shift`` edits put before the system text.
SHIFTS = tuple(2**n for n in range(4, 14))

_CHARACTERS_A_TOKEN = 3.3
_ATTRIBUTION = "x-anthropic-billing-header:"
_DATE = re.compile(r"\b20\d\d-[01]\d-[0-3]\d\b")
_PASSAGE = (
    "This folder holds notes that came later, and each of them is short. Read them "
    "when they help, leave them when they do not, and never repeat them in an answer. "
)
_SUMMARY = (
    "The conversation so far, in short: the task was read, the files that it names "
    "were looked at one after the other, some of them were changed, and the tests were "
    "run. Nothing is left open. Go on from here with the step that comes next."
)


@dataclass(frozen=True, slots=True)
class Edit:
    """A class of edits.

    Attributes:
        name: as reports show it.
        summary: one line.
        decide: returns the change for the first body. The change finds the same place
            in the longer bodies that follow. Raises LookupError if the body has no such
            place.
    """

    name: str
    summary: str
    decide: Callable[[Body], Change]


@dataclass(frozen=True, slots=True)
class EditedTrace:
    """A trace up to the last request that an edit has changed.

    Attributes:
        edit: the edit's name.
        changed: ids of the exchanges with an edited body.
    """

    trace: Trace
    edit: str
    changed: frozenset[int]


def apply_edit(trace: Trace, name: str, *, start: int | None = None) -> EditedTrace:
    """Edit the main loop of the session with the most requests.

    Recorded answers do not change.

    Args:
        trace: a recorded trace; not changed.
        name: a key of :data:`EDITS`.
        start: number of the loop's requests to leave unedited; half if None.

    Raises:
        TraceError: an unknown edit, or a trace without a place for it.
    """
    if name not in EDITS:
        raise TraceError(f"no edit {name!r}; choose from {', '.join(EDITS)}")
    loop = _main_loop(trace)
    start = len(loop) // 2 if start is None else start
    if not 0 < start < len(loop):
        raise TraceError(
            f"trace {trace.name}: {name} needs a session with a request before the "
            f"edit and one after it; its longest has {len(loop)}"
        )
    try:
        bodies = _edited(EDITS[name], loop[start:])
    except LookupError as error:
        raise TraceError(f"trace {trace.name}: {name}: {error.args[0]}") from None
    last = max(i for i, e in enumerate(trace.exchanges) if e.id in bodies)
    exchanges = tuple(
        replace(exchange, body=bodies.get(exchange.id, exchange.body))
        for exchange in trace.exchanges[: last + 1]
    )
    header = trace.header.model_copy(update={"edit": name})
    edited = replace(
        trace, name=f"{trace.name}~{name}", exchanges=exchanges, header=header
    )
    return EditedTrace(edited, name, frozenset(bodies))


def _main_loop(trace: Trace) -> list[Exchange]:
    own = [e for e in trace.inference if not e.agent and e.body is not None]
    if not own:
        return []
    most, _ = Counter(e.session for e in own).most_common(1)[0]
    return [e for e in own if e.session == most]


def _edited(edit: Edit, exchanges: list[Exchange]) -> dict[int, Body]:
    """Return the edited bodies by exchange; bodies without the place are left out."""
    first = deepcopy(exchanges[0].body)
    assert first is not None  # _main_loop returns only exchanges with a body
    change = edit.decide(first)
    bodies = {}
    for exchange in exchanges:
        body: Body = deepcopy(exchange.body or {})
        try:
            change(body)
        except LookupError:
            continue
        bodies[exchange.id] = body
    return bodies


# The system text


def _header(first: Body) -> Change:
    def change(body: Body) -> None:
        blocks = _system(body)
        if blocks and blocks[0]["text"].startswith(_ATTRIBUTION):
            head, equals, tail = blocks[0]["text"].partition("cc_version=")
            version = re.sub(r"^[^;]*", "9.9.999.f0e", tail)
            blocks[0]["text"] = head + equals + version
        else:
            line = f"{_ATTRIBUTION} cc_version=9.9.999.f0e; cc_entrypoint=cli;"
            blocks.insert(0, {"type": "text", "text": line})

    return change


def _date(first: Body) -> Change:
    """Change a date; without one, a line of the longest block becomes a date."""

    def change(body: Body) -> None:
        blocks = _system(body)
        for block in blocks:
            if _DATE.search(block["text"]):
                block["text"] = _DATE.sub("2031-07-19", block["text"], count=1)
                return
        longest = max(blocks, key=lambda block: len(block["text"]), default=None)
        if longest is None:
            raise LookupError("no system text in the request to be edited")
        lines = longest["text"].split("\n")
        # The non-empty line nearest to the middle.
        middle = max(
            range(len(lines)), key=lambda i: (bool(lines[i]), -abs(2 * i - len(lines)))
        )
        lines[middle] = "Today's date is 2031-07-19."
        longest["text"] = "\n".join(lines)

    change(deepcopy(first))
    return change


def _shift(tokens: int, first: Body) -> Change:
    def change(body: Body) -> None:
        blocks = _system(body)
        length = round(tokens * _CHARACTERS_A_TOKEN)
        passage = (_PASSAGE * (length // len(_PASSAGE) + 1))[:length]
        front = bool(blocks) and blocks[0]["text"].startswith(_ATTRIBUTION)
        blocks.insert(int(front), {"type": "text", "text": passage})

    return change


def _system(body: Body) -> list[Json]:
    """Return the system blocks as a list that can be changed."""
    system = body.get("system") or []
    blocks: list[Json]
    blocks = [{"type": "text", "text": system}] if isinstance(system, str) else system
    body["system"] = blocks
    return blocks


# The tools


def _tool_added(first: Body) -> Change:
    tools = _tools(first, 1)
    behind = tools[len(tools) // 2]["name"]

    def change(body: Body) -> None:
        _tools(body, 1).insert(_place(body, behind), _new_tool())

    return change


def _tool_removed(first: Body) -> Change:
    tools = _tools(first, 2)
    name = tools[len(tools) // 4]["name"]

    def change(body: Body) -> None:
        del _tools(body, 2)[_place(body, name)]

    return change


def _tools_reordered(first: Body) -> Change:
    tools = _tools(first, 2)
    sixth = len(tools) // 6
    names = tools[sixth]["name"], tools[-1 - sixth]["name"]

    def change(body: Body) -> None:
        early, late = (_place(body, name) for name in names)
        tools = _tools(body, 2)
        tools[early], tools[late] = tools[late], tools[early]

    return change


def _tools(body: Body, least: int) -> list[Json]:
    tools: list[Json] = body.get("tools") or []
    if len(tools) < least:
        raise LookupError(f"{len(tools)} tools in the request to be edited")
    return tools


def _place(body: Body, name: str) -> int:
    """Find a tool by name: tools loaded during the session move those after them."""
    names = [tool["name"] for tool in _tools(body, 1)]
    if name not in names:
        raise LookupError(f"tool {name} is no longer there")
    return names.index(name)


def _new_tool() -> Json:
    """Return a tool as a connecting tool server adds it: about 550 tokens."""
    words = ("path", "pattern", "limit", "encoding", "recursive", "format")
    about = {
        "type": "string",
        "description": "What is looked for, and how it is shown. " + _PASSAGE,
    }
    return {
        "name": "mcp__notes__find",
        "description": "Finds notes by what they say. " + _PASSAGE * 2,
        "input_schema": {
            "type": "object",
            "properties": dict.fromkeys(words, about),
            "required": ["pattern"],
            "additionalProperties": False,
        },
    }


# The messages


def _message_edited(first: Body) -> Change:
    messages = first["messages"]
    inner = range(1, len(messages) - 1)
    places = [i for i in inner if messages[i]["role"] == "user" and _texts(messages[i])]
    if not places:
        raise LookupError("no text between the user's first and last message")
    place = min(places, key=lambda i: abs(2 * i - len(messages)))
    lengths = [len(holder[key]) for holder, key in _texts(messages[place])]
    longest = lengths.index(max(lengths))
    history = _history(first, place)

    def change(body: Body) -> None:
        holder, key = _texts(history(body)[place])[longest]
        text = holder[key]
        half = text.find(" ", len(text) // 2)
        at = half if half >= 0 else len(text)
        holder[key] = f"{text[:at]} and please mind the notes{text[at:]}"

    return change


def _texts(message: Json) -> list[tuple[Json, str]]:
    """Return each text of a message as its holder and its key there."""
    if isinstance(message["content"], str):
        return [(message, "content")]
    found: list[tuple[Json, str]] = []
    for block in message["content"]:
        if block["type"] == "text":
            found.append((block, "text"))
        elif block["type"] == "tool_result" and "content" in block:
            found += _texts(block)
    return found


def _history_cut(first: Body) -> Change:
    start, stop = _oldest_rounds(first)
    history = _history(first, stop)

    def change(body: Body) -> None:
        del history(body)[start:stop]

    return change


def _compaction(first: Body) -> Change:
    _, stop = _oldest_rounds(first)
    history = _history(first, stop)

    def change(body: Body) -> None:
        history(body)[:stop] = [{"role": "user", "content": _SUMMARY}]

    return change


def _oldest_rounds(body: Body) -> tuple[int, int]:
    """Return the messages between two answers, so that calls keep their results."""
    answers = [i for i, m in enumerate(body["messages"]) if m["role"] == "assistant"]
    if len(answers) < 2:
        raise LookupError(f"{len(answers)} answers in the request to be edited")
    return answers[0], answers[len(answers) // 2]


def _block_moved(first: Body) -> Change:
    messages = first["messages"]
    texts = [i for i, b in enumerate(_blocks(messages[0])) if b["type"] == "text"]
    users = [i for i, m in enumerate(messages) if m["role"] == "user"]
    if len(texts) < 2 or len(users) < 2:
        raise LookupError(
            "not two blocks of text in the first message and a later one of the user's"
        )
    goal, end = users[-1], len(_blocks(messages[users[-1]]))
    history = _history(first, goal)

    def change(body: Body) -> None:
        messages = history(body)
        block = messages[0]["content"].pop(texts[0])
        later = _blocks(messages[goal])
        # Clients may append blocks to a message later.
        messages[goal]["content"] = [*later[:end], block, *later[end:]]

    return change


def _history(first: Body, length: int) -> Callable[[Body], list[Json]]:
    """Return a function that returns a body's messages while its history is unchanged.

    A client that compacts starts a new history in the same session. A place chosen in
    the old history does not exist there.
    """
    known = [_comparable(message) for message in first["messages"][:length]]

    def messages(body: Body) -> list[Json]:
        found: list[Json] = body["messages"]
        begins = [_comparable(message) for message in found[:length]] == known
        if not begins or len(found) <= length:
            raise LookupError("the history was replaced")
        return found

    return messages


def _comparable(message: Json) -> Json:
    """Return a message in one form, without the client's cache marks."""
    bare = [{**block, "cache_control": None} for block in _blocks(message)]
    return message["role"], bare


def _blocks(message: Json) -> list[Json]:
    content: str | list[Json] = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


#: Edits by name, in the order of reports.
EDITS: dict[str, Edit] = {
    edit.name: edit
    for edit in (
        Edit("header", "the attribution header changes", _header),
        Edit("date", "the date in the system text changes", _date),
        Edit("tool-added", "one more tool, in the middle of the list", _tool_added),
        Edit("tool-removed", "an early tool is gone", _tool_removed),
        Edit("tools-reordered", "an early and a late tool swap", _tools_reordered),
        Edit("message-edited", "words in a middle message", _message_edited),
        Edit("history-cut", "the older half of the rounds is cut", _history_cut),
        Edit("compaction", "the older half becomes a summary", _compaction),
        Edit("block-moved", "a block of the first message comes last", _block_moved),
        *(
            Edit(f"shift-{n}", f"{n} tokens before the system text", partial(_shift, n))
            for n in SHIFTS
        ),
    )
}

#: Groups of edits: the classes seen in real traffic, and one edit in many sizes.
EDIT_GROUPS: dict[str, tuple[str, ...]] = {
    "classes": tuple(name for name in EDITS if not name.startswith("shift-")),
    "shifts": tuple(f"shift-{n}" for n in SHIFTS),
}
