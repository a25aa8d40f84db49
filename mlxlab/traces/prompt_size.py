"""Sizes of prompts: bytes of text, and tokens by the usage of answers.

Usage counts tokens of the vendor's tokenizer, which is not public. So text is measured
in bytes of JSON, and the bytes of a token are taken from requests that are complete.
Without any, they are taken from what the turns of conversations added, and without
those from a usual number.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any

from mlxlab.limits import USAGE_TOKENS

if TYPE_CHECKING:
    from mlxlab.traces.trace import Exchange

__all__ = [
    "PromptSize",
    "Scale",
    "find_scale",
    "is_bare",
    "measure_prompts",
    "stated_tokens",
    "text_size",
]

#: Parts of a body that are rendered.
_RENDERED = ("system", "tools", "messages")
#: Keys whose values are no text: images, signatures of thinking, cache markers.
_OPAQUE = frozenset({"data", "signature", "cache_control"})
_USAGE = (
    "input_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
)

#: Bytes of JSON that a token is assumed to have, and the least and most to believe.
_TOKEN_BYTES = 4.0
_BELIEVED = (1.5, 8.0)
#: Fewest tokens of a turn, and fewest turns, to measure a token's bytes by.
_TURN_TOKENS = 50
_TURNS = 8


@dataclass(frozen=True, slots=True)
class PromptSize:
    """The size of a request's prompt.

    Attributes:
        stated: tokens by the usage of its answer; 0 if there is none.
        size: bytes of JSON in its system text, tools and messages.
        is_bare: see :func:`is_bare`.
    """

    exchange: Exchange
    stated: int
    size: int
    is_bare: bool


@dataclass(frozen=True, slots=True)
class Scale:
    """Bytes of JSON that a token of the vendor's tokenizer has.

    Attributes:
        is_measured: whether the number comes from complete requests.
    """

    token_bytes: float
    is_measured: bool

    def tokens(self, size: float) -> int:
        """Return the tokens of a text of this many bytes."""
        return round(size / self.token_bytes)


def is_bare(exchange: Exchange) -> bool:
    """Return whether a request has messages, but neither system text nor tools."""
    body = exchange.body or {}
    messages = body.get("messages")
    if body.get("system") or body.get("tools") or not isinstance(messages, list):
        return False
    return bool(messages) and all(isinstance(m, dict) for m in messages)


def measure_prompts(exchanges: Iterable[Exchange]) -> list[PromptSize]:
    """Return the size of each request's prompt."""
    # Requests share messages, so each object is measured once.
    known: dict[int, int] = {}
    return [
        PromptSize(e, stated_tokens(e), _size(e.body or {}, known), is_bare(e))
        for e in exchanges
    ]


def find_scale(sizes: Sequence[PromptSize]) -> Scale:
    """Find the bytes of a token in complete requests, else in turns, else assume."""
    whole = [p.size / p.stated for p in sizes if p.stated and not p.is_bare]
    if whole and _is_believed(median(whole)):
        return Scale(median(whole), is_measured=True)
    turns = list(_turns(sizes))
    if len(turns) >= _TURNS and _is_believed(median(turns)):
        return Scale(median(turns), is_measured=False)
    return Scale(_TOKEN_BYTES, is_measured=False)


def _is_believed(token_bytes: float) -> bool:
    low, high = _BELIEVED
    return low <= token_bytes <= high


def _turns(sizes: Sequence[PromptSize]) -> Iterator[float]:
    """Yield the bytes of a token in what each turn adds to its conversation."""
    own: dict[tuple[str, str], list[PromptSize]] = {}
    for prompt in sizes:
        if prompt.stated and prompt.is_bare:
            own.setdefault(prompt.exchange.conversation, []).append(prompt)
    for prompts in own.values():
        for before, after in pairwise(prompts):
            size, tokens = after.size - before.size, after.stated - before.stated
            if tokens >= _TURN_TOKENS and size > 0:
                yield size / tokens


def stated_tokens(exchange: Exchange) -> int:
    """Return a prompt's tokens by the usage of its answer, 0 if it states none."""
    message = exchange.response.message if exchange.response else None
    usage = message.get("usage") if message else None
    if not isinstance(usage, dict):
        return 0
    counts = [usage.get(key) for key in _USAGE]
    whole = [n for n in counts if isinstance(n, int) and not isinstance(n, bool)]
    total = sum(n for n in whole if n > 0)
    return total if total <= USAGE_TOKENS else 0


def _size(body: Mapping[str, Any], known: dict[int, int]) -> int:
    size = 0
    for key in _RENDERED:
        value = body.get(key, [])
        for item in value if isinstance(value, list) else [value]:
            if id(item) not in known:
                known[id(item)] = text_size(item)
            size += known[id(item)]
    return size


def text_size(value: Any) -> int:
    """Return the bytes of a JSON value, without images and signatures."""
    match value:
        case dict():
            kept = [(key, item) for key, item in value.items() if key not in _OPAQUE]
            return 2 + sum(len(key) + 4 + text_size(item) for key, item in kept)
        case list() | tuple():
            return 1 + sum(1 + text_size(item) for item in value)
        case str():
            text = json.dumps(value, ensure_ascii=False)
            return len(text.encode(errors="surrogatepass"))
    return len(json.dumps(value))
