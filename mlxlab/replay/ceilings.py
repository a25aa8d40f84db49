"""The most that any exact strategy could reuse on a trace."""

from __future__ import annotations

from mlxlab.errors import IntegrityError
from mlxlab.prompt import Prompt, Tokens, common_prefix
from mlxlab.strategies import Commit, Plan, Put, Span, Strategy

__all__ = ["InfiniteMemory"]


class InfiniteMemory(Strategy):
    """Keeps every sequence and restores the longest common prefix with any of them.

    No limit, no granularity: an upper bound for every prefix strategy. Stored tokens
    are counted as a trie would hold them, each shared prefix once.
    """

    name = "ceiling"
    summary = "infinite memory, token granularity: the most that exact reuse can give"

    def __init__(self, *, token_bytes: int = 1) -> None:
        super().__init__(token_bytes=token_bytes)
        self._sequences: list[Tokens] = []
        self._stored = 0

    @property
    def stored_tokens(self) -> int:
        return self._stored

    def _match(self, prompt: Prompt) -> Plan:
        length, handle = self._longest(prompt.tokens)
        reused = min(length, len(prompt) - 1)
        spans = (Span(handle, 0, 0, reused),) if reused else ()
        return Plan(len(prompt), spans, best_match=length)

    def commit(self, prompt: Prompt, plan: Plan) -> Commit:
        self._stored += len(prompt) - self._longest(prompt.tokens)[0]
        self._sequences.append(prompt.tokens)
        return Commit(put=(Put(len(self._sequences) - 1, 0, len(prompt)),))

    def check_integrity(self) -> None:
        if self._stored > sum(map(len, self._sequences)):
            raise IntegrityError("ceiling: more tokens stored than were committed")

    def _longest(self, tokens: Tokens) -> tuple[int, int]:
        """Length and handle; the latest sequence wins a tie."""
        best = (0, -1)
        for handle, sequence in enumerate(self._sequences):
            best = max(best, (common_prefix(sequence, tokens), handle))
        return best
