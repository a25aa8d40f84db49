"""Fills a history: each request without system text and tools gets those of a graft.

What is made up decides what is found. So a conversation gets one size, the median of
what its usage says is missing: a size per request would break prompts where nothing
broke. And what clients change is changed too: the attribution block as in the
recording, folder and git status as the history has them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from statistics import median_low
from typing import TypeAlias

from mlxlab.errors import MlxlabError, TraceError
from mlxlab.traces.bundled import bundled_traces, load_trace
from mlxlab.traces.completeness import (
    FILLED,
    REBUILT,
    PromptSize,
    Scale,
    find_scale,
    is_bare,
    measure_prompts,
    stated_tokens,
)
from mlxlab.traces.filling.git_status import GitStatuses
from mlxlab.traces.filling.grafts import (
    ATTRIBUTION,
    Graft,
    Scion,
    Version,
    client_version,
    find_grafts,
)
from mlxlab.traces.recording.latest import find_latest
from mlxlab.traces.schema import Json, encode
from mlxlab.traces.trace import Exchange, Trace, read_trace

__all__ = ["fill_history"]

Conversation: TypeAlias = tuple[str, str]
"""Session and agent."""

#: Sizes that differ by this factor at most are taken as equal: usage is not exact, and
#: other sizes would be other prompts.
_NEAR = 1.05
_SUFFIX = re.compile(r"(cc_version=[^;]*\.)[^.;]*")


def fill_history(trace: Trace, recordings: Iterable[Trace] | None = None) -> Trace:
    """Fill requests that lack system text and tools with those of a recorded client.

    The nearest client version is taken. Sizes are those that ``usage`` states.

    Args:
        trace: an imported history; any other trace is returned as it is.
        recordings: where to look, after the trace itself. None for the latest recording
            of the server and the bundled traces.

    Raises:
        TraceError: no recording has system text and tools.
    """
    found = trace.completeness
    if found is None or found.source:
        return trace
    sizes = measure_prompts(trace.inference)
    scale = find_scale(sizes)
    plan = _plan(sizes, scale, _find_grafts(trace, recordings))
    filler = _Filler(plan)
    exchanges = tuple(map(filler.fill, trace.exchanges))
    skipped = {(FILLED if k == REBUILT else k): n for k, n in trace.skipped.items()}
    filled = found.model_copy(
        update={
            "assumed": scale.tokens(filler.assumed),
            "source": _name_sources(plan.values()),
        }
    )
    header = trace.header.model_copy(update={"skipped": skipped, "filled": filled})
    return replace(trace, exchanges=exchanges, header=header)


class _Filler:
    """Fills requests in order of arrival.

    Attributes:
        assumed: bytes that were filled in, of requests whose usage is stated.
    """

    def __init__(self, plan: Mapping[Conversation, Graft]) -> None:
        self.assumed = 0
        self._plan = plan
        self._statuses = GitStatuses()
        self._counts: dict[Conversation, int] = {}
        self._known: dict[tuple[int, str, str], tuple[Scion, int]] = {}

    def fill(self, exchange: Exchange) -> Exchange:
        """Return the exchange with what it lacks."""
        status = self._statuses.at(exchange)
        named = exchange.session, exchange.agent
        graft = self._plan.get(named)
        if graft is None or not is_bare(exchange):
            return exchange
        number = self._counts[named] = self._counts.get(named, -1) + 1
        suffix = _suffix(exchange, graft, number)
        scion, size = self._changed(graft.scion(number), suffix, status)
        if stated_tokens(exchange):
            self.assumed += size
        return replace(exchange, body=_joined(exchange.body or {}, scion))

    def _changed(self, own: Scion, suffix: str, status: str) -> tuple[Scion, int]:
        """Return what a request gets, and its bytes; equal parts are one object."""
        key = id(own), suffix, status
        if key not in self._known:
            changed = _with_status(_with_suffix(own, suffix), status)
            self._known[key] = changed, changed.size
        return self._known[key]


def _plan(
    sizes: Sequence[PromptSize], scale: Scale, grafts: Sequence[Graft]
) -> dict[Conversation, Graft]:
    """Choose graft and size of each conversation."""
    bare: dict[Conversation, list[PromptSize]] = {}
    for prompt in sizes:
        if prompt.is_bare:
            named = prompt.exchange.session, prompt.exchange.agent
            bare.setdefault(named, []).append(prompt)
    kinds: dict[tuple[Version | None, bool], dict[Conversation, int | None]] = {}
    for named, own in bare.items():
        kind = client_version(own[0].exchange), bool(named[1])
        kinds.setdefault(kind, {})[named] = _missing(own, scale)
    return {
        named: part
        for (version, is_agent), missing in kinds.items()
        for named, part in _plan_kind(grafts, version, is_agent, missing)
    }


def _plan_kind(
    grafts: Sequence[Graft],
    version: Version | None,
    is_agent: bool,
    missing: Mapping[Conversation, int | None],
) -> Iterator[tuple[Conversation, Graft]]:
    """Choose for conversations of one client version, all main loops or all agents.

    Main loops share their system text, agents do so by type, which sizes tell apart.
    """
    sizes = _merge({name: size for name, size in missing.items() if size is not None})
    usual = median_low(sizes.values()) if sizes else None
    near = _nearest(grafts, version, is_agent)
    sized: dict[int | None, Graft] = {}
    for name in missing:
        size = sizes.get(name)
        if size not in sized:
            graft = _of_size(near, size if is_agent else usual)
            sized[size] = graft if size is None else graft.sized(size)
        yield name, sized[size]


def _missing(prompts: Iterable[PromptSize], scale: Scale) -> int | None:
    """Return the bytes that are missing in each of a conversation's requests."""
    known = [p.stated * scale.token_bytes - p.size for p in prompts if p.stated]
    return max(0, round(median_low(known))) if known else None


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


