"""Converts the worker's items to events of the Messages API.

One block is open at a time, indexes rise, and the usage is complete from the first
event on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from uuid import uuid4

from mlxlab.decoding import (
    CallEnd,
    CallInput,
    CallStart,
    Event,
    Stopped,
    Text,
    Thinking,
    ThinkingEnd,
)
from mlxlab.rendering.context_edits import AppliedEdit
from mlxlab.server.generation import Completed, Item, PromptPlanned

__all__ = ["AnswerWriter", "Usage", "WireEvent"]

WireEvent: TypeAlias = dict[str, Any]

PING: WireEvent = {"type": "ping"}


@dataclass(frozen=True, slots=True)
class Usage:
    """Prompt tokens in three parts: restored, computed and kept, only computed."""

    cache_read: int
    cache_creation: int
    input: int

    @classmethod
    def of(cls, planned: PromptPlanned) -> Usage:
        """Return disjoint counts that add up to the prompt."""
        reused = planned.plan.reused
        created = max(0, planned.kept - reused)
        return cls(reused, created, planned.plan.length - reused - created)

    def wire(self, output: int) -> dict[str, Any]:
        """Return the API's usage object."""
        return {
            "input_tokens": self.input,
            "cache_creation_input_tokens": self.cache_creation,
            "cache_read_input_tokens": self.cache_read,
            "cache_creation": {
                "ephemeral_5m_input_tokens": self.cache_creation,
                "ephemeral_1h_input_tokens": 0,
            },
            "output_tokens": output,
            "service_tier": "standard",
        }


@dataclass(slots=True)
class AnswerWriter:
    """Writes the events of one answer.

    Attributes:
        model: the id that the client asked for.
        sign: returns the signature of thinking, given its generated ids.
        show_thinking: whether to send the text of thinking, or only its signature.
        edits: the applied context edits; None if the client asked for none.
        usage: known once the prompt is planned.
        stop_reason: known once the answer is complete.
        ids: the generated ids, known once the answer is complete.
    """

    model: str
    sign: Callable[[tuple[int, ...]], str]
    show_thinking: bool = True
    edits: tuple[AppliedEdit, ...] | None = None
    usage: Usage | None = None
    stop_reason: str | None = None
    ids: tuple[int, ...] = ()
    _index: int = field(default=0, repr=False)
    _open: str | None = field(default=None, repr=False)

    def write(self, item: Item) -> Iterator[WireEvent]:
        """Yield the events of an item."""
        match item:
            case PromptPlanned():
                self.usage = Usage.of(item)
                yield self._message_start(self.usage)
            case tuple():
                for event in item:
                    yield from self._write(event)
            case Completed():
                yield from self._finish(item)

    def _write(self, event: Event) -> Iterator[WireEvent]:
        match event:
            case Thinking(text):
                yield from self._block("thinking", {"thinking": "", "signature": ""})
                if self.show_thinking:
                    yield self._delta("thinking_delta", thinking=text)
            case ThinkingEnd(tokens):
                yield from self._block("thinking", {"thinking": "", "signature": ""})
                yield self._delta("signature_delta", signature=self.sign(tokens))
                yield from self._close()
            case Text(text):
                yield from self._block("text", {"text": ""})
                yield self._delta("text_delta", text=text)
            case CallStart(name):
                yield from self._close()
                call = {"id": f"toolu_{uuid4().hex[:24]}", "name": name, "input": {}}
                yield from self._block("tool_use", call)
            case CallInput(json):
                yield self._delta("input_json_delta", partial_json=json)
            case CallEnd():
                yield from self._close()
            case Stopped():
                pass

    def _message_start(self, usage: Usage) -> WireEvent:
        message: dict[str, Any] = {
            "id": f"msg_{uuid4().hex[:24]}",
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage.wire(0),
        }
        return {"type": "message_start", "message": message}

    def _finish(self, finished: Completed) -> Iterator[WireEvent]:
        yield from self._close()
        assert self.usage is not None
        self.stop_reason = finished.reason
        self.ids = finished.ids
        ending = {
            "stop_reason": finished.reason,
            "stop_sequence": finished.stop_sequence,
        }
        usage = self.usage.wire(len(finished.ids))
        last: WireEvent = {"type": "message_delta", "delta": ending, "usage": usage}
        if self.edits is not None:
            applied = [edit.wire() for edit in self.edits]
            last["context_management"] = {"applied_edits": applied}
        yield last
        yield {"type": "message_stop"}

    def _block(self, kind: str, blank: dict[str, Any]) -> Iterator[WireEvent]:
        """Open a block of this kind unless one is open."""
        if self._open == kind:
            return
        yield from self._close()
        self._open = kind
        yield {
            "type": "content_block_start",
            "index": self._index,
            "content_block": {"type": kind, **blank},
        }

    def _delta(self, kind: str, **value: str) -> WireEvent:
        delta = {"type": kind, **value}
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _close(self) -> Iterator[WireEvent]:
        if self._open is not None:
            yield {"type": "content_block_stop", "index": self._index}
            self._open = None
            self._index += 1
