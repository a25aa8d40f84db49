"""Shows what a decoder makes of an answer, token by token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape

from mlxlab.decoding.calls import Tools
from mlxlab.decoding.decoder import Decoder
from mlxlab.decoding.events import CallEnd, CallInput, Event, join_pieces
from mlxlab.decoding.grammar import Grammar
from mlxlab.models.folder import BUNDLED, ModelFolder, find_model

__all__ = ["CallGrowth", "Step", "WatchedAnswer", "watch"]

_MONOSPACE = "text-align:left; font-family:monospace; white-space:pre-wrap"


@dataclass(frozen=True, slots=True)
class Step:
    """One generated token, or the end of the answer.

    Attributes:
        token: its id; None at the end of the answer.
        text: the text of the token by itself.
        written: the text that the answer grew by; a part of a character adds nothing.
        events: the events that are certain now.
    """

    token: int | None
    text: str
    written: str
    events: tuple[Event, ...]


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class WatchedAnswer:
    """The result of :func:`watch`: a table of tokens and their events.

    Attributes:
        steps: one per token, then one for the end of the answer.
    """

    steps: tuple[Step, ...]

    @property
    def tokens(self) -> list[int]:
        """The ids of the answer."""
        return [step.token for step in self.steps if step.token is not None]

    @property
    def events(self) -> list[Event]:
        """All events; adjacent pieces of one kind are joined."""
        return join_pieces(event for step in self.steps for event in step.events)

    @property
    def call(self) -> CallGrowth:
        """How the input of the first tool call grows; empty without a call."""
        return CallGrowth(tuple(_growth(self.steps)))

    def _rows(self) -> list[tuple[str, str]]:
        return [
            ("end" if step.token is None else repr(step.text), _lines(step.events))
            for step in self.steps
        ]

    def __repr__(self) -> str:
        rows = [("token", "events"), *self._rows()]
        width = max(len(token) for token, _ in rows)
        lines = (
            f"{token:{width}}  {events.replace(chr(10), chr(10) + ' ' * (width + 2))}"
            for token, events in rows
        )
        return "\n".join(line.rstrip() for line in lines)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td style='{_MONOSPACE}'>{escape(token)}</td>"
            f"<td style='{_MONOSPACE}'>{escape(events)}</td></tr>"
            for token, events in self._rows()
        )
        heads = "".join(
            f"<th style='text-align:left'>{head}</th>" for head in ("token", "events")
        )
        return f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class CallGrowth:
    """The input of a tool call while it is generated.

    Attributes:
        steps: one pair per token: the JSON that a client has by then, and the JSON that
            was generated and waits. The latter is empty for formats that do not write
            the input as JSON.
    """

    steps: tuple[tuple[str, str], ...]

    def __repr__(self) -> str:
        return "\n".join(f"{sent}\N{VERTICAL LINE}{wait}" for sent, wait in self.steps)

    def _repr_html_(self) -> str:
        lines = "\n".join(
            f"{escape(sent)}<mark>{escape(wait)}</mark>" for sent, wait in self.steps
        )
        return f"<pre>{lines}</pre>"


def watch(
    answer: str | Sequence[int],
    model: str | ModelFolder = BUNDLED,
    *,
    thinking: bool = False,
    tools: Tools = (),
    stop: Sequence[str] = (),
) -> WatchedAnswer:
    """Decode an answer and keep what each token led to.

    Args:
        answer: ids, or a text that the model's tokenizer encodes.
        model: name, folder or hub repository: its tokenizer and tags count. Weights
            are not loaded.
        thinking: whether the prompt left reasoning open.
        tools: function definitions as the chat template takes them.
        stop: sequences that end the answer.

    Raises:
        ModelError: the model or its tokenizer cannot be loaded.
    """
    folder, grammar = _load(model)
    tokenizer = folder.tokenizer
    ids = tokenizer.encode(answer) if isinstance(answer, str) else answer
    decoder = Decoder(grammar, thinking=thinking, tools=tools, stop=stop)
    text = grammar.detokenizer()
    steps = [
        Step(id, str(tokenizer.decode([id])), text.feed(id), tuple(decoder.feed(id)))
        for id in map(int, ids)
    ]
    steps.append(Step(None, "", text.finish(), tuple(decoder.finish())))
    return WatchedAnswer(tuple(steps))


def _load(model: str | ModelFolder) -> tuple[ModelFolder, Grammar]:
    if isinstance(model, str):
        return _load_by_name(model)
    return model, Grammar.of(model)


@lru_cache(maxsize=1)
def _load_by_name(model: str) -> tuple[ModelFolder, Grammar]:
    """Keep the last model, because loading a tokenizer takes a second."""
    folder = find_model(model)
    return folder, Grammar.of(folder)


def _growth(steps: Iterable[Step]) -> Iterator[tuple[str, str]]:
    """Yield the sent and the waiting input after each token of the first call."""
    own = _first_call(steps)
    pieces = [_input_of(step) for step in own]
    whole = "".join(pieces)
    if not whole:
        return
    before, found, _ = "".join(step.written for step in own).partition(whole)
    sent, text = "", ""
    for step, piece in zip(own, pieces, strict=True):
        sent, text = sent + piece, text + step.written
        written = text[len(before) :][: len(whole)] if found else ""
        if sent or written:
            yield sent, written[len(sent) :]


def _first_call(steps: Iterable[Step]) -> list[Step]:
    """Return the steps up to the end of the first call; none if there is no call."""
    own: list[Step] = []
    for step in steps:
        own.append(step)
        if any(isinstance(event, CallEnd) for event in step.events):
            return own
    return []


def _input_of(step: Step) -> str:
    return "".join(event.json for event in step.events if isinstance(event, CallInput))


def _lines(events: Iterable[Event]) -> str:
    return "\n".join(map(repr, events))
