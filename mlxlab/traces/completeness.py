"""How much of a trace's prompts is there: the text, against the usage of the answers.

Older clients keep neither system text nor tools in their history, but the ``usage`` of
each answer counts the whole prompt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field

from mlxlab.traces.prompt_size import find_scale, measure_prompts

if TYPE_CHECKING:
    from mlxlab.traces.trace import Trace

__all__ = ["FILLED", "REBUILT", "Completeness", "measure_completeness"]

#: Reasons in :attr:`mlxlab.traces.trace.Trace.skipped`.
REBUILT = "request rebuilt from the conversation, without system and tools"
FILLED = "request rebuilt from the conversation, with assumed system and tools"

_SUBJECT = "history without system text and tools"
#: How to get what a history lacks.
_EXACT_WAYS = (
    "exact: record an afternoon (mlxlab serve --record, mlxlab record), "
    "or telemetry bodies (mlxlab import-trace)"
)

Count = Annotated[int, Field(ge=0, strict=True)]


class Completeness(BaseModel):
    """How much of a history's prompts is there.

    Tokens are those of the vendor's tokenizer.

    Attributes:
        requests: requests without system text and tools in their source.
        of: requests in all.
        unstated: those of ``requests`` whose answers have no usage.
        stated: prompt tokens of all others, by the usage of their answers.
        here: those of them that the source has.
        assumed: prompt tokens that were filled in.
        source: where the filled text comes from; empty if nothing was filled in.
        is_measured: whether the bytes of a token were measured on complete requests.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests: Count
    of: Count
    unstated: Count
    stated: Count
    here: Count
    assumed: Count = 0
    source: str = ""
    is_measured: bool = False

    @property
    def is_mostly_absent(self) -> bool:
        """Whether most of the prompts is neither known nor assumed."""
        if self.source:
            return False
        return self.requests > 0 and 2 * self.here <= self.stated

    @property
    def line(self) -> str:
        """One line: what is there, what is assumed, and what would be exact."""
        if self.source:
            return f"{_SUBJECT}, filled from {self.source}: {self._filled}"
        lacks = f"{_SUBJECT} in {self.requests:,} of {self.of:,} requests"
        return f"{lacks}: {self._left}; --fill assumes the rest; {_EXACT_WAYS}"

    @property
    def _filled(self) -> str:
        size = self._share(self.assumed) if self.stated else "all sizes"
        return (
            f"{size} are assumed, and how header and git status change; {_EXACT_WAYS}"
        )

    @property
    def _left(self) -> str:
        if not self.stated:
            return "how much is missing is not known"
        return f"{self._share(self.here)} are here"

    def _share(self, tokens: int) -> str:
        about = "" if self.is_measured else "about "
        share = f"{tokens / self.stated:.0%}"
        return f"{about}{tokens:,} of {self.stated:,} prompt tokens ({share})"


def measure_completeness(trace: Trace) -> Completeness | None:
    """Return how much of a history is there; None if its source kept all."""
    if REBUILT not in trace.skipped:
        return None
    sizes = measure_prompts(trace.inference)
    scale = find_scale(sizes)
    stated = [prompt for prompt in sizes if prompt.stated]
    return Completeness(
        requests=sum(prompt.is_bare for prompt in sizes),
        of=len(sizes),
        unstated=sum(prompt.is_bare and not prompt.stated for prompt in sizes),
        stated=sum(prompt.stated for prompt in stated),
        here=sum(
            min(prompt.stated, scale.tokens(prompt.size))
            if prompt.is_bare
            else prompt.stated
            for prompt in stated
        ),
        is_measured=scale.is_measured,
    )
