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
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray

from mlxlab.canonical import RULES, canonicalize
from mlxlab.conversation import Conversation, Turn, assistant_turns
from mlxlab.errors import ModelError, RequestError
from mlxlab.marks import Extent, Marks
from mlxlab.messages import MessagesRequest, parse_answer, parse_request
from mlxlab.models import ModelFolder
from mlxlab.prompt import Prompt, Role, Segment, Tokens, common_prefix
from mlxlab.template_input import template_input

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Renderer"]

log = logging.getLogger(__name__)

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_COARSE = "segments: coarse, the template does not print every block as it is"
_NO_INLINE = "inline system messages rendered as user turns: the template refuses them"
_NOT_EXTENDED = "answers: the template does not append them to the prompt"


@dataclass(frozen=True, slots=True)
class Rendering:
    """A conversation as the template accepted it, and the text it gave."""

    conversation: Conversation
    text: str


class Renderer:
    """Renders requests for one model under one set of rules.

    Attributes:
        rules: names of the rules in force, in the order of RULES.
        notes: what could not be rendered as meant, and how often. Empty is good.

    Args:
        model: supplies tokenizer and template.
        rules: names out of :data:`mlxlab.canonical.RULES`.
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
        return self._prompt(self._rendering(parse_request(body, where), where))

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
        request = parse_request(body, where)
        rendering = self._rendering(request, where)
        prompt = self._prompt(rendering)
        message = parse_answer(answer, where)
        turns = tuple(assistant_turns(len(request.messages), message))
        return prompt, self._answer(rendering, turns, prompt)

    def _rendering(self, request: MessagesRequest, where: str) -> Rendering:
        conversation = canonicalize(request, self.rules)
        try:
            rendering = Rendering(conversation, self._apply(conversation))
        except ModelError:
            if not any(turn.role == "system" for turn in conversation.turns):
                raise
            rendering = self._without_inline_system(conversation)
        if _LONE_SURROGATE.search(rendering.text):
            raise RequestError(f"{where}: half a surrogate pair; give Unicode text")
        return rendering

    def _without_inline_system(self, conversation: Conversation) -> Rendering:
        as_user = tuple(
            replace(turn, role="user") if turn.role == "system" else turn
            for turn in conversation.turns
        )
        conversation = replace(conversation, turns=as_user)
        rendering = Rendering(conversation, self._apply(conversation))
        self._note(_NO_INLINE)
        return rendering

    def _prompt(self, rendering: Rendering) -> Prompt:
        encoding = self.tokenizer(
            rendering.text, add_special_tokens=False, return_offsets_mapping=True
        )
        tokens = np.asarray(encoding["input_ids"], dtype=np.int32)
        starts = np.asarray(encoding["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        extents = self._exact_extents(rendering)
        exact = extents is not None
        if extents is None:
            self._note(_COARSE)
            extents = self._coarse_extents(rendering)
        return Prompt(tokens, _segments(extents, starts[:, 0]), exact)

    def _exact_extents(self, rendering: Rendering) -> tuple[Extent, ...] | None:
        marks = Marks()
        try:
            messages, tools = template_input(rendering.conversation, marks.open)
            marked = self._fill(messages, tools, rendering.conversation.thinking)
        except ModelError:
            return None
        return marks.locate(marked, rendering.text)

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
        answered = replace(conversation, turns=(*conversation.turns, *turns))
        text = self._apply(answered, generation=False)
        ids = self._encode(text)
        if common_prefix(ids, prompt.tokens) < len(prompt):
            self._note(_NOT_EXTENDED)
            plain = "\n".join(p.text for turn in turns for p in turn.parts)
            return self._encode(plain + str(self.tokenizer.eos_token or ""))
        answer = ids[len(prompt) :]
        ends = np.flatnonzero(answer == self.tokenizer.eos_token_id)
        return answer[: ends[-1] + 1] if len(ends) else answer

    def _encode(self, text: str) -> Tokens:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return np.asarray(ids, dtype=np.int32)

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
