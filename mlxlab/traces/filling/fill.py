"""Fills a history: each request without system text and tools gets those of a graft.

What is made up decides what is found. So a conversation gets one size, the median of
what its usage says is missing: a size per request would break prompts where nothing
broke. And what clients change is changed too: the attribution block as in the
recording, folder and git status as the history has them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace

from mlxlab.errors import MlxlabError, TraceError
from mlxlab.traces.bundled import bundled_traces, load_trace
from mlxlab.traces.completeness import FILLED, REBUILT
from mlxlab.traces.filling.git_status import GitStatuses
from mlxlab.traces.filling.grafts import ATTRIBUTION, Graft, Scion, find_grafts
from mlxlab.traces.filling.plan import Conversation, plan_grafts
from mlxlab.traces.prompt_size import (
    find_scale,
    is_bare,
    measure_prompts,
    stated_tokens,
)
from mlxlab.traces.recording.latest import find_latest
from mlxlab.traces.schema import Json, encode
from mlxlab.traces.trace import Exchange, Trace, read_trace

__all__ = ["fill_history"]

#: The end of the client's version in an attribution block.
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
    plan = plan_grafts(sizes, scale, _find_grafts(trace, recordings))
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
        named = exchange.conversation
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


def _find_grafts(trace: Trace, recordings: Iterable[Trace] | None) -> list[Graft]:
    """Return all conversations to take parts of; of equals the first is taken."""
    named = (
        _known_recordings()
        if recordings is None
        else ((f"trace {recording.name}", recording) for recording in recordings)
    )
    sources = (("its own complete requests", trace), *named)
    found = [graft for name, own in sources for graft in find_grafts(own, name)]
    if not found:
        raise TraceError(
            f"trace {trace.name}: no recording with system text and tools to fill it "
            "from; record one with mlxlab record"
        )
    return found


def _known_recordings() -> Iterator[tuple[str, Trace]]:
    """Yield the latest recording, then the bundled traces, those with agents first."""
    with suppress(MlxlabError):
        latest = read_trace(find_latest())
        yield f"the latest recording {latest.name}", latest
    bundled = [load_trace(name) for name in bundled_traces()]
    for trace in sorted(bundled, key=lambda trace: -len({e.agent for e in trace})):
        yield f"the bundled trace {trace.name}", trace


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
