"""Grafts: system text, tools and first inline message of a recorded conversation."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count, groupby, takewhile
from operator import attrgetter
from typing import TypeAlias

from mlxlab.traces.filling.git_status import GIT_STATUS
from mlxlab.traces.prompt_size import text_size
from mlxlab.traces.schema import Json
from mlxlab.traces.trace import USER_AGENT, Exchange, Trace

__all__ = ["ATTRIBUTION", "Graft", "Scion", "Version", "client_version", "find_grafts"]

Version: TypeAlias = tuple[int, int, int]

#: Begins the system text of all clients unless they are told otherwise.
ATTRIBUTION = "x-anthropic-billing-header:"

_VERSION = re.compile(r"claude-cli/(\d{1,9})\.(\d{1,9})\.(\d{1,9})")
#: Bytes of the first made-up tool, about what a tool of the client has. Each has as
#: many more than the one before it: the API limits their number.
_TOOL_BYTES = 2500
#: Words that are one byte a character, also in JSON.
_WORD = re.compile(r"[A-Za-z0-9.,:;()'-]+")


def client_version(exchange: Exchange) -> Version | None:
    """Return the version of the client that sent a request."""
    found = _VERSION.match(exchange.headers.get(USER_AGENT, ""))
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


@dataclass(frozen=True, slots=True)
class Scion:
    """What one request gets.

    Attributes:
        system: blocks of text.
        tools: definitions.
        opening: the inline system messages behind the first message of the user.
    """

    system: tuple[Json, ...]
    tools: tuple[Json, ...]
    opening: tuple[Json, ...]

    @property
    def size(self) -> int:
        """Bytes of JSON, see :func:`mlxlab.traces.prompt_size.text_size`."""
        return sum(map(text_size, (*self.system, *self.tools, *self.opening)))


@dataclass(frozen=True)
class Graft:
    """A recorded conversation that stands for one whose system text is missing.

    Attributes:
        version: of its client; None if unknown.
        is_agent: whether a sub-agent held it.
        source: its trace, as the user knows it.
        scions: one per request, in order.
    """

    version: Version | None
    is_agent: bool
    source: str
    scions: tuple[Scion, ...]

    @cached_property
    def changes_attribution(self) -> bool:
        """Whether each request has another attribution block."""
        fronts = [str(_first_text(scion.system)) for scion in self.scions]
        differ = len(set(fronts)) == len(fronts) > 1
        return differ and fronts[0].startswith(ATTRIBUTION)

    def unopened(self) -> Graft:
        """Return it without inline system messages, for a history that has them."""
        return replace(self, scions=tuple(replace(s, opening=()) for s in self.scions))

    def sized(self, size: int) -> Graft:
        """Return a graft whose first part has this size, to a few bytes.

        All parts are changed alike, and equally for equal sizes: other sizes than the
        recorded ones are no changes. What clients differ by is mostly tools. So the
        last ones go first, and made-up ones fill the rest. Then inline messages go,
        and at last text is cut.
        """
        first = self.scions[0]
        if size < sum(map(text_size, (*first.system, *first.opening))):
            if first.opening:
                return self.unopened().sized(size)
            cut = [Scion(_cut(own.system, size), (), ()) for own in self.scions]
            return replace(self, scions=tuple(cut))
        kept, room = len(first.tools), size - first.size
        while room < 0:
            kept -= 1
            room += text_size(first.tools[kept])
        dropped = len(first.tools) - kept
        words = _WORD.findall(" ".join(_texts(first.system)))
        made_up = tuple(_make_tools(room, words or [GIT_STATUS]))
        changed = [
            replace(own, tools=(*own.tools[: len(own.tools) - dropped], *made_up))
            for own in self.scions
        ]
        return replace(self, scions=tuple(changed))

    def scion(self, number: int) -> Scion:
        """Return the part for request ``number`` of a conversation.

        Behind the recorded ones, the last is repeated.
        """
        return self.scions[min(number, len(self.scions) - 1)]


def find_grafts(trace: Trace, source: str) -> Iterator[Graft]:
    """Yield the conversations of a trace that have system text and tools.

    Args:
        trace: a recording, or a history of a newer client.
        source: names the trace for users.
    """
    is_history = trace.header.notes.get("imported") == "claude-code"
    whole = [e for e in trace.inference if _is_whole(e)]
    whole.sort(key=attrgetter("conversation"))
    for (_, agent), own in groupby(whole, attrgetter("conversation")):
        exchanges = list(own)
        scions = tuple(_scion(e, is_history) for e in exchanges)
        yield Graft(client_version(exchanges[0]), bool(agent), source, scions)


def _is_whole(exchange: Exchange) -> bool:
    """Return whether a request has all parts, in the forms that the client uses."""
    body = exchange.body or {}
    return all(
        isinstance(body.get(key), list)
        and body[key]
        and all(isinstance(item, dict) for item in body[key])
        for key in ("system", "tools", "messages")
    )


def _scion(exchange: Exchange, is_history: bool) -> Scion:
    body = exchange.body or {}
    inline = takewhile(lambda m: m.get("role") == "system", body["messages"][1:])
    system = [_without_status(block) for block in body["system"]]
    if is_history:  # which keeps all but this block
        named = ".".join(map(str, client_version(exchange) or (0, 0, 0)))
        front = f"{ATTRIBUTION} cc_version={named}.000; cc_entrypoint=cli;"
        system.insert(0, {"type": "text", "text": front})
    return Scion(tuple(system), tuple(body["tools"]), tuple(inline))


def _without_status(block: Json) -> Json:
    """Leave out the git status of the recording, which is another project's."""
    text = block.get("text")
    if not isinstance(text, str) or GIT_STATUS not in text:
        return block
    return {**block, "text": text.partition(GIT_STATUS)[0]}


def _first_text(blocks: Sequence[Json]) -> Json:
    return blocks[0].get("text") if blocks else ""


def _texts(blocks: Iterable[Json]) -> Iterator[str]:
    for block in blocks:
        if isinstance(text := block.get("text"), str):
            yield text


def _cut(blocks: Sequence[Json], size: int) -> tuple[Json, ...]:
    """Return the first blocks, the last of them cut, of at most ``size`` bytes."""
    kept: list[Json] = []
    for block in blocks:
        over = text_size([*kept, block]) - size
        if over <= 0:
            kept.append(block)
            continue
        text = block.get("text")
        if isinstance(text, str) and over < len(text):
            kept.append({**block, "text": text[: len(text) - over]})
        break
    return tuple(kept)


def _make_tools(size: int, words: Sequence[str]) -> Iterator[Json]:
    """Yield tools of ``size`` bytes in all; text does not repeat within them."""
    for number in count(1):
        tool = {
            "name": f"assumed_{number}",
            "description": "",
            "input_schema": {"type": "object"},
        }
        most = number * _TOOL_BYTES
        room = min(size, most) - text_size(tool)
        if room <= 0:
            return
        # The same text for the same number, whatever the size: prompts share it.
        drawn = random.Random(number).choices(words, k=most // 2)
        tool["description"] = " ".join(drawn)[:room].ljust(room, ".")
        yield tool
        size -= text_size(tool)
