"""Proposes rules against text that keeps breaking prompts.

A proposal is the names of rules, which may be written ones (``move:Today is``), that
together undo a change. What they save is not estimated: the traces are replayed again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import takewhile
from operator import and_
from typing import Any

import pandas as pd

from mlxlab.analysis.misses.attribution import RequestAttribution
from mlxlab.analysis.misses.causes import CauseKind
from mlxlab.analysis.misses.classify import Change
from mlxlab.analysis.misses.text_diff import TextShown, describe_change
from mlxlab.prompt import Role
from mlxlab.rendering.rules import (
    RESERVED,
    RULES,
    find_rule,
    label_rules,
    parse_rules,
)
from mlxlab.traces.redaction import redacted

__all__ = ["PROPOSAL_TYPES", "Proposal", "ProposalFinder", "rules_against", "try_out"]

#: Columns of proposals, with their types.
PROPOSAL_TYPES = {
    "added": "str",
    "rules": "str",
    "requests": "int64",
    "tokens": "int64",
    "reused_before": "float64",
    "reused_after": "float64",
    "change": "str",
}

#: Roles of text that written rules apply to.
_ROLES = frozenset({Role.SYSTEM, Role.INLINE_SYSTEM, Role.TOOLS})
#: A proposal is shown if its changes cost this share of all prompt tokens.
_LEAST = 0.01
_MOST_PROPOSALS = 3
_MOST_RULES = 4
#: Lines in front of a change that a written rule may begin with.
_ABOVE = 5
#: Characters of the words that a written rule begins with.
_WORDS = 3, 40


@dataclass(slots=True)
class Proposal:
    """Rules that undo changes which broke prompts.

    Attributes:
        rules: names, none of them in force.
        change: one of the changes.
        requests: number of requests that these changes broke.
        tokens: computed tokens that these changes invalidated.
    """

    rules: tuple[str, ...]
    change: Change
    requests: int = 0
    tokens: int = 0

    @property
    def keeps_happening(self) -> bool:
        """Whether the rules are known ones, or the text broke more than one request."""
        return self.requests > 1 or all(name in RULES for name in self.rules)


@dataclass(slots=True)
class ProposalFinder:
    """Collects the changes that rules would have undone.

    Attributes:
        rules: names of the rules in force.
        written: whether to propose written rules, which show words of the text.
    """

    rules: tuple[str, ...]
    written: bool = True
    _found: dict[tuple[str, ...], Proposal] = field(default_factory=dict)
    _tokens: int = 0
    _missed: int = 0

    @property
    def reused_share(self) -> float:
        """Share of all prompt tokens that was reused."""
        return 1 - self._missed / max(self._tokens, 1)

    def enter(self, attribution: RequestAttribution) -> None:
        """Add the changes that broke a request."""
        self._tokens += attribution.request.tokens
        self._missed += attribution.missed
        lost: Counter[Change] = Counter()
        for part in attribution.parts:
            if part.change and part.cause and part.cause.kind is CauseKind.INVALIDATED:
                tokens = attribution.request.tokens_between(part.start, part.stop)
                lost[part.change] += tokens
        for change, tokens in lost.items():
            if names := rules_against(change, self.rules, written=self.written):
                proposal = self._found.setdefault(names, Proposal(names, change))
                proposal.requests += 1
                proposal.tokens += tokens

    def ranked(self) -> list[Proposal]:
        """Return the proposals against changes that matter, the costliest first."""
        worth = [
            proposal
            for proposal in self._found.values()
            if proposal.keeps_happening and proposal.tokens >= _LEAST * self._tokens
        ]
        return sorted(worth, key=lambda p: p.tokens, reverse=True)[:_MOST_PROPOSALS]


def try_out(
    finder: ProposalFinder,
    reused_share: Callable[[tuple[str, ...]], float],
    shown: TextShown,
) -> pd.DataFrame:
    """Return the proposals that raise the reused share, one row each.

    Each is tried on top of those before it, because a prompt that broke in two places
    is only saved by both.

    Args:
        finder: has seen all requests.
        reused_share: replays the traces under other rules.
        shown: how to show the changes.
    """
    rows: list[dict[str, Any]] = []
    rules, before = finder.rules, finder.reused_share
    for proposal in finder.ranked():
        more = parse_rules(label_rules((*rules, *proposal.rules)))
        after = reused_share(more)
        if after > before:
            change = proposal.change
            row = {
                "added": ",".join(proposal.rules),
                "rules": label_rules(more),
                "requests": proposal.requests,
                "tokens": proposal.tokens,
                "reused_before": before,
                "reused_after": after,
                "change": describe_change(change.old, change.new, shown),
            }
            rows.append(row)
            rules, before = more, after
    return pd.DataFrame(rows, columns=list(PROPOSAL_TYPES)).astype(PROPOSAL_TYPES)


def rules_against(
    change: Change, rules: Collection[str], *, written: bool = True
) -> tuple[str, ...]:
    """Return the names of rules that together undo a change; none if no rules do.

    Args:
        change: a block that changed between two prompts.
        rules: names of the rules in force.
        written: whether to look for written rules too.
    """
    if change.role not in _ROLES or not change.old or not change.new:
        return ()
    old, new = change.old, change.new
    if change.role is Role.TOOLS:  # templates print descriptions as JSON strings
        old, new = (text.replace("\\n", "\n") for text in (old, new))
    names: list[str] = []
    known = [name for name in RULES if name not in rules]
    while old != new and len(names) < _MOST_RULES:
        name = _best(known, old, new)
        if not name and written:
            name = _best(list(_written(old, new)), old, new)
        if not name:
            return ()
        names.append(name)
        old, new = (find_rule(name).without(text) for text in (old, new))
    return tuple(names) if old == new else ()


def _best(names: Sequence[str], old: str, new: str) -> str:
    """Return the rule that helps most and moves least; empty if none helps.

    Lines that still differ count, and equal ones that would be moved.
    """
    costs: dict[str, int] = {}
    for name in names:
        kept = [find_rule(name).without(text) for text in (old, new)]
        if (left := _differing(*kept)) < _differing(old, new):
            gone = map(_missing, (old, new), kept)
            costs[name] = left + reduce(and_, gone).total()
    return min(costs, key=costs.__getitem__, default="")


def _differing(old: str, new: str) -> int:
    return _missing(old, new).total() + _missing(new, old).total()


def _missing(text: str, other: str) -> Counter[str]:
    """Return the lines of a text that the other does not hold."""
    return Counter(text.splitlines()) - Counter(other.splitlines())


def _written(old: str, new: str) -> Iterator[str]:
    """Yield rules that take the first line that differs, the shortest reach first."""
    before, after = old.splitlines(), new.splitlines()
    lines = list(zip(before, after, strict=False))
    first = next((i for i, (a, b) in enumerate(lines) if a != b), len(lines))
    for i in range(min(first, len(lines) - 1), max(-1, first - _ABOVE), -1):
        if words := _words(*lines[i]):
            yield f"move:{words}"
            yield f"move:{words}..."


def _words(a: str, b: str) -> str:
    """Return the words that both lines begin with; empty if a rule cannot hold them."""
    lines = a.strip(), b.strip()
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(*lines, strict=False))
    common = "".join(first for first, _ in alike)
    end = min((common.find(c) for c in RESERVED if c in common), default=len(common))
    least, most = _WORDS
    words = common[: min(end, most)]
    if words not in lines:
        words = words.rpartition(" ")[0]
    words = words.rstrip(" .")
    return words if len(words) >= least and redacted(words)[0] == words else ""
