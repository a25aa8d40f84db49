"""Sessions of a project under git, as clients up to 2.1.197 send them."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

from mlxlab.traces import Trace

__all__ = ["git_status", "with_git_status"]


def git_status(n: int) -> str:
    """The status at the start of session ``n``; each session commits once."""
    commits = "\n".join(
        f"{0xB8F6484 + i:x} Change number {i}" for i in range(n, -1, -1)
    )
    status = "\n".join(f"?? note{i}.txt" for i in range(n)) or "(clean)"
    return (
        "gitStatus: This is the git status at the start of the conversation. Note "
        "that this status is a snapshot in time, and will not update during the "
        "conversation.\n\nCurrent branch: main\n\nMain branch (you will usually use "
        f"this for PRs): main\n\nStatus:\n{status}\n\nRecent commits:\n{commits}"
    )


def with_git_status(trace: Trace) -> Trace:
    """Return the trace with a status at the end of each session's system text."""
    sessions: dict[str, int] = {}
    exchanges = []
    for exchange in trace.exchanges:
        body: Any = deepcopy(exchange.body)
        if isinstance(body, dict) and body.get("tools"):
            n = sessions.setdefault(exchange.session, len(sessions))
            body["system"][-1]["text"] += f"\n\n{git_status(n)}"
        exchanges.append(replace(exchange, body=body))
    return replace(trace, name="under-git", exchanges=tuple(exchanges))
