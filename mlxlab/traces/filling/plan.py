"""Chooses the graft and the size of each conversation that lacks system text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import TypeAlias

from mlxlab.traces.filling.grafts import Graft, Version, client_version
from mlxlab.traces.prompt_size import PromptSize, Scale
from mlxlab.traces.trace import Exchange

__all__ = ["Conversation", "plan_grafts"]

Conversation: TypeAlias = tuple[str, str]
"""Session and agent."""

#: Sizes that differ by this factor at most are taken as equal: usage is not exact, and
#: other sizes would be other prompts.
_NEAR = 1.05


@dataclass(frozen=True, slots=True)
class _Kind:
    """Conversations that are filled alike.

    Attributes:
        version: of the client; None if unknown.
        is_agent: whether sub-agents hold them.
        is_opened: whether inline system messages follow the first message already.
    """

    version: Version | None
    is_agent: bool
    is_opened: bool


def plan_grafts(
    sizes: Iterable[PromptSize], scale: Scale, grafts: Sequence[Graft]
) -> dict[Conversation, Graft]:
    """Choose graft and size of each conversation.

    Args:
        sizes: of all requests; those that are bare count.
        scale: what a token of their usage stands for.
        grafts: to choose from, of equals the first.
    """
    bare: dict[Conversation, list[PromptSize]] = {}
    for prompt in sizes:
        if prompt.is_bare:
            bare.setdefault(prompt.exchange.conversation, []).append(prompt)
    kinds: dict[_Kind, dict[Conversation, int | None]] = {}
    for named, own in bare.items():
        kinds.setdefault(_kind(own[0].exchange), {})[named] = _missing(own, scale)
    return {
        named: graft
        for kind, missing in kinds.items()
        for named, graft in _plan_kind(_nearest(grafts, kind), kind, missing)
    }


def _kind(exchange: Exchange) -> _Kind:
    second = (exchange.body or {})["messages"][1:2]
    is_opened = bool(second) and second[0].get("role") == "system"
    return _Kind(client_version(exchange), bool(exchange.agent), is_opened)


def _missing(prompts: Iterable[PromptSize], scale: Scale) -> int | None:
    """Return the bytes that are missing in each of a conversation's requests."""
    known = [p.stated * scale.token_bytes - p.size for p in prompts if p.stated]
    return max(0, round(median_low(known))) if known else None


def _nearest(grafts: Sequence[Graft], kind: _Kind) -> list[Graft]:
    """Return the grafts of one recording, the first with the nearest version."""

    def distance(graft: Graft) -> tuple[bool, list[int]]:
        return graft.is_agent != kind.is_agent, _apart(graft.version, kind.version)

    best = min(grafts, key=distance)
    return [
        graft.unopened() if kind.is_opened else graft
        for graft in grafts
        if graft.source == best.source and distance(graft) == distance(best)
    ]


def _apart(one: Version | None, other: Version | None) -> list[int]:
    if one is None or other is None:
        return [2**31]
    return [abs(a - b) for a, b in zip(one, other, strict=True)]


def _plan_kind(
    grafts: Sequence[Graft],
    kind: _Kind,
    missing: Mapping[Conversation, int | None],
) -> Iterator[tuple[Conversation, Graft]]:
    """Choose for conversations of one kind.

    Main loops share their system text, agents do so by type, which sizes tell apart.
    """
    sizes = _merge({name: size for name, size in missing.items() if size is not None})
    usual = median_low(sizes.values()) if sizes else None
    sized: dict[int | None, Graft] = {}
    for name in missing:
        size = sizes.get(name)
        if size not in sized:
            graft = _of_size(grafts, size if kind.is_agent else usual)
            sized[size] = graft if size is None else graft.sized(size)
        yield name, sized[size]


def _merge(sizes: Mapping[Conversation, int]) -> dict[Conversation, int]:
    """Give conversations of nearly equal size the same."""
    merged: dict[Conversation, int] = {}
    waiting = sorted(sizes, key=lambda name: sizes[name])
    while waiting:
        most = sizes[waiting[0]] * _NEAR
        near = [name for name in waiting if sizes[name] <= most]
        middle = median_low(sizes[name] for name in near)
        merged |= dict.fromkeys(near, middle)
        waiting = waiting[len(near) :]
    return merged


def _of_size(grafts: Sequence[Graft], size: int | None) -> Graft:
    """Return the graft of the nearest size, the first one if none is known."""
    if size is None:
        return grafts[0]
    return min(grafts, key=lambda graft: abs(graft.scions[0].size - size))
