"""Turns an answer's ids into events: thinking, text, tool calls, stop sequences.

Importing this package loads no mlx; :meth:`Grammar.of` does.
"""

from mlxlab.decoding.decoder import Decoder
from mlxlab.decoding.events import (
    CallEnd,
    CallInput,
    CallStart,
    Event,
    Stopped,
    Text,
    Thinking,
    ThinkingEnd,
    join_pieces,
)
from mlxlab.decoding.grammar import Grammar
from mlxlab.decoding.watched import CallGrowth, Step, WatchedAnswer, watch

__all__ = [
    "CallEnd",
    "CallGrowth",
    "CallInput",
    "CallStart",
    "Decoder",
    "Event",
    "Grammar",
    "Step",
    "Stopped",
    "Text",
    "Thinking",
    "ThinkingEnd",
    "WatchedAnswer",
    "join_pieces",
    "watch",
]
