"""Pinned prefixes: what a strategy evicts last."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from mlxlab.prompt import Tokens, common_prefix

__all__ = ["Pins"]

log = logging.getLogger(__name__)


class Pins:
    """Sequences that a strategy touches at every commit, so that others go first.

    Args:
        most: tokens of all of them; the oldest ones make room.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._pinned: list[Tokens] = []  # oldest first

    def __iter__(self) -> Iterator[Tokens]:
        return iter(self._pinned)

    def add(self, tokens: Tokens) -> None:
        """Pin a sequence; it replaces those that it begins with."""
        if len(tokens) > self.most:
            log.warning(
                "%d tokens are not pinned: pins take %d at most, half of the capacity",
                *(len(tokens), self.most),
            )
            return
        rest = [old for old in self._pinned if common_prefix(old, tokens) < len(old)]
        # A view would keep all of the sequence it was cut from.
        self._pinned = [*rest, tokens.copy()]
        while sum(map(len, self._pinned)) > self.most:
            self._pinned.pop(0)
