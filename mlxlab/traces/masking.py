"""Replaces secrets in a text by placeholders of the same length, in base64 too."""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Iterator

from mlxlab.traces.secret_patterns import find_secrets

__all__ = ["mask_text", "placeholder"]

_PLACEHOLDER = b"redacted-"
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_"
_BREAKS = b"\r\n"
#: Where only some bytes count: those become ``a``, so that runs of them are found fast.
_ENCODES = bytes(97 if c in _BASE64 + _BREAKS else 32 for c in range(256))
_PRINTS = bytes(97 if 32 <= c < 127 or c in b"\t\r\n" else 32 for c in range(256))
#: Characters of base64 and bytes of a secret that are worth looking into.
_LEAST_ENCODED = 24
_LEAST_SECRET = 18
#: Longer data begins where its run does; in front of shorter a word may stand.
_MOST_SHIFTED = 1 << 16
_CONTINUES = re.compile(rb"[\x80-\xbf]*")


def mask_text(text: str) -> tuple[str, list[str]]:
    """The text with placeholders for its secrets, of its length; and those secrets."""
    data = text.encode(errors="surrogatepass")
    clean, secrets = _mask(data)
    if clean is data:
        return text, []
    found = [secret.decode(errors="surrogatepass") for secret in secrets]
    return clean.decode(errors="surrogatepass"), found


def placeholder(length: int) -> str:
    """What stands for a secret of ``length`` characters."""
    return _placeholder(length).decode()


def _placeholder(length: int) -> bytes:
    return (_PLACEHOLDER * (length // len(_PLACEHOLDER) + 1))[:length]


def _mask(data: bytes) -> tuple[bytes, list[bytes]]:
    edits = [*_plain(data)]
    edits += [edit for edit in _encoded(data) if not _meets(edit, edits)]
    pieces, secrets, position = [], [], 0
    for start, stop, new in sorted(edits):
        pieces += [data[position:start], new]
        secrets.append(data[start:stop])
        position = stop
    return (b"".join([*pieces, data[position:]]) if edits else data), secrets


def _plain(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Edits for secrets as they are, in order and without overlap."""
    for start, stop in find_secrets(data):
        # A limit on the length may have cut a character.
        cut = _CONTINUES.match(data, stop)
        stop = cut.end() if cut else stop
        secret = data[start:stop]
        new = _placeholder(len(secret.decode(errors="surrogatepass")))
        if secret != new:
            yield start, stop, new


def _encoded(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Edits for base64 that holds secrets."""
    classes = data.translate(_ENCODES)
    run = b"a" * _LEAST_ENCODED
    start = classes.find(run)
    while start >= 0:
        stop = classes.find(b" ", start)
        stop = len(data) if stop < 0 else stop
        shifts = range(4) if stop - start <= _MOST_SHIFTED else range(1)
        masked = (_mask_encoded(data[start + n : stop]) for n in shifts)
        for shift, new in enumerate(masked):
            if new is not None:
                yield start + shift, stop, new
                break
        start = classes.find(run, stop)


def _mask_encoded(run: bytes) -> bytes | None:
    """The base64 without secrets, as long and broken as it was; None if it has none."""
    body = run.translate(None, _BREAKS)
    body = body[: len(body) - (len(body) % 4 == 1)]
    safe = b"-" in body or b"_" in body
    decoded = b64decode(body + b"=" * (-len(body) % 4), b"-_" if safe else None)
    if decoded.translate(_PRINTS).find(b"a" * _LEAST_SECRET) < 0:
        return None
    clean, secrets = _mask(decoded)
    if not secrets:
        return None
    characters = iter(b64encode(clean, b"-_" if safe else None)[: len(body)])
    return bytes(old if old in _BREAKS else next(characters, old) for old in run)


def _meets(edit: tuple[int, int, bytes], others: list[tuple[int, int, bytes]]) -> bool:
    return any(edit[0] < stop and start < edit[1] for start, stop, _ in others)
