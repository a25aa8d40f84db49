"""Shows the requests of a server in its terminal: a line each as they end.

Below these lines are the requests that are open, and what all of them come to.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event as Flag
from threading import Thread
from typing import TYPE_CHECKING, Any

from mlxlab.printable import printable

if TYPE_CHECKING:
    from mlxlab.server.event_log import Event
    from mlxlab.server.server import Server

__all__ = ["describe_end", "shown_requests"]

#: Seconds between two looks at the server.
_EVERY_S = 0.25


@contextmanager
def shown_requests(server: Server) -> Iterator[None]:
    """Show the requests of a server during the block, if a person looks.

    Where standard error is no terminal, nothing is printed.
    """
    if not (sys.stderr and sys.stderr.isatty()):
        yield
        return
    over = Flag()
    thread = Thread(target=_follow, args=(server, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _follow(server: Server, over: Flag) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from mlxlab.server.live.terminal import draw_open

    console, view = Console(stderr=True), server.view
    number = version = 0
    totals: dict[str, Any] = {}
    is_over = False
    with Live(
        console=console, auto_refresh=False, transient=True, redirect_stdout=False
    ) as live:
        while not is_over:
            is_over = over.wait(_EVERY_S)
            for event in server.events.since(number):
                number = event.number
                if (line := describe_end(event)) is not None:
                    console.print(Text(printable(line)), soft_wrap=True)
            changed, rows = view.since(version), view.rows()
            version = changed.get("version", version)
            totals = changed.get("totals", totals)
            # Idle, it is left alone: a change would end a selection of text.
            if rows and (changed or any(not row.is_over for row in rows)):
                shown = draw_open(rows, totals, console.width, time.time())
                live.update(shown, refresh=True)


def describe_end(event: Event) -> str | None:
    """Return a line on a request that was answered; None for any other event."""
    facts = event.facts
    if "total_s" not in facts:
        return None
    tokens, reused = facts["prompt_tokens"], facts["reused_tokens"]
    share = reused / tokens if tokens else 0.0
    name = f"#{event.request} {facts['agent'] or 'main'}"
    cost = f"{tokens - reused:,} of {tokens:,} tokens computed, {share:.0%} reused"
    return f"{name:<12} {cost}; {_seconds(facts)}; {facts['outcome']}"


def _seconds(facts: Any) -> str:
    parts = "queue", "restore", "prefill"
    spent = " + ".join(f"{part} {facts[f'{part}_s']:.1f}" for part in parts)
    if facts["ttft_s"] is None:
        return f"no answer in {facts['total_s']:.1f} s ({spent})"
    output = facts["output_tokens"]
    decoded = f"{output:,} tokens in {facts['decode_s']:.1f} s"
    return f"first token {facts['ttft_s']:.1f} s ({spent}), {decoded}"
