"""What never reaches a trace: credentials in headers and addresses, and secrets.

An allow-list says which headers stay. Bodies stay as sent but for what is
obviously a secret, which a placeholder of the same length replaces, also in base64,
in generated ids and in signatures. This is no anonymisation: prompts and file contents
remain.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import parse_qsl, quote, unquote, urlencode

from mlxlab.rendering.thinking import SIGNATURE_PREFIX
from mlxlab.traces.id_redaction import (
    Tokenizers,
    find_tokenizer,
    mask_generated,
    mask_signature,
)
from mlxlab.traces.masking import mask_text, placeholder
from mlxlab.traces.schema import Json
from mlxlab.traces.secret_patterns import is_secret_entry
from mlxlab.traces.trace import Exchange, Response, Trace

__all__ = ["Redactor", "kept_headers", "kept_path", "redacted", "redacted_trace"]

_HEADERS = frozenset(
    {"user-agent", "anthropic-version", "anthropic-beta", "content-type", "x-app"}
)
_HEADER_PREFIX = "x-claude-code-"
_SIGNATURE = re.compile(re.escape(SIGNATURE_PREFIX) + "[A-Za-z0-9_=-]+")
_CREDENTIAL = re.compile("token|secret|key|auth|password", re.IGNORECASE)


def kept_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that a trace keeps, names in lower case."""
    lower = {name.lower(): value for name, value in headers.items()}
    return {name: value for name, value in lower.items() if _keeps(name)}


def kept_path(path: str) -> str:
    """A request path without secrets and without parameters that name a credential."""
    # Not a URL: two slashes at the beginning are followed by no host.
    bare, _, text = path.partition("?")
    query = parse_qsl(text, keep_blank_values=True)
    kept = [(key, value) for key, value in query if not _CREDENTIAL.search(key)]
    clean = [(mask_text(key)[0], mask_text(value)[0]) for key, value in kept]
    if clean != query:
        text = urlencode(clean, errors="replace")
    plain, secrets = mask_text(unquote(bare))
    if secrets:
        bare = quote(plain, errors="replace")
    if clean == query and not secrets:
        return path
    return f"{bare}?{text}" if text else bare


def redacted(value: Json) -> tuple[Json, int]:
    """``value`` with the secrets in its strings replaced, and how many there were."""
    redactor = Redactor()
    return redactor.clean(value), len(redactor.secrets)


def redacted_trace(trace: Trace) -> Trace:
    """A trace as it would be recorded: without secrets in requests and answers."""
    redactor = Redactor()
    held: dict[int, Json] = {}  # bodies that are one object in many requests

    def clean(item: Json) -> Json:
        if id(item) not in held:
            held[id(item)] = redactor.clean(item)
        return held[id(item)]

    def exchange(old: Exchange) -> Exchange:
        body = old.body and {
            key: [*map(clean, value)] if isinstance(value, list) else clean(value)
            for key, value in old.body.items()
        }
        answer = old.response and redactor.clean_response(old.response)
        return replace(old, body=body, response=answer)

    return replace(trace, exchanges=tuple(map(exchange, trace.exchanges)))


class Redactor:
    """Replaces secrets in JSON values, whatever they are encoded in.

    Attributes:
        secrets: found so far.

    Args:
        tokenizers: of the models whose ids can be read, for signatures of thinking and
            generated ids.
    """

    def __init__(self, tokenizers: Tokenizers = find_tokenizer) -> None:
        self.secrets: list[str] = []
        self._tokenizers = tokenizers

    def clean(self, value: Json) -> Json:
        """The value without secrets, the same object if it has none."""
        match value:
            case str():
                return self._text(value)
            case list():
                items = [self.clean(item) for item in value]
                same = all(map(operator.is_, items, value))
                return value if same else items
            case dict():
                return self._object(value)
        return value

    def clean_response(self, response: Response) -> Response:
        """An answer without secrets, in its text and in its ids."""
        before = len(self.secrets)
        message = self.clean(response.message)
        secrets = self.secrets[before:]
        generated = response.generated
        if generated:
            blocks = [b for b in _blocks(response.message) if b.get("signature")]
            generated = mask_generated(
                generated,
                self._tokenizers,
                signatures=[str(block["signature"]) for block in blocks],
                secrets=secrets,
                is_shown=not secrets and all(b.get("thinking") for b in blocks),
            )
        return replace(response, message=message, generated=generated)

    def _text(self, text: str) -> str:
        clean, secrets = mask_text(text)
        self.secrets += secrets
        if SIGNATURE_PREFIX in clean:
            clean = _SIGNATURE.sub(lambda match: self._signature(match[0]), clean)
        return text if clean == text else clean

    def _signature(self, signature: str, *, is_shown: bool = False) -> str:
        clean = mask_signature(signature, self._tokenizers, is_shown=is_shown)
        if clean != signature:
            self.secrets.append(signature)
        return clean

    def _object(self, value: dict[str, Json]) -> dict[str, Json]:
        clean: dict[str, Json] = {}
        for key, item in value.items():
            name = self._text(key)
            while name in clean:
                name += "-"  # two secrets of a length
            clean[name] = self._member(value, key, item)
        pairs = zip(clean.items(), value.items(), strict=True)
        same = all(a is b and x is y for (a, x), (b, y) in pairs)
        return value if same else clean

    def _member(self, whole: dict[str, Json], key: str, item: Json) -> Json:
        if not isinstance(item, str):
            return self.clean(item)
        if key == "signature" and item.startswith(SIGNATURE_PREFIX):
            text = whole.get("thinking")
            is_shown = isinstance(text, str) and text != "" and not mask_text(text)[1]
            return self._signature(item, is_shown=is_shown)
        if is_secret_entry(key, item):
            self.secrets.append(item)
            return placeholder(len(item))
        return self._text(item)


def _blocks(message: dict[str, Json] | None) -> list[dict[str, Json]]:
    content = message.get("content") if message else None
    blocks = content if isinstance(content, list) else []
    return [block for block in blocks if isinstance(block, dict)]


def _keeps(name: str) -> bool:
    listed = name in _HEADERS or name.startswith(_HEADER_PREFIX)
    return listed and not _CREDENTIAL.search(name)
