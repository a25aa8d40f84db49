"""Finds the earlier request that a prompt is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlxlab.analysis.misses.horizon import ENDLESS, Horizon
from mlxlab.prompt import STATIC_ROLES, Prompt, Role, Tokens, common_prefix
from mlxlab.replay.requests import RenderedRequest

__all__ = ["Predecessor", "PredecessorIndex", "grams"]

_GRAM = 6
"""Length of the token runs that count as equal text at any position."""
_RECENT = 6
"""Most earlier requests of its session that a request is compared with."""
_OTHERS = 64
"""Most other sessions that a new session is compared with, the latest ones."""
_TIE = 0.02
"""Shares of known text that differ by less count as equal; the later request wins."""
_SAME_KIND = 0.5
"""Least share of known system text at which a new session resembles another."""

_MULTIPLIERS = np.array([pow(1_000_003, i, 1 << 64) for i in range(_GRAM)], np.uint64)

Grams: TypeAlias = NDArray[np.uint64]


def grams(tokens: Tokens) -> Grams:
    """Hash every run of ``_GRAM`` tokens, shape ``[n - _GRAM + 1]``."""
    if len(tokens) < _GRAM:
        return np.empty(0, np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(tokens, _GRAM)
    hashes: Grams = windows.astype(np.uint64) @ _MULTIPLIERS
    return hashes


# Without slots, so that cached_property computes the hashes once.
@dataclass(frozen=True, eq=False)
class Predecessor:
    """An earlier request and the tokens in memory right after it.

    Attributes:
        number: number of requests before it.
        computed: its prompt, and the computed part of its answer.
    """

    number: int
    request: RenderedRequest

    @property
    def tokens(self) -> int:
        """Tokens of its prompt and answer."""
        return len(self.request.prompt) + len(self.request.answer)

    @cached_property
    def computed(self) -> Prompt:
        return self.request.computed

    @cached_property
    def grams(self) -> Grams:
        return np.unique(grams(self.computed.tokens))


class PredecessorIndex:
    """The requests so far, by session.

    A request is compared with the latest one of its session and agent. If several
    conversations share a session id, the one with the most common text is chosen. The
    first request of a session is compared with one of another session that shares its
    system text.

    Args:
        horizon: how many sessions and tokens are remembered.
    """

    def __init__(self, horizon: Horizon = ENDLESS) -> None:
        self._sessions: dict[tuple[str, bool], list[Predecessor]] = {}  # latest last
        self._horizon = horizon
        self._count = 0

    def add(self, request: RenderedRequest) -> Predecessor:
        """Add an answered request."""
        predecessor = Predecessor(self._count, request)
        self._count += 1
        own = self._sessions.pop(_key(request), [])  # re-added as the latest
        recent = own[1:][-_RECENT + 2 :]
        self._sessions[_key(request)] = [*own[:1], *recent, predecessor]
        lengths = [sum(p.tokens for p in own) for own in self._sessions.values()]
        for key in list(self._sessions)[: self._horizon.beyond(lengths)]:
            del self._sessions[key]
        return predecessor

    def find(self, request: RenderedRequest) -> Predecessor | None:
        """Return the request to compare with; None if no earlier one resembles it."""
        own = self._sessions.get(_key(request), [])
        if not own:
            return self._akin(request)
        shared = common_prefix(own[-1].computed.tokens, request.prompt.tokens)
        if shared >= len(own[-1].request.prompt):
            return own[-1]
        return _closest(own, request.prompt)[-1]

    def _akin(self, request: RenderedRequest) -> Predecessor | None:
        """Return a request of another session; each session's first and last are tried.

        The system text decides, because agents with other instructions may have equal
        tools.
        """
        system = np.unique(grams(_system_text(request.prompt)))
        known = [
            predecessor
            for own in list(self._sessions.values())[-_OTHERS:]
            for predecessor in dict.fromkeys((own[0], own[-1]))
            if not len(system) or _share(system, predecessor) >= _SAME_KIND
        ]
        if not known:
            return None
        tokens, own = request.prompt.tokens, np.unique(grams(request.prompt.tokens))

        def likeness(predecessor: Predecessor) -> tuple[int, float, int]:
            shared = common_prefix(predecessor.computed.tokens, tokens)
            return shared, _share(own, predecessor), predecessor.number

        return max(_closest(known, request.prompt), key=likeness)


def _key(request: RenderedRequest) -> tuple[str, bool]:
    return request.session, request.use.side


def _closest(predecessors: list[Predecessor], prompt: Prompt) -> list[Predecessor]:
    """Return the predecessors with the most known text, ties included."""
    own = np.unique(grams(prompt.tokens))
    shares = [_share(own, predecessor) for predecessor in predecessors]
    most = max(shares)
    return [
        predecessor
        for predecessor, share in zip(predecessors, shares, strict=True)
        if share >= most - _TIE
    ]


def _share(own: Grams, predecessor: Predecessor) -> float:
    """Return the share of ``own`` that ``predecessor`` contains."""
    return float(np.isin(own, predecessor.grams).mean()) if len(own) else 0.0


def _system_text(prompt: Prompt) -> Tokens:
    """Return the system text if blocks are known, else all before the messages."""
    for roles in ({Role.SYSTEM}, STATIC_ROLES):
        found = [s for s in prompt.segments if s.role in roles]
        if found and prompt.exact_segments:
            return np.concatenate([prompt.tokens[s.start : s.stop] for s in found])
    return prompt.tokens
