"""Cases of what is no HTTP, or HTTP in an odd form."""

from __future__ import annotations

import json
from random import Random

from tests.hostile.cases.exchange import Exchange, posted
from tests.hostile.cases.faults import break_bytes
from tests.support.credential import TOKEN

__all__ = ["break_wire"]

_METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "é")
_PATHS = (
    *("/", "/health", "/metrics", "/v1/models", "/v1/models/default", "/v1/messages"),
    *(
        "/v1/models/%00",
        "/v1/models/../..",
        "/v1/models/%ff",
        "/v1/models/" + "a" * 9000,
    ),
    *("//[", "//", "*", "http://[", "/v1/messages?x=%zz", "/\x1b[2J", "/anthropic/v1/"),
    *("/anthropic/v1/messages/count_tokens", "/v1/models/[x]", "/v1/models/é", ""),
    *("/v1/messages/count_tokens", "/docs", "/openapi.json", "/api/hello"),
    *("/change", "/page.js"),
)
_VERSIONS = ("HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/9.9", "HTTP/", "x")
_HEADERS = (
    *(
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Connection: keep-alive",
        "Expect: 100-continue",
    ),
    *("Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="),
    *("Transfer-Encoding: chunked", "Transfer-Encoding: gzip, chunked", "TE: trailers"),
    *(
        "Content-Length: 0",
        "Content-Length: -1",
        "Content-Length: 1, 2",
        "Content-Length: x",
    ),
    *(
        "Content-Length: 99999999999999999999",
        "Content-Encoding: gzip",
        "Accept: x/[x]",
    ),
    *(
        "Content-Type: text/plain",
        "Content-Type: multipart/form-data",
        "Host: [",
        "Host:",
    ),
    *(
        "Origin: http://a",
        "Origin: null",
        "Authorization: Bearer",
        "Authorization: Basic x",
    ),
    *(
        "x-api-key: \u00e9",
        "x-api-key:",
        "X-Api-Key: " + "a" * 9000,
        "anthropic-version: x",
    ),
    *("x-claude-code-session-id: \x1b[2J", "x-claude-code-session-id: " + "é" * 99),
    *(
        "anthropic-beta: " + "a," * 2000,
        "a" * 5000 + ": b",
        ": b",
        " a: b",
        "a\x00b: c",
    ),
    *("Cookie: " + "a=b;" * 999, "Upgrade: h2c", "HTTP2-Settings: AAAA", "Via: 1.1 a"),
    *(
        "Connection: close, x",
        "Keep-Alive: timeout=-1",
        "Range: bytes=0-1",
        "x: \r\n y",
    ),
)
_OTHER = (
    *(
        b"",
        b"\r\n" * 3000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\0" * 100,
    ),
    *(
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x05\x01\x00",
        b"SSH-2.0-x\r\n",
        b"GET\r\n\r\n",
    ),
    *(
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 5000,
        b"G" * 70_000,
        b"\r\n\r\n",
        b"\xff" * 9,
    ),
)


def break_wire(chance: Random) -> tuple[Exchange, ...]:
    """One connection."""
    match chance.randrange(8):
        case 0:
            return (Exchange((chance.choice(_OTHER),), whole=False),)
        case 1 | 2:
            return (_chunked(chance),)
        case 3:
            return (_left(chance),)
        case 4:
            return (Exchange((break_bytes(_good(chance), chance),), whole=False),)
        case _:
            return (Exchange((_odd(chance),), whole=False),)


def _body(tokens: int = 4, *, stream: bool = False) -> bytes:
    messages = [{"role": "user", "content": "Why?"}]
    body = {"model": "default", "max_tokens": tokens, "messages": messages}
    return json.dumps(body | {"stream": stream}).encode()


def _good(chance: Random) -> bytes:
    path = chance.choice(("/v1/messages", "/v1/messages/count_tokens"))
    return posted(path, _body(stream=chance.random() < 0.3))


def _odd(chance: Random) -> bytes:
    """Return a request line and headers, each odd or not, and perhaps a body."""
    line = " ".join(map(chance.choice, (_METHODS, _PATHS, _VERSIONS)))
    headers = ["Host: 127.0.0.1", *chance.sample(_HEADERS, chance.randrange(5))]
    if chance.random() < 0.8:
        headers.append(f"x-api-key: {TOKEN}")
    body = _body() if chance.random() < 0.5 else b""
    if chance.random() < 0.5:
        headers.append(f"Content-Length: {len(body)}")
    chance.shuffle(headers)
    head = "\r\n".join((line, *headers)) + "\r\n\r\n"
    return head.encode("utf-8", "surrogateescape") + body * chance.choice((1, 1, 2))


def _chunked(chance: Random) -> Exchange:
    """Return a good body in chunks, or one with a fault in their form."""
    head, _, body = _good(chance).partition(b"\r\n\r\n")
    head = head.replace(b"Content-Length:", b"Transfer-Encoding: chunked\r\nx-was:")
    pieces, whole = [head + b"\r\n\r\n"], True
    while body:
        size = chance.choice((1, 7, 40, 1000))
        pieces.append(b"%x\r\n%b\r\n" % (len(body[:size]), body[:size]))
        body = body[size:]
    pieces.append(b"0\r\n\r\n")
    if chance.random() < 0.5:
        at = chance.randrange(1, len(pieces))
        fault = (
            b"x\r\n",
            b"-1\r\n",
            b"f" * 20 + b"\r\n",
            b"5;a=b\r\nhello\r\n",
            b"5\r\n",
        )
        pieces[at], whole = chance.choice(fault), False
    return Exchange((pieces[0], b"".join(pieces[1:])), whole)


def _left(chance: Random) -> Exchange:
    """Return a good request whose client leaves, while sending or while reading."""
    body = _body(chance.choice((4, 200)), stream=chance.random() < 0.7)
    data = posted("/v1/messages", body)
    if chance.random() < 0.3:
        return Exchange((data[: chance.randrange(len(data))],), whole=False, leaves=0)
    return Exchange((data,), leaves=chance.choice((0, 1, 200, 2000)))
