"""Sampling of an answer, by the settings of alias, client and model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mlx_lm.sample_utils import make_sampler

from mlxlab.decoding import Grammar
from mlxlab.engine import BoundedThinking, Forced, Sampler
from mlxlab.models.folder import ModelFolder
from mlxlab.server.schema import Effort, InferenceRequest

__all__ = [
    "sampling_of",
    "thinking_budget",
    "thinking_room",
    "thinking_sampler",
]

#: Most thinking ids for an adaptive request, by effort; higher effort has no limit.
_BUDGETS: Mapping[Effort, int] = {"low": 1024, "medium": 4096, "high": 16384}
#: Least ids that thinking leaves for its tags and the text after them.
_LEAST_REST = 8
#: Below this temperature or top_p only the likeliest id is left, and float32 would
#: leave none.
_LEAST = 1e-3


def sampling_of(
    request: InferenceRequest, alias: Mapping[str, float], folder: ModelFolder
) -> Callable[[], Sampler]:
    """Return a function that makes the requested sampler; greedy by default.

    The alias's settings override the client's, which are tuned for another model. Both
    override the model's own.
    """
    asked: dict[str, Any] = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
    }
    settings = {
        **folder.sampling,
        **{k: v for k, v in asked.items() if v is not None},
        **alias,
    }
    temperature, top_p = settings.get("temperature", 0.0), settings.get("top_p", 1.0)
    if min(temperature, top_p) < _LEAST:
        temperature = 0.0
    top_k = int(settings.get("top_k", 0))
    if top_k >= len(folder.tokenizer):
        top_k = 0  # mlx-lm refuses a top_k of the whole vocabulary

    def make() -> Sampler:
        sampler: Sampler = make_sampler(
            temp=temperature,
            top_p=top_p,
            min_p=settings.get("min_p", 0.0),
            top_k=top_k,
        )
        return sampler

    return make


def thinking_room(max_tokens: int) -> int:
    """Return the most ids of an answer that thinking may take, so that text follows.

    A quarter of the answer is reserved for text, at least :data:`_LEAST_REST` ids.

    Args:
        max_tokens: of the whole answer.

    Returns:
        0 if thinking and text do not both fit.
    """
    room = max_tokens - max(-(-max_tokens // 4), _LEAST_REST)
    return room if room > 1 else 0  # the first id is the line break after the tag


def thinking_budget(
    request: InferenceRequest, most: int | None, max_tokens: int | None = None
) -> int:
    """Return the most thinking ids that leave room for an answer.

    A client's budget that leaves too little room is cut, also below the minimum that
    the
    API accepts.

    Args:
        request: with its budget or effort.
        most: the alias's limit.
        max_tokens: of the answer, where the window leaves fewer than the request asks.
    """
    thinking = request.thinking
    if max_tokens is None:
        max_tokens = request.max_tokens
    if thinking is not None and thinking.budget_tokens is not None:
        asked: int | None = thinking.budget_tokens
    else:
        effort = request.output_config.effort if request.output_config else None
        asked = _BUDGETS.get(effort or "max")
    limits = [thinking_room(max_tokens), most, asked]
    return min(limit for limit in limits if limit is not None)


def thinking_sampler(
    make: Callable[[], Sampler],
    grammar: Grammar,
    folder: ModelFolder,
    *,
    opened: bool,
    force: bool,
    budget: int,
) -> Callable[[], Sampler]:
    """Wrap a sampler so that thinking opens if required, and closes in time.

    Args:
        make: makes the sampler.
        grammar: the model's grammar; without tags of one id nothing is wrapped.
        folder: the model.
        opened: whether the prompt ends inside thinking.
        force: whether the answer has to begin with thinking.
        budget: most ids between the tags.
    """
    if len(grammar.think_start_ids) != 1 or len(grammar.think_end_ids) != 1:
        return make
    # Templates put one newline after the opening tag and two after the closing tag.
    opening = [*grammar.think_start_ids, *folder.encode("\n")]
    closing = [*grammar.think_end_ids, *folder.encode("\n\n")]

    def wrapped() -> Sampler:
        sampler = make()
        if force and not opened:
            sampler = Forced(opening, sampler)
        return BoundedThinking(
            sampler,
            start=opening[0],
            closing=closing,
            stop=folder.end_ids,
            budget=budget,
            opened=opened,
        )

    return wrapped
