"""Secrets of many kinds, and the forms in which a file could still hold them."""

from __future__ import annotations

import json
import random
import re
import string
from base64 import b64decode, b64encode, urlsafe_b64encode
from collections.abc import Iterator
from urllib.parse import quote

import numpy as np

from mlxlab.models.folder import find_model
from mlxlab.prompt import Tokens
from mlxlab.rendering.thinking import unpack_signature

__all__ = ["KINDS", "leaks", "plant"]

_DRAW = random.Random(7)
_ALL = string.ascii_letters + string.digits


def _drawn(length: int, characters: str = _ALL) -> str:
    # A letter and a digit, as in any real one.
    rest = "".join(_DRAW.choices(characters, k=length - 2))
    digits = [c for c in characters if c.isdigit()]
    letters = [c for c in characters if c.isalpha()]
    return _DRAW.choice(letters or digits) + rest + _DRAW.choice(digits or letters)


def _base64(text: str) -> str:
    return urlsafe_b64encode(text.encode()).decode().rstrip("=")


_HEX = string.hexdigits[:16]
_LOWER = string.ascii_lowercase + string.digits
_UPPER = string.ascii_uppercase + string.digits
_JWT = ".".join(
    [_base64(json.dumps({"alg": "HS256"})), _base64(json.dumps({"sub": "1234567890"}))]
)

#: By kind: what stands before the secret, the secret, what stands behind. Put together
#: here, so that no scanner takes this file for a leak.
KINDS: dict[str, tuple[str, str, str]] = {
    "anthropic": ("", "sk-" + "ant-api03-" + _drawn(40), ""),
    "openai": ("", "sk-" + "proj-" + _drawn(48), ""),
    "aws id": ("", "AK" + "IA" + _drawn(16, _UPPER), ""),
    "aws secret": ("aws_secret_access_key = ", _drawn(40, _ALL + "/+"), ""),
    "aws secret in json": ('"SecretAccessKey": "', _drawn(40, _ALL + "/+"), '"'),
    "github": ("", "gh" + "p_" + _drawn(36), ""),
    "github fine": ("", "github" + "_pat_" + _drawn(40), ""),
    "gitlab": ("", "gl" + "pat-" + _drawn(20), ""),
    "gitlab runner": ("", "GR13" + "48941" + _drawn(20), ""),
    "slack": ("", "xox" + "b-123456789012-" + _drawn(24), ""),
    "slack webhook": (
        "",
        "https://hooks.slack" + f".com/services/T{_drawn(9)}/B{_drawn(9)}/{_drawn(24)}",
        "",
    ),
    "google key": ("", "AI" + "za" + _drawn(35), ""),
    "google oauth": ("", "ya" + "29." + _drawn(60), ""),
    "google client": ("", "GOC" + "SPX-" + _drawn(28), ""),
    "hugging face": ("", "h" + "f_" + _drawn(34), ""),
    "jwt": ("", _JWT + "." + _drawn(43), ""),
    "stripe": ("", "sk" + "_live_" + _drawn(24), ""),
    "stripe restricted": ("", "rk" + "_live_" + _drawn(99), ""),
    "npm": ("", "np" + "m_" + _drawn(36), ""),
    "npmrc": ("//registry.example/:_auth" + "Token=", _drawn(36, _HEX), ""),
    "pypi": ("", "py" + "pi-AgEIcHlwaS5vcmc" + _drawn(90), ""),
    "sendgrid": ("", "S" + f"G.{_drawn(22)}.{_drawn(43)}", ""),
    "twilio": ("", "S" + "K" + _drawn(32, _HEX), ""),
    "azure": ("Account" + "Key=", _drawn(86) + "==", ";"),
    "basic auth": ("postgres://admin:", _drawn(14), "@db.example/x"),
    "basic auth with signs": ("https://me:", "p!" + _drawn(9) + "$&z", "@host"),
    "basic header": ("Authorization: Basic ", b64encode(b"me:hunter2ok").decode(), ""),
    "discord": ("", f"M{_drawn(23)}.{_drawn(6)}.{_drawn(27)}", ""),
    "discord webhook": (
        "https://discord.com/api/web" + f"hooks/{_drawn(18, string.digits)}/",
        _drawn(68),
        "",
    ),
    "telegram": ("", f"{_drawn(9, string.digits)}:{_drawn(35)}", ""),
    "mailchimp": ("", _drawn(32, _HEX) + "-us" + "21", ""),
    "square": ("", "sq0" + "csp-" + _drawn(43), ""),
    "bearer": ("Bear" + "er ", _drawn(40), ""),
    "assignment": ('password = "', "Tr0ub4dor&3", '"'),
    "assignment in json": ('{"client_secret": "', _drawn(24), '"}'),
    "escaped": ('{\\"api_key\\": \\"', _drawn(24), '\\"}'),
    "variable": ("DB_PASS" + "WORD=", _drawn(12), ""),
    "header": ("x-api-key: ", _drawn(32, _LOWER), ""),
    "private key": (
        "-----BEGIN RSA PRIV" + "ATE KEY-----\n",
        _drawn(64) + "\n" + _drawn(60) + "=",
        "\n-----END RSA PRIV" + "ATE KEY-----",
    ),
    "docker": ("", "dckr" + "_pat_" + _drawn(27), ""),
    "vault": ("", "hv" + "s." + _drawn(30), ""),
}


