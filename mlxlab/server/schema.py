"""Requests that the Messages endpoint accepts and refuses, beyond a trace's needs.

The API's objects are open: unknown keys are accepted and ignored. A key that would
change the answer and is not supported is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
)

from mlxlab.errors import RequestError
from mlxlab.limits import ANSWER_TOKENS, STOP_CHARACTERS, STOP_SEQUENCES
from mlxlab.rendering.messages import (
    Block,
    FirstErrorOnly,
    MessagesRequest,
    OtherBlock,
    OtherEdit,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from mlxlab.server.generation import StopReason

__all__ = [
    "Answer",
    "Effort",
    "ErrorBody",
    "Health",
    "InferenceRequest",
    "ModelInfo",
    "ModelList",
    "OutputConfig",
    "TokenCount",
    "TokenCountRequest",
    "ToolChoice",
    "check_supported",
]

_MIN_BUDGET = 1024
_THINKING = ("enabled", "adaptive", "disabled")

StopSequence = Annotated[
    str, StringConstraints(min_length=1, max_length=STOP_CHARACTERS)
]
Effort = Literal["low", "medium", "high", "xhigh", "max"]


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow")


class ToolChoice(_Open):
    """Whether a tool must be called, and which."""

    type: Literal["auto", "any", "tool", "none"] = "auto"
    name: str = ""
    disable_parallel_tool_use: bool = False


class OutputFormat(_Open):
    """A JSON schema that the answer has to follow."""

    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(_Open):
    """The effort of thinking, and the form of the answer."""

    effort: Effort | None = None
    format: OutputFormat | None = None


class TokenCountRequest(MessagesRequest):
    """A body of ``count_tokens``.

    It has all fields of an inference, so that both refuse the same.
    """

    tool_choice: ToolChoice | None = None
    output_config: OutputConfig | None = None
    max_tokens: Annotated[int, Field(ge=0, le=ANSWER_TOKENS)] | None = None
    stream: bool = False
    stop_sequences: Annotated[
        tuple[StopSequence, ...], Field(max_length=STOP_SEQUENCES), FirstErrorOnly()
    ] = ()
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None


class InferenceRequest(TokenCountRequest):
    """A body of ``messages``."""

    max_tokens: Annotated[int, Field(ge=0, le=ANSWER_TOKENS)]


class CacheCreation(BaseModel):
    """Tokens kept, by lifetime; here until other requests need the room."""

    ephemeral_5m_input_tokens: int
    ephemeral_1h_input_tokens: int


class AnswerUsage(BaseModel):
    """Tokens of prompt and answer; the three counts of the prompt are disjoint."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    cache_creation: CacheCreation
    output_tokens: int
    service_tier: Literal["standard"]


class Answer(BaseModel):
    """A message of the assistant; describes the sum of an answer's events."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[
        Annotated[TextBlock | ThinkingBlock | ToolUseBlock, Discriminator("type")]
    ]
    stop_reason: StopReason
    stop_sequence: str | None
    usage: AnswerUsage


class TokenCount(BaseModel):
    """Tokens of a prompt as it would be rendered.

    If the client asked for context edits, ``context_management`` has the count without
    them.
    """

    input_tokens: int
    context_management: dict[Literal["original_input_tokens"], int] | None = None


class ModelInfo(BaseModel):
    """A model id that requests may name."""

    id: str
    type: Literal["model"] = "model"
    display_name: str
    created_at: str


class ModelList(BaseModel):
    """All model ids, on one page."""

    data: list[ModelInfo]
    has_more: bool = False
    first_id: str | None
    last_id: str | None

    @classmethod
    def of(cls, models: Iterable[ModelInfo]) -> ModelList:
        data = list(models)
        ids = [model.id for model in data]
        return cls(
            data=data,
            first_id=ids[0] if ids else None,
            last_id=ids[-1] if ids else None,
        )


class Health(BaseModel):
    """The state of a server that answers."""

    status: Literal["ok"] = "ok"
    queue: int


class ErrorDetail(BaseModel):
    """The type and the message of an error."""

    type: str
    message: str


class ErrorBody(BaseModel):
    """The API's form of an error."""

    type: Literal["error"] = "error"
    error: ErrorDetail
    request_id: str


def check_supported(request: TokenCountRequest, model: str) -> None:
    """Refuse requests that would be answered wrongly.

    Args:
        request: the parsed request.
        model: named in the message.

    Raises:
        RequestError: the message names the key, its place and the accepted values.
    """
    extra = request.model_extra or {}
    for key in ("mcp_servers", "container"):
        if extra.get(key):
            raise RequestError(f"{key}: not supported; run the tools in the client")
    _check_tools(request)
    _check_blocks(request, model)
    _check_thinking(request)
    _check_edits(request)


def _check_edits(request: TokenCountRequest) -> None:
    management = request.context_management
    for i, edit in enumerate(management.edits if management else []):
        if isinstance(edit, OtherEdit):
            raise RequestError(
                f"context_management.edits.{i}.type: {edit.type!r} is not supported; "
                "give clear_tool_uses_20250919 or clear_thinking_20251015"
            )


def _check_tools(request: TokenCountRequest) -> None:
    for i, tool in enumerate(request.tools):
        kind = (tool.model_extra or {}).get("type") or "custom"
        if kind != "custom":
            raise RequestError(
                f"tools.{i}.type: {kind!r} would run on a server; give tools that the "
                "client runs, with an input_schema"
            )
    choice = request.tool_choice
    if choice is None:
        return
    names = [tool.name for tool in request.tools]
    if choice.type == "tool" and choice.name not in names:
        raise RequestError(
            f"tool_choice.name: no tool {choice.name!r}; given: {', '.join(names)}"
        )
    if choice.type in {"any", "tool"}:
        if not names:
            raise RequestError(f"tool_choice: {choice.type!r} needs tools")
        if request.thinking and request.thinking.type == "enabled":
            raise RequestError(
                f"tool_choice: {choice.type!r} cannot be combined with thinking; "
                "give auto or none"
            )
        if request.output_config and request.output_config.format:
            raise RequestError(
                f"tool_choice: {choice.type!r} cannot be combined with "
                "output_config.format; give auto or none"
            )


def _check_blocks(request: TokenCountRequest, model: str) -> None:
    for where, block in _blocks(request):
        if isinstance(block, OtherBlock):
            raise RequestError(
                f"{where}: model {model} reads text only, not {block.type!r}; give "
                "text, tool_use, tool_result or thinking blocks"
            )


def _blocks(request: TokenCountRequest) -> Iterator[tuple[str, Block]]:
    for k, message in enumerate(request.messages):
        for j, block in enumerate(message.blocks):
            at = f"messages.{k}.content.{j}"
            yield at, block
            if isinstance(block, ToolResultBlock) and isinstance(block.content, list):
                for i, inner in enumerate(block.content):
                    yield f"{at}.content.{i}", inner


def _check_thinking(request: TokenCountRequest) -> None:
    thinking = request.thinking
    if thinking is None:
        return
    if thinking.type not in _THINKING:
        raise RequestError(
            f"thinking.type: {thinking.type!r} is not one of {', '.join(_THINKING)}"
        )
    if thinking.type != "enabled":
        return
    budget = thinking.budget_tokens
    # A budget that max_tokens has no room for is cut, see thinking_budget.
    if budget is None or not _MIN_BUDGET <= budget <= ANSWER_TOKENS:
        raise RequestError(
            f"thinking.budget_tokens: {budget} is not accepted; give at least "
            f"{_MIN_BUDGET}, at most {ANSWER_TOKENS}; it is cut where max_tokens "
            "leaves less"
        )
