"""Sends exchanges to a server in a process of its own, and judges the answers."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from random import Random
from urllib.parse import urlsplit

from mlxlab.errors import OUT_OF_MEMORY
from tests.hostile.cases.exchange import Exchange, Exchanges
from tests.hostile.outcome import Outcome
from tests.support.limited_server import LimitedServer

__all__ = ["judge", "run_exchanges"]

#: Connections at a time.
_CLIENTS = 12
#: Seconds until a complete request counts as hanging, on a busy machine.
WALL_S = 60.0
#: Seconds that an incomplete one is waited for.
_INCOMPLETE_S = 0.3
#: 529 says that the server has too much to do.
_NEVER = {*range(500, 600)} - {529}
#: What bodies are answered with.
_OF_BODIES = {200, 400, 404, 529}
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})")


async def run_exchanges(
    server: LimitedServer, make: Exchanges, seeds: Sequence[str]
) -> list[Outcome]:
    """Run cases, several at a time; return how each has ended."""
    free = asyncio.Semaphore(_CLIENTS)
    parts = urlsplit(server.url)
    address = str(parts.hostname), parts.port or 0

    async def run(seed: str) -> Outcome:
        async with free:
            begun = time.monotonic()
            exchanges = make(Random(seed))
            answers = [await _sent(exchange, address) for exchange in exchanges]
            end, reason = judge(exchanges, answers)
            return Outcome(end, time.monotonic() - begun, 0, reason)

    return await asyncio.gather(*map(run, seeds))


async def _sent(exchange: Exchange, address: tuple[str, int]) -> bytes | None:
    """Return the answer as far as it is read; None if it does not end."""
    try:
        reader, writer = await asyncio.open_connection(*address)
    except OSError:
        return b""
    try:
        async with asyncio.timeout(WALL_S):
            with suppress(ConnectionError):
                for piece in exchange.pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                return await _answer(exchange, reader, writer)
            return b""
    except TimeoutError:
        return None
    finally:
        writer.transport.abort()


async def _answer(
    exchange: Exchange, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> bytes:
    if exchange.leaves is not None:
        return await reader.read(exchange.leaves) if exchange.leaves else b""
    if exchange.whole:
        return await reader.read(-1)
    received = bytearray()
    with suppress(TimeoutError):
        async with asyncio.timeout(_INCOMPLETE_S):
            while piece := await reader.read(2**16):
                received += piece
            return bytes(received)
    if writer.can_write_eof():
        writer.write_eof()
    return bytes(received) + await reader.read(-1)


def judge(
    exchanges: Sequence[Exchange], answers: Sequence[bytes | None]
) -> tuple[str, str]:
    """Return how a case has ended, and what is wrong with it.

    Args:
        exchanges: what was sent.
        answers: what came back to each; None if it did not end.
    """
    codes = []
    for exchange, answer in zip(exchanges, answers, strict=True):
        if answer is None:
            return "hangs", f"no end of the answer to {exchange.pieces[0][:300]!r}"
        found = _STATUS.match(answer)
        codes.append(int(found[1]) if found else 0)
        if exchange.leaves is not None:
            return "left", ""
        if OUT_OF_MEMORY.encode() in answer or codes[-1] in _NEVER:
            return "5xx", f"{answer[-500:]!r} to {exchange.pieces[0][:1500]!r}"
        if exchange.whole and not found:
            return "wrong", f"no answer to {exchange.pieces[0][:1500]!r}"
    if len(exchanges) == 2 and not set(codes) <= _OF_BODIES:
        return "wrong", f"{codes} to {exchanges[0].pieces[0][:1500]!r}"
    if codes[0] == 200 and len(exchanges) == 2 and not _is_message(answers[0]):
        return "wrong", f"{answers[0]!r} to {exchanges[0].pieces[0][:1500]!r}"
    if len(set(codes)) > 1 and not _may_differ(answers):
        return "wrong", f"{codes} to {exchanges[0].pieces[0][:1500]!r}: {answers!r}"
    if not exchanges[0].whole and not codes[0]:
        return "refused", ""
    return ("served" if codes[0] < 300 else "refused"), ""


def _is_message(answer: bytes | None) -> bool:
    """Whether it is a message, or the events of one."""
    head, _, body = (answer or b"").partition(b"\r\n\r\n")
    return b"event-stream" in head or b'"type":"message"' in body


def _may_differ(answers: Sequence[bytes | None]) -> bool:
    """Whether only one endpoint has what is refused: a count needs no max_tokens."""
    return any(b"max_tokens" in (answer or b"") for answer in answers)
