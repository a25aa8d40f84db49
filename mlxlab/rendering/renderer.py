"""The renderer: takes a Messages request through all steps to a prompt.

Each step is a module, and no step calls an earlier one::

    MessagesRequest   context_edits   the edits that the client asks for
    MessagesRequest   rules           moved and dropped parts, by the rules in force
    Conversation      thinking        the ids in signatures
    Conversation      chat_template   the model's template
    TemplateText      extents         which characters came from which block
    Layout            encoding        ids and segments
    Prompt
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from mlxlab.errors import RequestError
from mlxlab.models.folder import ModelFolder
from mlxlab.prompt import Prompt, Tokens, common_prefix
from mlxlab.rendering.chat_template import ChatTemplate, TemplateText
from mlxlab.rendering.context_edits import AppliedEdit, edit_context
from mlxlab.rendering.conversation import Turn, assistant_turns, split_begun
from mlxlab.rendering.encoding import encode_prompt, encode_text
from mlxlab.rendering.extents import Layout, find_marked, locate_blocks
from mlxlab.rendering.messages import MessagesRequest, parse_answer, parse_request
from mlxlab.rendering.rules import DEFAULT_RULES, canonicalize
from mlxlab.rendering.template_trial import try_template
from mlxlab.rendering.thinking import SignedThinking, find_splices, read_thinking

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Renderer", "Rendering"]

log = logging.getLogger(__name__)

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_NOT_EXTENDED = "answers: the template does not append them to the prompt"


@dataclass(frozen=True, slots=True)
class Rendering:
    """A request and the results of its steps.

    Attributes:
        request: after its context edits; it asks for no more of them.
        edits: the edits that were made.
        template_text: the text of the template, and the conversation in it.
        signed: signed thinking by label.
        prompt: ready for an answer to be generated.
    """

    request: MessagesRequest
    edits: tuple[AppliedEdit, ...]
    template_text: TemplateText
    signed: Mapping[str, SignedThinking]
    prompt: Prompt


class Renderer:
    """Renders requests for one model under one set of rules.

    Attributes:
        model: supplies tokenizer and template.
        rules: names of the rules in force, in the order of RULES.
        notes: deviations from the exact rendering, and how often each happened.

    Args:
        model: supplies tokenizer and template.
        rules: names, see :func:`mlxlab.rendering.rules.find_rule`.
        most: long texts are encoded only up to this number of tokens.

    Raises:
        ModelError: the model has no usable tokenizer, or its template fails a trial.
    """

    def __init__(
        self,
        model: ModelFolder,
        rules: Iterable[str] = DEFAULT_RULES,
        most: int | None = None,
    ) -> None:
        self.model = model
        self._template = ChatTemplate(model)  # first: it starts a process
        self._encoder = model.encoder if most is None else model.encoder.limited(most)
        text = try_template(self._template, model.name)
        model.require_ids(self._encoder.encode(text)[0])
        self.rules = tuple(rules)
        self.notes: Counter[str] = Counter()

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return self.model.tokenizer

    def render(self, body: object, where: str = "request") -> Prompt:
        """Return the prompt of a request body.

        Args:
            body: the JSON value, or a request that was parsed already.
            where: names the request in errors.

        Raises:
            RequestError: ``body`` is not a Messages request.
            ModelError: the template cannot render it.
        """
        return self.render_request(body, where).prompt

    def render_request(self, body: object, where: str = "request") -> Rendering:
        """Take a request body through all steps.

        The template renders it once; for a request with context edits, once more for
        each prompt that has to be counted.

        Args:
            body: the JSON value, or a request that was parsed already.
            where: names the request in errors.

        Raises:
            RequestError: ``body`` is not a Messages request.
            ModelError: the template cannot render it.
        """
        asked = parse_request(body, where)
        request, edits = edit_context(asked, lambda tried: self._count(tried, where))
        rendered, signed = self._fill(request, where)
        layout = locate_blocks(self._template, rendered)
        prompt = self._encode(rendered, signed, layout)
        # Without an answer, the cache is filled for later requests.
        prompt = replace(prompt, pinned=request.max_tokens == 0)
        self._note(*rendered.notes, *layout.notes)
        return Rendering(request, edits, rendered, signed, prompt)

    def render_exchange(
        self, body: object, answer: object, where: str = "request"
    ) -> tuple[Prompt, Tokens]:
        """Return the prompt of a request and the tokens of its answer.

        Args:
            body: the request.
            answer: the response message, of which only the content is read.
            where: names the request in errors.

        Returns:
            The prompt; and the answer's int32 ids up to and including the end of turn,
            as the next request will contain them.

        Raises:
            RequestError: one of the two is not what the Messages API defines.
            ModelError: the template cannot render them.
        """
        rendering = self.render_request(body, where)
        message = parse_answer(answer, where)
        turns = assistant_turns(len(rendering.request.messages), message)
        ids = self._encode_answer(rendering, tuple(turns))
        self.model.require_ids(ids)
        return rendering.prompt, ids

    def _count(self, request: MessagesRequest, where: str) -> int:
        """Count the tokens of a request's prompt."""
        rendered, signed = self._fill(request, where)
        # The number of tokens depends on where blocks are only if ids are put there.
        layout = locate_blocks(self._template, rendered) if signed else Layout()
        return len(self._encode(rendered, signed, layout))

    def _fill(
        self, request: MessagesRequest, where: str
    ) -> tuple[TemplateText, Mapping[str, SignedThinking]]:
        conversation = split_begun(canonicalize(request, self.rules), where)
        conversation, signed = read_thinking(conversation, self.model)
        rendered = self._template.render(conversation)
        begun = conversation.begun.text if conversation.begun else ""
        if _LONE_SURROGATE.search(rendered.text + begun):
            raise RequestError(f"{where}: half a surrogate pair; give Unicode text")
        return rendered, signed

    def _encode(
        self,
        rendered: TemplateText,
        signed: Mapping[str, SignedThinking],
        layout: Layout,
    ) -> Prompt:
        splices = find_splices(signed, layout.extents, rendered.text)
        prompt = encode_prompt(self._encoder, rendered, layout, splices)
        self.model.require_ids(prompt.tokens)
        return prompt

    def _encode_answer(self, rendering: Rendering, turns: tuple[Turn, ...]) -> Tokens:
        conversation, prompt = rendering.template_text.conversation, rendering.prompt
        answer, signed = read_thinking(replace(conversation, turns=turns), self.model)
        whole = replace(conversation, turns=(*conversation.turns, *answer.turns))
        text = self._template.fill(whole, generation=False)
        extents = find_marked(self._template, whole, text, generation=False) or ()
        splices = find_splices({**rendering.signed, **signed}, extents, text)
        ids, _ = encode_text(self._encoder, text, splices)
        if common_prefix(ids, prompt.tokens) < len(prompt):
            self._note(_NOT_EXTENDED)
            return self._encode_plainly(turns)
        ids = ids[len(prompt) :]
        ends = np.flatnonzero(ids == self.tokenizer.eos_token_id)
        return ids[: ends[-1] + 1] if len(ends) else ids

    def _encode_plainly(self, turns: tuple[Turn, ...]) -> Tokens:
        text = "\n".join(part.text for turn in turns for part in turn.parts)
        return self._encoder.encode(text + str(self.tokenizer.eos_token or ""))[0]

    def _note(self, *notes: str) -> None:
        for note in notes:
            if note not in self.notes:
                log.warning("model %s: %s", self.model.name, note)
            self.notes[note] += 1
