"""Converts a request to a job: model, prompt, sampling and decoding.

It runs on one thread at a time, because tokenizers are not thread-safe. It touches no
array; the job makes its arrays on the worker.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np

from mlxlab.client.discovery import DEFAULT
from mlxlab.decoding import Decoder, Grammar
from mlxlab.engine import Barred, Engine, Forced, LogitsProcessor, Sampler
from mlxlab.engine.json_constraint import JsonConstraint, constraint_tokenizer
from mlxlab.errors import ModelError, RequestError
from mlxlab.models.folder import ModelFolder, find_model
from mlxlab.prompt import Prompt, Role, Tokens
from mlxlab.rendering.context_edits import AppliedEdit
from mlxlab.rendering.messages import Thinking, Tool
from mlxlab.rendering.renderer import Renderer
from mlxlab.rendering.rules import parse_rules
from mlxlab.rendering.thinking import sign
from mlxlab.server.aliases import Alias, Aliases
from mlxlab.server.generation import Job, StopReason
from mlxlab.server.sampling import (
    sampling_of,
    thinking_budget,
    thinking_room,
    thinking_sampler,
)
from mlxlab.server.schema import InferenceRequest, TokenCountRequest, check_supported
from mlxlab.traces.recording.script import Script

__all__ = ["EngineSource", "Preparation", "Prepared"]

EngineSource = Callable[[ModelFolder, str], Engine]
"""Returns the engine for a model and a strategy; called on the worker."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request, rendered for an alias's model.

    ``edits`` are the applied context edits; None if the client asked for none.
    ``thinking`` says whether the model must think; None leaves it to the template.
    """

    name: str
    alias: Alias
    folder: ModelFolder
    renderer: Renderer
    prompt: Prompt
    edits: tuple[AppliedEdit, ...] | None
    thinking: bool | None = None

    @property
    def generation(self) -> Tokens:
        """The prompt's tail, with which the template opens the answer.

        Empty if it does so on the line of the last message.
        """
        segments = reversed(self.prompt.segments)
        opened = (s.start for s in segments if s.role is Role.GENERATION)
        return self.prompt.tokens[next(opened, len(self.prompt)) :]


class Preparation:
    """Prepares requests under one set of aliases.

    Args:
        aliases: model ids to models and settings.
        script: answers that replace sampled ones, for tests and notebooks.
    """

    def __init__(self, aliases: Aliases, script: Script | None = None) -> None:
        self.aliases = aliases
        self.script = script
        # One object per model, so that tokenizers are loaded once.
        self._folder = cache(find_model)
        self._renderer = cache(self._make_renderer)
        self._grammar = cache(self._make_grammar)
        self._constraints = cache(
            lambda name: constraint_tokenizer(self._folder(name).tokenizer)
        )

    @property
    def folder(self) -> ModelFolder:
        """The default alias's model.

        Raises:
            ModelError: the model is missing.
        """
        return self._folder(self.aliases.default.model)

    def load(self, credential: str = "") -> None:
        """Load the default model's tokenizer, template and grammar, and try them.

        Args:
            credential: of the first client; see :meth:`render`.

        Raises:
            ModelError: one of them cannot serve any request.
        """
        messages = [{"role": "user", "content": "Hello."}]
        body = {"model": DEFAULT, "messages": messages}
        with suppress(RequestError):  # a template may require a system text
            self.render(TokenCountRequest.model_validate(body), credential)
        self._grammar(self.aliases.default.model)

    def render(self, request: TokenCountRequest, credential: str = "") -> Prepared:
        """Choose the model and render the prompt.

        Args:
            request: the parsed request.
            credential: of the client. Encoded texts are cached for each apart, because
                the time of a cached one reveals that somebody has sent it.

        Raises:
            UnknownModelError: no alias matches the model id.
            RequestError: the request uses a feature that is not supported.
            ModelError: the model is missing.
        """
        name, alias = self.aliases.resolve(request.model)
        check_supported(request, alias.model)
        renderer = self._renderer(alias.model, alias.rules, credential)
        asked = _with_thinking(request, alias)
        try:
            rendering = renderer.render_request(asked)
        except ModelError as error:
            # The template refuses this client's request; the model is fine.
            raise RequestError(str(error)) from error
        folder = self._folder(alias.model)
        edits = rendering.edits if request.context_management else None
        thinking = None if asked is request else asked.thinks
        return Prepared(
            name, alias, folder, renderer, rendering.prompt, edits, thinking
        )

    def job(
        self, request: InferenceRequest, prepared: Prepared, engines: EngineSource
    ) -> Job:
        """Return the job for the worker.

        Raises:
            RequestError: the prompt is too long, or a schema cannot be enforced.
        """
        folder, prompt = prepared.folder, prepared.prompt
        if len(prompt) > folder.window:
            raise RequestError(
                f"prompt is too long: {len(prompt)} tokens > {folder.window} maximum"
            )
        # The last id is never fed to the model, so it needs no room.
        room = folder.window - len(prompt) + 1
        exhausted: StopReason = "max_tokens"
        if room < request.max_tokens:
            exhausted = "model_context_window_exceeded"
        choice = request.tool_choice
        max_tokens = min(request.max_tokens, room)
        return Job(
            engine=partial(engines, folder, prepared.alias.strategy),
            prompt=prompt,
            decoder=self._decoder(request, prepared),
            sampler=self._sampler(request, prepared, max_tokens),
            processors=self._processors(request, prepared),
            stop=folder.end_ids,
            max_tokens=max_tokens,
            exhausted=exhausted,
            single_call=bool(choice and choice.disable_parallel_tool_use),
        )

    def sign(self, prepared: Prepared, ids: tuple[int, ...]) -> str:
        """Return the signature of thinking, with an opening tag from the prompt."""
        grammar = self._grammar(prepared.alias.model)
        tail = prepared.generation.tolist()
        if ids[-len(grammar.think_end_ids) :] != grammar.think_end_ids:
            ids = ()  # the tag is cut unlike its text, so the text must do
        if ids and grammar.opens_in_thinking(tail):
            start = len(tail) - 1 - tail[::-1].index(grammar.think_start_ids[0])
            ids = (*tail[start:], *ids)
        return sign(ids, prepared.folder.tokenizer_digest)

    def _make_renderer(self, model: str, rules: str, credential: str) -> Renderer:
        folder = self._folder(model)
        return Renderer(folder, parse_rules(rules), folder.window)

    def _make_grammar(self, model: str) -> Grammar:
        folder = self._folder(model)
        grammar = Grammar.of(folder)
        tags = [*grammar.think_start_ids, *grammar.think_end_ids]
        folder.require_ids(np.array(tags, dtype=np.int32))
        return grammar

    def _decoder(
        self, request: InferenceRequest, prepared: Prepared
    ) -> Callable[[], Decoder]:
        grammar = self._grammar(prepared.alias.model)
        return partial(
            Decoder,
            grammar if request.tools else replace(grammar, calls=None),
            thinking=grammar.opens_in_thinking(prepared.generation.tolist()),
            tools=[_function(tool) for tool in request.tools],
            stop=request.stop_sequences,
        )

    def _sampler(
        self, request: InferenceRequest, prepared: Prepared, max_tokens: int
    ) -> Callable[[], Sampler]:
        folder, alias = prepared.folder, prepared.alias
        sampler = sampling_of(request, alias.sampling, folder)
        if self.script:
            return partial(Forced, self._recited(request, prepared), sampler())
        grammar = self._grammar(alias.model)
        thinking = _with_thinking(request, alias).thinking
        if thinking and thinking.type != "disabled":
            sampler = thinking_sampler(
                sampler,
                grammar,
                folder,
                opened=grammar.opens_in_thinking(prepared.generation.tolist()),
                force=thinking.type == "enabled",
                budget=thinking_budget(request, alias.max_thinking_tokens, max_tokens),
            )
        return _chosen_tool(request, sampler, grammar, folder)

    def _recited(self, request: InferenceRequest, prepared: Prepared) -> list[int]:
        assert self.script
        body = request.model_dump(mode="json", by_alias=True)
        asked = _with_thinking(request, prepared.alias)
        message = self.script.answer(body)
        _, ids = prepared.renderer.render_exchange(asked, message)
        return [*ids.tolist(), prepared.folder.tokenizer.eos_token_id]

    def _processors(
        self, request: InferenceRequest, prepared: Prepared
    ) -> list[Callable[[], LogitsProcessor]]:
        config = request.output_config
        if not config or not config.format or self.script:
            return []
        # Compiled here, so that a schema that cannot be enforced is refused now.
        constraint = JsonConstraint(
            self._constraints(prepared.alias.model), config.format.schema_
        )
        return [constraint.fresh]


def _with_thinking(request: TokenCountRequest, alias: Alias) -> TokenCountRequest:
    """Return the request with the thinking that will really be done.

    An alias may decide. Answers that must begin with a call or with JSON cannot begin
    with thinking. Neither can answers that are too short for thinking and text.
    """
    choice, config = request.tool_choice, request.output_config
    forced = (choice and choice.type in {"any", "tool"}) or (config and config.format)
    # With 0 there is no answer: the cache is filled for a later answer, which may
    # think.
    short = request.max_tokens and not thinking_room(request.max_tokens)
    if forced or short or alias.thinking == "off":
        kind = "disabled"
    elif alias.thinking == "on" and not request.thinks:
        kind = "adaptive"
    else:
        return request
    if request.thinking and request.thinking.type == kind:
        return request
    return request.model_copy(update={"thinking": Thinking(type=kind)})


def _chosen_tool(
    request: InferenceRequest,
    make: Callable[[], Sampler],
    grammar: Grammar,
    folder: ModelFolder,
) -> Callable[[], Sampler]:
    choice, config = request.tool_choice, request.output_config
    if choice is None or choice.type == "auto":
        return make
    if config and config.format:
        return make  # a schema holds the whole answer, and has no calls in it
    name = choice.name if choice.type == "tool" else None
    try:
        opening = folder.encode(grammar.call_opening(name))
    except ModelError as error:
        raise RequestError(f"tool_choice: {error}") from None
    if choice.type == "none":
        return lambda: Barred(opening[:1], make())
    return lambda: Forced(opening, make())


def _function(tool: Tool) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.input_schema,
        },
    }
