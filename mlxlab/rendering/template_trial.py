"""A trial of a chat template on short conversations, before any request.

A template that cannot serve any of them would fail with every request, so its model is
refused at once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from mlxlab.errors import ModelError
from mlxlab.prompt import Role
from mlxlab.rendering.chat_template import ChatTemplate
from mlxlab.rendering.conversation import Call, Conversation, Part, ToolPart, Turn
from mlxlab.rendering.template_process import TemplateRefusedError

__all__ = ["try_template"]

log = logging.getLogger(__name__)

#: Two texts that differ in length and in both ends.
_TEXTS = "Where is it?", "A file of 12 lines."
_SYSTEM = Part("system", Role.SYSTEM, "You help.")
_SCHEMA = {"type": "object", "properties": {"path": {"type": "string"}}}
_TOOL = ToolPart("tools[0]", "Read", "Reads a file.", _SCHEMA)
#: A message without system text and tools, and with them: some templates require one.
_FORMS: Sequence[tuple[tuple[Part, ...], tuple[ToolPart, ...]]] = (
    ((), ()),
    ((_SYSTEM,), ()),
    ((_SYSTEM,), (_TOOL,)),
)


def try_template(template: ChatTemplate, model: str) -> str:
    """Render a user's message, and the result of a tool.

    A template may refuse tools, or leave their results out: other requests are served.
    A line in the log says so.

    Args:
        template: of the model.
        model: its name.

    Returns:
        The text of the user's message.

    Raises:
        ModelError: the template refuses or ignores a user's message, prints nothing
            behind it, or exceeds a limit.
    """
    texts = [_render_begin(template, text) for text in _TEXTS]
    if texts[0] == texts[1]:
        raise _refusal(model, "leaves out the user's messages")
    if not _common_end(*texts).strip():  # it begins behind the message
        raise _refusal(
            model, "prints nothing after the last message, so no answer begins"
        )
    try:
        results = [template.render(_with_result(text)).text for text in _TEXTS]
    except TemplateRefusedError as error:
        log.warning("%s (a result of a tool)", error)
    else:
        if results[0] == results[1]:
            log.warning("model %s: its chat template leaves out tools' results", model)
    return texts[0]


def _render_begin(template: ChatTemplate, text: str) -> str:
    """Render a user's message in the first form that the template accepts."""
    user = Turn("user", (Part("messages[0]", Role.USER, text),))
    refusals: list[ModelError] = []
    for system, tools in _FORMS:
        try:
            form = Conversation(system, tools, (user,), thinking=False)
            return template.render(form).text
        except TemplateRefusedError as error:
            refusals.append(error)
    raise refusals[0]


def _with_result(text: str) -> Conversation:
    call = Call("messages[1].content[0]", _TOOL.name, {"path": "a.txt"})
    turns = (
        Turn("user", (Part("messages[0]", Role.USER, _TEXTS[0]),)),
        Turn("assistant", calls=(call,)),
        Turn("tool", (Part("messages[2].content[0]", Role.TOOL_RESULT, text),)),
    )
    return Conversation((_SYSTEM,), (_TOOL,), turns, thinking=False)


def _common_end(a: str, b: str) -> str:
    pairs = enumerate(zip(reversed(a), reversed(b), strict=False))
    length = next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))
    return a[len(a) - length :]


def _refusal(model: str, problem: str) -> ModelError:
    return ModelError(
        f"model {model}: its chat template {problem}; give a model whose "
        "chat_template.jinja renders conversations"
    )
