"""Measures what it costs to explain requests and to have a live view open.

``python -m bench.watching [--requests N] [--rounds N] [--json FILE]`` sends each turn
of a recorded session to three servers of the bundled model, one after the other: one
that explains nothing, one that explains, and one that explains while a page follows
it. Only warm turns count. Then a page follows ``N`` short requests to one server, and
its messages a second and the server's memory are printed.
"""

from __future__ import annotations

import json
import secrets
import sys
import threading
import time
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np
import psutil
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.measurement import Kind, kinds_of
from bench.processes import Server, common_blas, running
from mlxlab.replay.endpoints.answers import WARM_UP, ask
from mlxlab.replay.endpoints.messages import Messages
from mlxlab.traces import load_trace

TRACE = "loop"
#: Seconds between two turns: a tool runs, and the explainer may begin.
PAUSE_S = 0.3
CLIENTS = 2
SAMPLES = 40

_PROGRAM = """
import signal, sys, threading
from mlxlab.server.server import Options, serve
explain, token, _, port = sys.argv[1:]
ended = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: ended.set())
with serve(options=Options(token=token, port=int(port), explain=explain == "yes")):
    ended.wait()
"""


class Page:
    """A page that follows a server.

    Attributes:
        messages_s: when each message of the view arrived.
        size: bytes of all messages.
    """

    def __init__(self) -> None:
        self.messages_s: list[float] = []
        self.size = 0

    @property
    def most_a_second(self) -> int:
        """The most messages within any second."""
        times = np.array(self.messages_s)
        return int(max(np.searchsorted(times, times + 1.0) - np.arange(len(times))))

    @contextmanager
    def following(self, client: httpx.Client) -> Iterator[None]:
        """Read the events as long as the block runs."""
        ended = threading.Event()
        with client.stream("GET", "/view") as answer:
            thread = threading.Thread(target=self._read, args=(answer, ended))
            thread.start()
            try:
                yield
            finally:
                ended.set()
                thread.join()

    def _read(self, answer: httpx.Response, ended: threading.Event) -> None:
        for chunk in answer.iter_raw():
            self.size += len(chunk)
            self.messages_s += [time.monotonic()] * chunk.count(b"event: view")
            if ended.is_set():
                return


def server(name: str, *, explain: bool) -> Server:
    """Return a server of the bundled model."""
    token = secrets.token_urlsafe()
    return Server(
        name,
        (sys.executable, "-c", _PROGRAM, "yes" if explain else "no", token),
        Messages(),
        model="default",
        headers={"x-api-key": token},
    )


def warm_turns(rounds: int, library: Path | None) -> dict[str, list[float]]:
    """Return the seconds to the first token of each warm turn, by server."""
    servers = (
        server("not explained", explain=False),
        server("explained", explain=True),
        server("explained, page open", explain=True),
    )
    seconds: dict[str, list[float]] = {each.name: [] for each in servers}
    turns = list(kinds_of(load_trace(TRACE)))
    for number in range(rounds):
        with ExitStack() as stack:
            clients = [stack.enter_context(running(each, library)) for each in servers]
            stack.enter_context(Page().following(clients[-1]))
            pairs = list(zip(servers, clients, strict=True))
            for each, client in pairs:
                ask(each, client, WARM_UP)
            label = f"round {number + 1} of {rounds}"
            for place, (turn, kind) in enumerate(track(turns, label)):
                shift = place % len(pairs)
                for each, client in pairs[shift:] + pairs[:shift]:
                    time.sleep(PAUSE_S)
                    answer = ask(each, client, turn.body or {})
                    if kind is Kind.WARM:
                        seconds[each.name].append(answer.ttft_s)
    return seconds


def followed(requests: int, library: Path | None) -> tuple[Page, np.ndarray]:
    """Return a page that followed short requests, and the memory during them.

    Returns:
        The page, and the server's resident MiB after each part of the requests,
        [SAMPLES].
    """
    each, page = server("followed", explain=True), Page()
    part = requests // SAMPLES
    taken = []
    with running(each, library) as client, page.following(client):
        port = client.base_url.port
        (process,) = [
            psutil.Process(connection.pid)
            for connection in psutil.net_connections("tcp4")
            if connection.status == "LISTEN" and connection.laddr.port == port
        ]
        _fill(client)
        for number in track(range(SAMPLES), f"{requests:,} requests"):
            threads = [
                threading.Thread(target=_talk, args=(each, client, places))
                for places in np.array_split(
                    np.arange(number * part, (number + 1) * part), CLIENTS
                )
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            taken.append(process.memory_info().rss / 2**20)
    return page, np.array(taken)


def _fill(client: httpx.Client) -> None:
    """Fill the cache of encoded texts, which holds a fixed number of bytes."""
    for first in track(range(0, 60 * 20_000, 20_000), "long texts"):
        text = " ".join(f"w{i}" for i in range(first, first + 20_000))
        messages = [{"role": "user", "content": text}]
        body = {"model": "default", "messages": messages}
        client.post("/v1/messages/count_tokens", json=body).raise_for_status()


def _talk(each: Server, client: httpx.Client, places: Sequence[int]) -> None:
    for place in places:
        text = f"Request {place}: what is {place} and {place % 7}?"
        ask(each, client, {"messages": [{"role": "user", "content": text}]})


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print both tables."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000, metavar="N")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    console, library = Console(), common_blas()
    seconds = warm_turns(options.rounds, library)
    (base, first), *others = seconds.items()
    table = Table("server", "first token, ms", "times", "pairwise", box=SIMPLE_HEAD)
    table.add_row(base, f"{1000 * median(first):.1f}", "", "")
    record: dict[str, Any] = {"ttft_s": seconds}
    for name, own in others:
        ratio = median(own) / median(first)
        pairwise = median(x / y for x, y in zip(own, first, strict=True))
        table.add_row(
            name, f"{1000 * median(own):.1f}", f"{ratio:.3f}", f"{pairwise:.3f}"
        )
    console.print(table)
    page, taken = followed(options.requests, library)
    late = taken[SAMPLES // 4 :]
    slope = np.polyfit(np.arange(len(late)) * options.requests / SAMPLES, late, 1)[0]
    record |= {"mib": taken.tolist(), "messages": len(page.messages_s)}
    console.print(
        f"{options.requests:,} requests followed: {len(page.messages_s):,} messages of "
        f"{page.size / max(len(page.messages_s), 1):,.0f} bytes, at most "
        f"{page.most_a_second} in a second; memory {taken[0]:.0f} MiB at first, "
        f"{late[0]:.0f} after a quarter, {late[-1]:.0f} at the end "
        f"({1000 * slope:+.1f} MiB for 1,000 requests)"
    )
    if options.json:
        options.json.write_text(json.dumps(record))


if __name__ == "__main__":
    main()