def _nearest(
    grafts: Sequence[Graft], version: Version | None, is_agent: bool
) -> list[Graft]:
    """Return the grafts of one recording, the first with the nearest version."""

    def distance(graft: Graft) -> tuple[bool, list[int]]:
        return graft.is_agent != is_agent, _apart(graft.version, version)

    best = min(grafts, key=distance)
    return [
        graft
        for graft in grafts
        if graft.source == best.source and distance(graft) == distance(best)
    ]


def _of_size(grafts: Sequence[Graft], size: int | None) -> Graft:
    """Return the graft of the nearest size, the first one if none is known."""
    if size is None:
        return grafts[0]
    return min(grafts, key=lambda graft: abs(graft.scions[0].size - size))


def _apart(one: Version | None, other: Version | None) -> list[int]:
    if one is None or other is None:
        return [2**31]
    return [abs(a - b) for a, b in zip(one, other, strict=True)]


def _find_grafts(trace: Trace, recordings: Iterable[Trace] | None) -> list[Graft]:
    """Return all conversations to take parts of; of equals the first is taken."""
    own = find_grafts(trace, "its own later requests")
    named = _known_recordings() if recordings is None else recordings
    found = [*own, *(g for r in named for g in find_grafts(r, f"trace {r.name}"))]
    if not found:
        raise TraceError(
            f"trace {trace.name}: no recording with system text and tools to fill it "
            "from; record one with mlxlab record"
        )
    return found


def _known_recordings() -> Iterator[Trace]:
    """Yield the latest recording, then the bundled traces, those with agents first."""
    with suppress(MlxlabError):
        yield read_trace(find_latest())
    bundled = [load_trace(name) for name in bundled_traces()]
    yield from sorted(bundled, key=lambda trace: -len({e.agent for e in trace}))


def _name_sources(grafts: Iterable[Graft]) -> str:
    names = dict.fromkeys(
        f"{graft.source} (client {'.'.join(map(str, graft.version or ('?',)))})"
        for graft in grafts
    )
    return ", ".join(names)


def _suffix(exchange: Exchange, graft: Graft, number: int) -> str:
    """Return the end of the client's version, which follows the first prompt.

    Where it changed with each request of the recording, it follows the number too.
    """
    messages = (exchange.body or {}).get("messages") or [""]
    digest = hashlib.sha256(encode(messages[0]))
    if graft.changes_attribution:
        digest.update(str(number).encode())
    return digest.hexdigest()[:3]


def _with_suffix(scion: Scion, suffix: str) -> Scion:
    first, *others = scion.system
    text = first.get("text")
    if not isinstance(text, str) or not text.startswith(ATTRIBUTION):
        return scion
    changed = {**first, "text": _SUFFIX.sub(rf"\g<1>{suffix}", text)}
    return replace(scion, system=(changed, *others))


def _with_status(scion: Scion, status: str) -> Scion:
    *others, last = scion.system
    text = last.get("text")
    if not status or not isinstance(text, str):
        return scion
    changed = {**last, "text": f"{text.rstrip()}\n\n{status}"}
    return replace(scion, system=(*others, changed))


def _joined(body: Mapping[str, Json], scion: Scion) -> dict[str, Json]:
    first, *others = body["messages"]
    messages = [first, *scion.opening, *others]
    lists = {"system": [*scion.system], "tools": [*scion.tools], "messages": messages}
    return {**body, **{key: items for key, items in lists.items() if items}}
