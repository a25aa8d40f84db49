"""Shows the requests of a server in its terminal, a line each as they end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event as Flag
from threading import Thread
from typing import TYPE_CHECKING, Any

from mlxlab.printable import printable

if TYPE_CHECKING:
    from mlxlab.server.event_log import Event, EventLog

__all__ = ["describe_end", "shown_requests"]

#: Seconds between two looks at the log.
_EVERY_S = 0.25


@contextmanager
def shown_requests(log: EventLog) -> Iterator[None]:
    """Print each request that ends during the block, if a person looks.

    Where standard error is no terminal, nothing is printed.
    """
    if not (sys.stderr and sys.stderr.isatty()):
        yield
        return
    over = Flag()
    thread = Thread(target=_follow, args=(log, over, _print), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _follow(log: EventLog, over: Flag, show: Callable[[str], None]) -> None:
    number = 0
    while True:
        is_over = over.wait(_EVERY_S)
        for event in log.since(number):
            number = event.number
            if (line := describe_end(event)) is not None:
                show(line)
        if is_over:
            return


def _print(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)


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
