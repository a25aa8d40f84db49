"""From a conversation to text: a model's Hugging Face chat template."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from mlxlab.errors import ModelError
from mlxlab.models.folder import ModelFolder
from mlxlab.prompt import Role
from mlxlab.rendering.conversation import Call, Conversation, Part, ToolPart, Turn
from mlxlab.rendering.marks import wrap, wrap_descriptions, wrap_strings
from mlxlab.rendering.template_process import TEMPLATE_PROCESS, TemplateRefusedError

__all__ = ["ChatTemplate", "TemplateText", "template_input"]

OpenMark: TypeAlias = Callable[[str, Role], str]

_NO_INLINE = "inline system messages rendered as user turns: the template refuses them"
_MERGED = "consecutive messages of one role merged: the template refuses them"


@dataclass(frozen=True, slots=True)
class TemplateText:
    """The text that a template made of a conversation.

    Attributes:
        conversation: in the form that the template accepted.
        text: from the first character to the opening of the answer.
        notes: how that form differs from the conversation that was to be rendered.
    """

    conversation: Conversation
    text: str
    notes: tuple[str, ...] = ()


class ChatTemplate:
    """The chat template of one model.

    Args:
        model: its tokenizer holds the template.
    """

    def __init__(self, model: ModelFolder) -> None:
        self._model = model
        TEMPLATE_PROCESS.start()  # while the tokenizer is read

    def render(self, conversation: Conversation) -> TemplateText:
        """Render a conversation in the first form that the template accepts.

        Raises:
            ModelError: the template accepts none.
        """
        notes: tuple[str, ...] = ()
        for note, simplify in _SIMPLER_FORMS.items():
            try:
                return TemplateText(conversation, self.fill(conversation), notes)
            except TemplateRefusedError:
                simpler = simplify(conversation)
                notes += (note,) if simpler != conversation else ()
                conversation = simpler
        return TemplateText(conversation, self.fill(conversation), notes)

    def fill(
        self,
        conversation: Conversation,
        open_mark: OpenMark | None = None,
        generation: bool = True,
    ) -> str:
        """Return the text of a conversation as it is.

        Args:
            conversation: passed to the template.
            open_mark: marks the blocks, see :func:`template_input`.
            generation: whether the text ends with the opening of the answer.

        Raises:
            TemplateRefusedError: the template refuses the conversation.
            ModelError: it exceeds a limit.
        """
        messages, tools = template_input(conversation, open_mark or _no_mark)
        try:
            return self._render(
                messages,
                tools or None,
                add_generation_prompt=generation,
                enable_thinking=conversation.thinking,
            )
        except ModelError as error:
            raise type(error)(
                f"model {self._model.name}: its chat template cannot render the "
                f"request: {error}"
            ) from None

    def _render(
        self, messages: list[dict[str, Any]], tools: list[Any] | None, **options: Any
    ) -> str:
        """Do what ``apply_chat_template`` of transformers does, in another process."""
        tokenizer = self._model.tokenizer
        if not messages:
            raise TemplateRefusedError("it has no message to answer")
        return TEMPLATE_PROCESS.render(
            conversations=[messages],
            tools=tools,
            chat_template=tokenizer.get_chat_template(tools=tools),
            **{**tokenizer.special_tokens_map, **options},
        )


def _no_mark(label: str, role: Role) -> str:
    return ""


def template_input(
    conversation: Conversation, open_mark: OpenMark = _no_mark
) -> tuple[list[dict[str, Any]], list[Any]]:
    """Return messages and tools for ``apply_chat_template``.

    Args:
        conversation: to be rendered.
        open_mark: takes a block's label and role, returns the mark to put around the
            block's text.
    """
    turns = conversation.turns
    if conversation.system:
        turns = (Turn("system", conversation.system), *turns)
    messages = [_message(turn, conversation.separator, open_mark) for turn in turns]
    return messages, [_tool(tool, open_mark) for tool in conversation.tools]


def _message(turn: Turn, separator: str, open_mark: OpenMark) -> dict[str, Any]:
    message: dict[str, Any] = {"role": turn.role}
    if turn.thinking is not None:
        message["reasoning_content"] = _text(turn.thinking, open_mark)
    message["content"] = separator.join(_text(p, open_mark) for p in turn.parts)
    if turn.calls:
        message["tool_calls"] = [_call(call, open_mark) for call in turn.calls]
    return message


def _text(part: Part, open_mark: OpenMark) -> str:
    return wrap(open_mark(part.label, part.role), part.text)


def _call(call: Call, open_mark: OpenMark) -> dict[str, Any]:
    mark = open_mark(call.label, Role.ASSISTANT)
    function = {
        "name": wrap(mark, call.name),
        "arguments": wrap_strings(mark, dict(call.arguments)),
    }
    return {"type": "function", "function": function}


def _tool(tool: ToolPart, open_mark: OpenMark) -> dict[str, Any]:
    mark = open_mark(tool.label, Role.TOOLS)
    definition = wrap_descriptions(mark, tool.function)
    function = definition["function"]
    return {**definition, "function": {**function, "name": wrap(mark, tool.name)}}


def _inline_system_as_user(conversation: Conversation) -> Conversation:
    turns = (
        replace(turn, role="user") if turn.role == "system" else turn
        for turn in conversation.turns
    )
    return replace(conversation, turns=tuple(turns))


def _merge_turns(conversation: Conversation) -> Conversation:
    turns: list[Turn] = []
    for turn in conversation.turns:
        if turns and turn.role == turns[-1].role and turn.role != "tool":
            before = turns.pop()
            turn = replace(
                before,
                parts=before.parts + turn.parts,
                thinking=before.thinking or turn.thinking,
                calls=before.calls + turn.calls,
            )
        turns.append(turn)
    return replace(conversation, turns=tuple(turns))


#: Tried in order, each on top of the one before, while a template refuses.
_SIMPLER_FORMS = {_NO_INLINE: _inline_system_as_user, _MERGED: _merge_turns}
