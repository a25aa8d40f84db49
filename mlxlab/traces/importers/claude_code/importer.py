"""Imports Claude Code's own history: ``~/.claude/projects``, or a part of it.

The client (measured with 2.1.330, which does so without being asked to) writes, beside
the conversation, records that rebuild each request of the main loop and of sub-agents.
What is rebuilt differs from what was on the wire in this:

- the attribution block that begins ``system`` is not there, so what it costs a server
  that renders it does not show;
- ``metadata`` and ``stream`` are not there, and ``betas`` stand in the header
  ``anthropic-beta`` as they did; of other headers, session and agent are known;
- keys may stand in another order: params, system, tools, messages;
- requests on the side, such as the one for a summary on ``/compact``, or for a title,
  are not there at all.

An answer is as the client gives it back: inputs of tools have their defaults filled in.
Only the form of a lone text, a string or one block, is inferred: see
:meth:`mlxlab.traces.importers.claude_code.hashes.Messages.get`. ``querySource`` becomes
a header ``x-claude-code-query-source``, which the client does not send. When an answer
began is not known: ``first_byte_s`` is 0.

Older clients (measured with 2.0.33) keep the conversation only. Each of its answers
gets a request of what was said before it, without system, tools and the reminders that
the client adds to what the user says. Such requests are counted.

The format is officially unstable, so nothing in it is relied on to be there: what
cannot be used is counted, named and left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mlxlab.traces.importers.claude_code.session import (
    REBUILT,
    Draft,
    SessionFile,
    Shapes,
)
from mlxlab.traces.importers.files import Source, bytes_bar, find_sources, peek
from mlxlab.traces.importers.selection import EVERYTHING, Selection, assemble
from mlxlab.traces.importers.tally import Tally
from mlxlab.traces.trace import Trace

__all__ = ["history", "import_transcripts", "is_transcript"]

_ENDING = ".jsonl"


def history() -> Path:
    """Where the client keeps its history unless it is told otherwise."""
    return Path.home() / ".claude/projects"


def import_transcripts(
    path: Path, selection: Selection = EVERYTHING, *, progress: bool = True
) -> Trace:
    """Rebuild the requests in a history.

    Files are read newest first. Those that were last written to before the wanted
    time, or before the last of the wanted number of requests, are not read.

    Args:
        path: the folder of all projects, that of one, or one session's file.
        selection: what of it is wanted.
        progress: whether to show a bar.

    Raises:
        TraceError: ``path`` cannot be read, or holds no such request.
    """
    tally = Tally()
    sources = [s for s in find_sources(path, _ENDING, tally) if _wanted(s, selection)]
    sources.sort(key=lambda source: source.changed, reverse=True)
    shapes: Shapes = {}
    drafts = _Drafts(selection)
    with bytes_bar(sources, progress) as bar:
        for source in sources:
            if source.changed < drafts.earliest:
                break
            drafts.add(SessionFile(source, shapes, tally).drafts(bar))
    kept = drafts.kept()
    rebuilt = sum(not draft.exact for draft in kept)
    if rebuilt:
        tally.add(REBUILT, rebuilt)
    exchanges = [draft.exchange for draft in kept]
    return assemble(path.stem, exchanges, selection, tally, "claude-code")


def is_transcript(path: Path) -> bool:
    """Whether a file, or one of the newest below a folder, looks like a transcript."""
    newest = sorted(find_sources(path, _ENDING, Tally()), key=lambda s: -s.changed)
    return any(
        isinstance(record.get("type"), str) and isinstance(record.get("sessionId"), str)
        for source in newest[:5]
        for record in peek(source.path)
    )


def _wanted(source: Source, selection: Selection) -> bool:
    return source.changed >= selection.since and selection.project in _project(source)


def _project(source: Source) -> str:
    """Name of the project's folder; a sub-agent's file lies two folders deeper."""
    folder = source.path.absolute().parent
    return (folder.parents[1] if folder.name == "subagents" else folder).name


class _Drafts:
    """The wanted ones of the requests found so far, each once."""

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._found: dict[str, Draft] = {}
        self.earliest = selection.since

    def add(self, drafts: Iterable[Draft]) -> None:
        """Take in a file's, which is older than the files before it.

        A session that goes on from another may begin with a copy of it; the older
        file has the original.
        """
        for draft in drafts:
            if draft.exchange.t >= self.earliest:
                self._found[draft.key] = draft
        limit = self._selection.limit
        if limit is not None and len(self._found) >= limit:
            newest = self.kept()
            self._found = {draft.key: draft for draft in newest}
            if len(newest) == limit:
                self.earliest = newest[0].exchange.t

    def kept(self) -> list[Draft]:
        """In order of arrival, without what is both exact and rebuilt."""
        answered = {d.answer for d in self._found.values() if d.exact}
        once = [
            draft
            for draft in self._found.values()
            if draft.exact or draft.answer not in answered
        ]
        once.sort(key=lambda draft: draft.exchange.t)
        return once if self._selection.limit is None else once[-self._selection.limit :]