def plant(kind: str, before: str = "It is ", behind: str = " so.") -> str:
    """A text that holds a secret."""
    return before + "".join(KINDS[kind]) + behind


def leaks(data: str, kinds: list[str] | None = None) -> dict[str, str]:
    """By kind of a secret that can be read out of a file, the form in which it stands.

    Half of one counts too.
    """
    wanted = {kind: KINDS[kind][1] for kind in kinds or KINDS}
    views = {"as written": data, **dict(_views(data))}
    found: dict[str, str] = {}
    for kind, secret in wanted.items():
        for piece in (secret, secret[len(secret) // 2 :], secret[: len(secret) // 2]):
            if len(piece) < 7 or piece in "redacted-" * 40:
                continue
            for form, encoded in _forms(piece):
                for view, text in views.items():
                    if encoded in text:
                        found[kind] = f"{form}, {view}"
    return found


def _forms(secret: str) -> Iterator[tuple[str, str]]:
    yield "plain", secret
    yield "json", json.dumps(secret)[1:-1]
    yield "json twice", json.dumps(json.dumps(secret))[3:-3]
    yield "url", quote(secret, safe="")
    yield "reversed", secret[::-1]
    data = secret.encode()
    yield "hex", data.hex()
    if len(data) < 12:
        return
    for shift in range(3):
        # What depends on the neighbours is cut off.
        encoded = b64encode(b"\0" * shift + data).decode()
        inner = encoded[4 if shift else 0 : len(encoded) // 4 * 4 - 4]
        yield f"base64 {shift}", inner
        yield f"url-safe base64 {shift}", inner.replace("+", "-").replace("/", "_")


def _views(data: str) -> Iterator[tuple[str, str]]:
    """What ids and signatures say, and what base64 holds."""
    decode = find_model().tokenizer.decode
    for ids in re.findall(r'"ids":\[([\d,]*)\]', data):
        numbers: Tokens = np.array([int(n) for n in ids.split(",") if n], np.int32)
        yield "ids", str(decode(numbers))
    signed = re.findall(r"mlxlab1\.[\w=-]+", data)
    texts = []
    for signature in signed:
        unpacked = unpack_signature(signature)
        assert unpacked, "a signature that cannot be read"
        texts.append(str(decode(unpacked[1])))
    yield "signatures", "\n".join(texts)
    runs = re.findall(r"[A-Za-z0-9+/]{24,}", data)
    opened = (b64decode(run[: len(run) // 4 * 4]).decode("latin-1") for run in runs)
    yield "base64", "\n".join(opened)
