"""Claude Code's own history: ``~/.claude/projects``, or a part of it.

Without being asked to, the client (measured with 2.1.330) writes records beside the
conversation from which each request of the main loop and of sub-agents can be rebuilt.
A rebuilt request differs from the one on the wire:

- ``system`` lacks the attribution block at its beginning, so a replay does not show
  what that block costs a server that renders it.
- ``metadata`` and ``stream`` are missing. ``betas`` are in the header
  ``anthropic-beta``, as they were. Of other headers, session and agent are known.
- Keys may be in another order: params, system, tools, messages.
- Side requests are missing, such as those for a title, or for a summary on
  ``/compact``.

An answer is as the client sends it back: defaults of tool inputs are filled in. Whether
a lone text was a string or one block is inferred: see
:meth:`mlxlab.traces.importers.claude_code.hashes.MessageStore.get`. ``querySource``
becomes a header ``x-claude-code-query-source``, which the client does not send. The
history does not say when an answer began, so ``first_byte_s`` is 0.

Older clients (measured with 2.0.33) write the conversation only. For each of its
answers the import makes a request from the messages before it, without system, tools
and the reminders that the client adds to user messages. Such requests are counted. From
attachments come inline system messages, nearly as they were (measured with 2.1.197).
Headers hold what :mod:`mlxlab.traces.filling` fills them by: the client's version,
folder, git branch, and how often the session was continued.

The format is officially unstable, so the import relies on no part of it. Records that
it cannot use are counted, logged and left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mlxlab.files import expanded
from mlxlab.traces.completeness import REBUILT
from mlxlab.traces.importers.base import IMPORTERS, Importer, Selection
from mlxlab.traces.importers.claude_code.session import (
    FoundRequest,
    SessionFile,
    Shapes,
)
from mlxlab.traces.importers.files import Source, bytes_bar, find_sources, peek
from mlxlab.traces.importers.tally import Tally
from mlxlab.traces.trace import Exchange

__all__ = ["ClaudeCode"]

_ENDING = ".jsonl"
#: How many of the newest files are looked at to recognize the format.
_PEEKED_FILES = 5


@IMPORTERS.register
class ClaudeCode(Importer):
    """The folder of all projects, that of one project, or one session's file.

    Files are read newest first. Reading ends at files that were last written before the
    wanted time, or before the oldest of the wanted number of requests.
    """

    name = "claude-code"
    summary = "Claude Code's own history, ~/.claude/projects or a part of it"
    filters = Importer.filters | {"project"}

    def default_path(self) -> Path:
        return expanded("~/.claude/projects")

    def recognizes(self, path: Path) -> bool:
        newest = sorted(find_sources(path, _ENDING, Tally()), key=lambda s: -s.changed)
        return any(
            isinstance(record.get("type"), str)
            and isinstance(record.get("sessionId"), str)
            for source in newest[:_PEEKED_FILES]
            for record in peek(source.path)
        )

    def exchanges(
        self, path: Path, selection: Selection, tally: Tally, *, progress: bool
    ) -> list[Exchange]:
        sources = [
            source
            for source in find_sources(path, _ENDING, tally)
            if source.changed >= selection.since
            and selection.project in _project(source)
        ]
        sources.sort(key=lambda source: source.changed, reverse=True)
        shapes: Shapes = {}
        found = _FoundRequests(selection)
        with bytes_bar(sources, progress) as bar:
            for source in sources:
                if source.changed < found.earliest:
                    break
                found.add(SessionFile(source, shapes, tally).requests(bar))
        selected = found.selected()
        rebuilt = sum(not request.is_logged for request in selected)
        if rebuilt:
            tally.add(REBUILT, rebuilt)
        return [request.exchange for request in selected]


def _project(source: Source) -> str:
    """Return the project folder's name; a sub-agent's file is two folders deeper."""
    folder = source.path.absolute().parent
    return (folder.parents[1] if folder.name == "subagents" else folder).name


class _FoundRequests:
    """The requests found so far that the selection may want, each once.

    Attributes:
        earliest: arrival before which requests are not wanted, Unix seconds.
    """

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._found: dict[str, FoundRequest] = {}
        self.earliest = selection.since

    def add(self, requests: Iterable[FoundRequest]) -> None:
        """Add the requests of a file that is older than the files before it.

        A resumed session may begin with a copy of the session it continues. The
        original in the older file replaces the copy.
        """
        for request in requests:
            if request.exchange.t >= self.earliest:
                self._found[request.key] = request
        limit = self._selection.limit
        if limit is not None and len(self._found) >= limit:
            newest = self.selected()
            self._found = {request.key: request for request in newest}
            if len(newest) == limit:
                self.earliest = newest[0].exchange.t

    def selected(self) -> list[FoundRequest]:
        """Return the wanted requests in order of arrival.

        A request that was logged and also rebuilt from the conversation counts once.
        """
        logged = {r.answer for r in self._found.values() if r.is_logged}
        once = [
            request
            for request in self._found.values()
            if request.is_logged or request.answer not in logged
        ]
        once.sort(key=lambda request: request.exchange.t)
        return once if self._selection.limit is None else once[-self._selection.limit :]
