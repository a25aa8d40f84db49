"""The git status that older clients put at the end of their system text.

It stands in front of all tools in most templates, so a new session computes them anew
if the status changed. What a session changed is known: the files that it edited, and
its commits. What users changed beside it is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePath

from mlxlab.traces.schema import Json
from mlxlab.traces.trace import BRANCH_HEADER, CWD_HEADER, START_HEADER, Exchange

__all__ = ["GIT_STATUS", "GitStatuses"]

#: Begins the status in a system text.
GIT_STATUS = "gitStatus: "

#: Keys of tool inputs that name an edited file, and the tools that edit.
_EDITS = frozenset({"Edit", "MultiEdit", "NotebookEdit", "Write"})
_PATHS = ("file_path", "notebook_path")


@dataclass(slots=True)
class _Worktree:
    """What was changed in a folder so far."""

    edited: set[str] = field(default_factory=set)
    commits: int = 0

    def apply(self, call: dict[str, Json]) -> None:
        given = call.get("input")
        if not isinstance(given, dict):
            return
        if call.get("name") in _EDITS:
            paths = (given.get(key) for key in _PATHS)
            self.edited |= {path for path in paths if isinstance(path, str)}
        elif "git commit" in str(given.get("command", "")):
            self.edited.clear()
            self.commits += 1


class GitStatuses:
    """The environment that each process of a client saw when it started.

    Requests are given in order of arrival, each before its answer has effects.
    """

    def __init__(self) -> None:
        self._trees: dict[str, _Worktree] = {}
        self._taken: dict[tuple[str, str], str] = {}
        self._latest: dict[str, str] = {}
        self._pending: list[tuple[float, Exchange]] = []

    def at(self, exchange: Exchange) -> str:
        """Return folder and git status in the system text of a request."""
        self._apply_until(exchange.t)
        if exchange.response is not None:
            self._pending.append((exchange.response.t, exchange))
        if exchange.agent and exchange.session in self._latest:
            return self._latest[exchange.session]
        start = exchange.session, exchange.headers.get(START_HEADER, "")
        if start not in self._taken:
            self._taken[start] = self._describe(exchange)
        self._latest[exchange.session] = self._taken[start]
        return self._taken[start]

    def _apply_until(self, t: float) -> None:
        due = [own for own in self._pending if own[0] <= t]
        self._pending = [own for own in self._pending if own[0] > t]
        for _, exchange in sorted(due, key=lambda own: own[0]):
            for call in _calls(exchange):
                self._tree(exchange).apply(call)

    def _tree(self, exchange: Exchange) -> _Worktree:
        cwd = exchange.headers.get(CWD_HEADER, "")
        return self._trees.setdefault(cwd, _Worktree())

    def _describe(self, exchange: Exchange) -> str:
        cwd = exchange.headers.get(CWD_HEADER, "")
        branch = exchange.headers.get(BRANCH_HEADER, "")
        lines = [f"Working directory: {cwd}"] if cwd else []
        if branch:
            tree = self._tree(exchange)
            status = [f" M {_relative(path, cwd)}" for path in sorted(tree.edited)]
            lines += [
                f"\n{GIT_STATUS}as it was at the start.\n\nCurrent branch: {branch}",
                "\n".join(["\nStatus:", *(status or ["(clean)"])]),
                f"\nRecent commits:\n{tree.commits} since the history begins",
            ]
        return "\n".join(lines)


def _calls(exchange: Exchange) -> Iterator[dict[str, Json]]:
    message = exchange.response.message if exchange.response else None
    content = (message or {}).get("content")
    for block in content if isinstance(content, list) else ():
        if isinstance(block, dict) and block.get("type") == "tool_use":
            yield block


def _relative(path: str, cwd: str) -> str:
    inside = cwd and PurePath(path).is_relative_to(cwd)
    return str(PurePath(path).relative_to(cwd)) if inside else path
