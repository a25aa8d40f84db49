"""Rendering: a canonical conversation becomes a prompt, by the model's own template.

To tell which block every token came from, whatever the template does, the
conversation is rendered a second time with invisible marks around each block's
text. If taking the marks out gives the first rendering, they sit where the blocks
are. Knows nothing of caches and arrays.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray

from mlxlab.errors import ModelError, RequestError
from mlxlab.models.encoder import Encoded, join_encoded
from mlxlab.models.folder import ModelFolder
from mlxlab.prompt import Prompt, Role, Segment, Tokens, common_prefix
from mlxlab.rendering.chat_template import template_input
from mlxlab.rendering.context_edits import AppliedEdit, edit_context
from mlxlab.rendering.conversation import Conversation, Part, Turn, assistant_turns
from mlxlab.rendering.marks import Extent, Marks
from mlxlab.rendering.messages import MessagesRequest, parse_answer, parse_request
from mlxlab.rendering.rules import RULES, canonicalize
from mlxlab.rendering.thinking import Reasoning, Splice, find_splices, read_reasoning

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Renderer"]

log = logging.getLogger(__name__)

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_COARSE = "segments: coarse, the template does not print every block as it is"
_NO_INLINE = "inline system messages rendered as user turns: the template refuses them"
_MERGED = "consecutive messages of one role merged: the template refuses them"
_NOT_EXTENDED = "answers: the template does not append them to the prompt"


@dataclass(frozen=True, slots=True)
class Rendering:
    """A conversation as the template accepted it, and the text it gave.

    Attributes:
        conversation: without the turn that is continued.
        text: what the template gave.
        continued: the beginning of the answer, which the client wrote.
        reasoning: signed reasoning by label.
    """

    conversation: Conversation
    text: str
    continued: Part | None
    reasoning: Mapping[str, Reasoning]


class Renderer:
    """Renders requests for one model under one set of rules.

    Attributes:
        rules: names of the rules in force, in the order of RULES.
        notes: what could not be rendered as meant, and how often. Empty is good.

    Args:
        model: supplies tokenizer and template.
        rules: names out of :data:`mlxlab.rendering.rules.RULES`.
    """

    def __init__(self, model: ModelFolder, rules: Iterable[str] = tuple(RULES)) -> None:
        self.model = model
        self.rules = tuple(rules)
        self.notes: Counter[str] = Counter()

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.model.tokenizer

    def render(self, body: object, where: str = "request") -> Prompt:
        """The prompt of a request body, ready for an answer to be generated.

        Raises:
            RequestError: not a Messages request.
            ModelError: the template cannot render it.
        """
        request, _ = self.edited(parse_request(body, where), where)
        return self._prompt(self._rendering(request, where))

    def edited(
        self, request: MessagesRequest, where: str = "request"
    ) -> tuple[MessagesRequest, tuple[AppliedEdit, ...]]:
        """The request that is rendered in place of this one, and what was cleared.

        It asks for no more edits, so it is rendered as it is.

        Raises:
            RequestError: it cannot be rendered.
            ModelError: the template cannot render it.
        """
        # What is rendered only to be counted does not add to our notes.
        trial = Renderer(self.model, self.rules)
        trial.notes.update(self.notes)
        return edit_context(request, lambda r: len(trial.render(r, where)))

    def render_exchange(
        self, body: object, answer: object, where: str = "request"
    ) -> tuple[Prompt, Tokens]:
        """The prompt of a request, and the tokens of the answer that was given to it.

        Args:
            body: the request.
            answer: the response message; its content is what counts.
            where: named in errors.

        Returns:
            The prompt, and the answer's ids up to and including the end of turn, as
            they will stand in the next request.
        """
        request, _ = self.edited(parse_request(body, where), where)
        rendering = self._rendering(request, where)
        prompt = self._prompt(rendering)
        message = parse_answer(answer, where)
        turns = tuple(assistant_turns(len(request.messages), message))
        return prompt, self._answer(rendering, turns, prompt)

    def _rendering(self, request: MessagesRequest, where: str) -> Rendering:
        conversation, reasoning = read_reasoning(
            canonicalize(request, self.rules),
            self.tokenizer,
            self.model.tokenizer_digest,
        )
        conversation, continued = _continued(conversation, where)
        conversation, text = self._accepted(conversation)
        if _LONE_SURROGATE.search(text + (continued.text if continued else "")):
            raise RequestError(f"{where}: half a surrogate pair; give Unicode text")
        return Rendering(conversation, text, continued, reasoning)

    def _accepted(self, conversation: Conversation) -> tuple[Conversation, str]:
        """The conversation in the first form that the template renders."""
        given_up: list[str] = []
        for note, concede in _CONCESSIONS.items():
            try:
                text = self._apply(conversation)
                break
            except ModelError:
                conceded = concede(conversation)
                given_up += [note] if conceded != conversation else []
                conversation = conceded
        else:
            text = self._apply(conversation)
        for note in given_up:
            self._note(note)
        return conversation, text

    def _prompt(self, rendering: Rendering) -> Prompt:
        extents = self._exact_extents(rendering.conversation, rendering.text)
        exact = extents is not None
        if extents is None:
            self._note(_COARSE)
            extents = self._coarse_extents(rendering)
        splices = find_splices(rendering.reasoning, extents, rendering.text)
        tokens, starts = self._encode(rendering.text, splices)
        segments = _segments(extents, starts)
        if rendering.continued:
            more, _ = self._encode(rendering.continued.text)
            part, start = rendering.continued, len(tokens)
            tokens = np.concatenate([tokens, more])
            segments += (Segment(part.label, part.role, start, len(tokens)),)
        return Prompt(tokens, segments, exact)

    def _exact_extents(
        self, conversation: Conversation, text: str, generation: bool = True
    ) -> tuple[Extent, ...] | None:
        marks = Marks()
        try:
            messages, tools = template_input(conversation, marks.open)
            marked = self._fill(messages, tools, conversation.thinking, generation)
        except ModelError:
            return None
        return marks.locate(marked, text)

    def _coarse_extents(self, rendering: Rendering) -> tuple[Extent, ...]:
        """One extent a turn, found by rendering ever longer conversations."""
        extents: list[Extent] = []
        turns = rendering.conversation.turns
        for n in range(1, len(turns) + 1):
            cut = replace(rendering.conversation, turns=turns[:n])
            try:
                text = self._apply(cut, generation=False)
            except ModelError:
                continue
            start = extents[-1].stop if extents else 0
            if len(text) > start and rendering.text.startswith(text):
                extents.append(
                    Extent(f"turns[{n - 1}]", Role.UNKNOWN, start, len(text))
                )
        return tuple(extents)

    def _answer(
        self, rendering: Rendering, turns: tuple[Turn, ...], prompt: Prompt
    ) -> Tokens:
        conversation = rendering.conversation
        answered, reasoning = read_reasoning(
            replace(conversation, turns=(*conversation.turns, *turns)),
            self.tokenizer,
            self.model.tokenizer_digest,
        )
        text = self._apply(answered, generation=False)
        reasoning = {**rendering.reasoning, **reasoning}
        extents = self._exact_extents(answered, text, generation=False) or ()
        ids, _ = self._encode(text, find_splices(reasoning, extents, text))
        if common_prefix(ids, prompt.tokens) < len(prompt):
            self._note(_NOT_EXTENDED)
            plain = "\n".join(p.text for turn in turns for p in turn.parts)
            return self._encode(plain + str(self.tokenizer.eos_token or ""))[0]
        answer = ids[len(prompt) :]
        ends = np.flatnonzero(answer == self.tokenizer.eos_token_id)
        return answer[: ends[-1] + 1] if len(ends) else answer

    def _encode(self, text: str, splices: Iterable[Splice] = ()) -> Encoded:
        """Ids of a text with splices in it, and the first character of each.

        Splices begin and end with tags, at which tokenizers cut anyway.
        """
        pieces: list[Encoded] = []
        position = 0
        for splice in splices:
            pieces.append(self._cut(text, position, splice.start))
            pieces.append((splice.tokens, splice.starts))
            position = splice.stop
        pieces.append(self._cut(text, position, len(text)))
        return join_encoded(pieces)

    def _cut(self, text: str, start: int, stop: int) -> Encoded:
        ids, starts = self.model.encoder.encode(text[start:stop])
        return ids, starts + start

    def _apply(self, conversation: Conversation, generation: bool = True) -> str:
        messages, tools = template_input(conversation)
        return self._fill(messages, tools, conversation.thinking, generation)

    def _fill(
        self,
        messages: list[dict[str, Any]],
        tools: list[Any],
        thinking: bool,
        generation: bool = True,
    ) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                messages,
                tools=tools or None,
                tokenize=False,
                add_generation_prompt=generation,
                enable_thinking=thinking,
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise ModelError(
                f"model {self.model.name}: its chat template cannot render the "
                f"request: {error}"
            ) from error
        return str(text)

    def _note(self, note: str) -> None:
        if note not in self.notes:
            log.warning("model %s: %s", self.model.name, note)
        self.notes[note] += 1


def _continued(
    conversation: Conversation, where: str
) -> tuple[Conversation, Part | None]:
    """Take off a last assistant message, which the answer is to go on from."""
    last = conversation.turns[-1] if conversation.turns else None
    if last is None or last.role != "assistant":
        return conversation, None
    if last.calls or last.reasoning:
        raise RequestError(
            f"{where}: messages: the last one is the assistant's and not text only; "
            "give the results of its calls"
        )
    text = conversation.separator.join(part.text for part in last.parts)
    label = last.parts[0].label if last.parts else "continued"
    # An answer that has begun with text does not go back to reasoning.
    rest = replace(conversation, turns=conversation.turns[:-1], thinking=False)
    return rest, Part(label, Role.ASSISTANT, text) if text else None


def _inline_system_as_user(conversation: Conversation) -> Conversation:
    turns = (
        replace(turn, role="user") if turn.role == "system" else turn
        for turn in conversation.turns
    )
    return replace(conversation, turns=tuple(turns))


def _merged(conversation: Conversation) -> Conversation:
    turns: list[Turn] = []
    for turn in conversation.turns:
        if turns and turn.role == turns[-1].role and turn.role != "tool":
            before = turns.pop()
            turn = replace(
                before,
                parts=before.parts + turn.parts,
                reasoning=before.reasoning or turn.reasoning,
                calls=before.calls + turn.calls,
            )
        turns.append(turn)
    return replace(conversation, turns=tuple(turns))


#: What is given up, in order, for a template that refuses a conversation.
_CONCESSIONS = {_NO_INLINE: _inline_system_as_user, _MERGED: _merged}


def _segments(
    extents: tuple[Extent, ...], starts: NDArray[np.int64]
) -> tuple[Segment, ...]:
    """Cover all tokens: a token belongs to the block that its first character is in.

    Args:
        extents: in order, without overlap.
        starts: first character of every token.
    """
    pieces: list[tuple[str, Role, int]] = []
    position = 0
    for extent in extents:
        if extent.start > position:
            pieces.append(("template", Role.TEMPLATE, position))
        pieces.append((extent.label, extent.role, extent.start))
        position = extent.stop
    pieces.append(("generation", Role.GENERATION, position))
    edges = [*np.searchsorted(starts, [p[2] for p in pieces]).tolist(), len(starts)]
    return tuple(
        Segment(label, role, start, stop)
        for (label, role, _), start, stop in zip(pieces, edges, edges[1:], strict=False)
        if stop > start
    )
