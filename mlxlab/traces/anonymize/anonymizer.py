"""Anonymises traces: words go, what a replay measures stays.

Shape, equality, times, models and numbers of parameters stay. Every string and every
name that a tool or its user chose is replaced, in such a way that for the bundled
tokenizer all blocks keep their token counts and all prompts their common prefixes.
What is not known to be the API's own is replaced. Punctuation, symbols, white space
and the lengths of words in tokens stay: this hides what was said, not that an agent
edited a file or what a public prompt looks like.

Counts and prefixes are kept for the form in which texts are normally printed, calls
and definitions of tools as JSON, all else as it is. Text that a server prints as JSON
keeps them but for words right behind a backslash.

Knows the wire by its keys alone; nothing of templates and rules.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from tokenizers import Tokenizer

from mlxlab.errors import TraceError
from mlxlab.models.tiny import PATH
from mlxlab.traces.anonymize.bpe import Cutter
from mlxlab.traces.anonymize.substitutes import Candidates
from mlxlab.traces.anonymize.substitution import Passage, Place, Substitution
from mlxlab.traces.open import open_one
from mlxlab.traces.schema import HeaderLine, Json
from mlxlab.traces.trace import Exchange, Trace

__all__ = ["anonymize"]

Replace: TypeAlias = Callable[[Passage], str]

#: Keys whose values are the API's own, whatever they are.
_KEPT = frozenset(
    {
        *("type", "role", "model", "cache_control", "stop_reason", "service_tier"),
        *("effort", "display", "keep", "media_type", "betas", "anthropic_beta"),
        *("anthropic_version", "speed", "inference_geo", "allowed_callers"),
    }
)
_PLACES = {
    **dict.fromkeys(("text", "thinking", "content", "system"), Place.TEXT),
    **dict.fromkeys(("name", "tool_name", "server_name"), Place.NAME),
    "exclude_tools": Place.NAME,
}
_HEADERS = frozenset({"anthropic-version", "anthropic-beta", "content-type", "x-app"})
_PATHS = re.compile(
    r"/v1/messages(/count_tokens)?(\?beta=true)?$|/v1/models(\?limit=\d+)?$|/api/hello$"
)
_ATTRIBUTION = "x-anthropic-billing-header:"
_ATTRIBUTION_KEYS = re.compile(rf"({_ATTRIBUTION}|\bcc_version=|\bcc_entrypoint=)")
_ID_PREFIX = re.compile("(?:(?:srv|mcp)?toolu|msg|req|call|file|container)_|")

_ACCOUNT = frozenset({"user", "account", "session"})
_HEX_ID = re.compile("[0-9a-f-]*")
_HEX_DIGITS = "0123456789abcdef"
_SHORT = 8

#: JSON schema: keys whose value maps the tool's own names to schemas, keys whose
#: value is data of the tool's, keys whose value is the standard's.
_SCHEMA_MAPS = frozenset(
    {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}
)
_SCHEMA_DATA = frozenset({"enum", "const", "default", "examples", "example"})
_SCHEMA_KEPT = frozenset({"type", "$schema", "format", "contentEncoding"})
_REFERENCE_KEPT = _SCHEMA_MAPS | {"", "#", "items", "allOf", "anyOf", "oneOf"}


def anonymize(trace: str | Path | Trace, *, seed: bytes | None = None) -> Trace:
    """Replace what can be read in a trace.

    Args:
        trace: a recorded trace: its name, its path, or the opened trace.
        seed: for tests. Who knows it can undo the replacement, so by default it is
            drawn anew and thrown away.

    Raises:
        TraceError: bodies nested too deeply, or too many different words.
    """
    trace = open_one(trace)
    key = secrets.token_bytes(32) if seed is None else seed
    pseudonyms = _Pseudonyms(key)
    passages: dict[Passage, None] = {}

    def collect(passage: Passage) -> str:
        passages[passage] = None
        return passage.text

    try:
        _Wire(collect, pseudonyms).trace(trace)
        tokenizer = Tokenizer.from_file(str(PATH / "tokenizer.json"))
        words = Substitution(Candidates(Cutter(tokenizer)), passages, key)
        return _Wire(words.replace, pseudonyms).trace(trace)
    except RecursionError:
        raise TraceError(
            f"{trace.name}: a body is nested too deeply; give JSON of moderate depth"
        ) from None


class _Wire:
    """Walks exchanges and rebuilds them with other strings."""

    def __init__(self, swap: Replace, pseudonyms: _Pseudonyms) -> None:
        self._swap = swap
        self._pseudonym = pseudonyms
        #: A block of several requests is often one object, and then stays one.
        self._done: dict[tuple[str, int], Json] = {}

    def trace(self, trace: Trace) -> Trace:
        header = {
            "recorder": trace.header.recorder,
            "created": trace.header.created,
            "skipped": dict(trace.skipped),
            "anonymized": True,
        }
        exchanges = tuple(map(self._exchange, trace.exchanges))
        header_line = HeaderLine.model_validate(header)
        return Trace(trace.name, exchanges, header_line)

    def _exchange(self, exchange: Exchange) -> Exchange:
        response = exchange.response
        if response is not None:
            message = self._value("message", response.message)
            # Ids can be read back.
            response = replace(response, message=message, generated=None)
        return replace(
            exchange,
            path=self._path(exchange.path),
            headers={k: self._header(k, v) for k, v in exchange.headers.items()},
            body=self._value("body", exchange.body),
            response=response,
        )

    def _path(self, path: str) -> str:
        known = _PATHS.search(path)
        return known.group() if known else self._pseudonym(path)

    def _header(self, name: str, value: str) -> str:
        if name.lower() == "user-agent":
            # Product and version; a comment may hold anything.
            return value.partition(" ")[0]
        return value if name.lower() in _HEADERS else self._pseudonym(value)

    def _value(self, key: str, value: Json) -> Json:
        if key in _KEPT:
            return value
        match key, value:
            case "input" | "input_examples", _:
                return self._data(value)
            case "input_schema" | "schema", _:
                return self._schema(value)
            case _, dict():
                return self._object(key, value)
            case _, list():
                return [self._value(key, item) for item in value]
            case "user_id", str():
                return self._account(value)
            case _, str():
                return self._string(key, value)
        return value

    def _object(self, key: str, value: dict[str, Json]) -> Json:
        if (key, id(value)) not in self._done:
            rebuilt = {k: self._value(k, v) for k, v in value.items()}
            self._done[key, id(value)] = rebuilt
        return self._done[key, id(value)]

    def _string(self, key: str, value: str) -> str:
        if value.startswith(_ATTRIBUTION):
            parts = _ATTRIBUTION_KEYS.split(value)
            parts[::2] = [self._swap(Passage(p, Place.TEXT)) for p in parts[::2]]
            return "".join(parts)
        prefix = _ID_PREFIX.match(value) if key == "id" or key.endswith("_id") else None
        if prefix:
            rest = Passage(value[prefix.end() :], Place.VALUE)
            return prefix.group() + self._swap(rest)
        return self._swap(Passage(value, _PLACES.get(key, Place.VALUE)))

    def _account(self, value: str) -> str:
        """The ids in ``metadata.user_id``, a JSON object or words joined by ``_``."""
        try:
            ids = json.loads(value)
        except ValueError:
            ids = None
        if isinstance(ids, dict):
            named = {name: self._pseudonym(str(id)) for name, id in ids.items()}
            return json.dumps(named, separators=(",", ":"))
        parts = value.split("_")
        return "_".join(p if p in _ACCOUNT else self._pseudonym(p) for p in parts)

    def _data(self, value: Json) -> Json:
        """What a tool is called with: its names and data only."""
        match value:
            case dict():
                return {self._name(k): self._data(v) for k, v in value.items()}
            case list():
                return [self._data(item) for item in value]
            case str():
                return self._swap(Passage(value, Place.VALUE))
            case bool() | None:
                return value
        swapped = self._swap(Passage(repr(value), Place.NUMBER))
        number = type(value)(swapped)
        # Not every sequence of digits is the shortest name of a float.
        return number if repr(number) == swapped else value

    def _schema(self, value: Json) -> Json:
        match value:
            case dict():
                return {k: self._keyword(k, v) for k, v in value.items()}
            case list():
                return [self._schema(item) for item in value]
            case str():
                return self._swap(Passage(value, Place.VALUE))
        return value

    def _keyword(self, keyword: str, value: Json) -> Json:
        if keyword in _SCHEMA_KEPT:
            return value
        if keyword in _SCHEMA_DATA:
            return self._data(value)
        match keyword, value:
            case "required" | "dependentRequired", _:
                return self._names(value)
            case "$ref", str():
                parts = value.split("/")
                kept = _REFERENCE_KEPT
                return "/".join(p if p in kept else self._name(p) for p in parts)
            case _, dict() if keyword in _SCHEMA_MAPS:
                return {self._name(k): self._schema(v) for k, v in value.items()}
        return self._schema(value)

    def _names(self, value: Json) -> Json:
        match value:
            case dict():
                return {self._name(k): self._names(v) for k, v in value.items()}
            case list():
                return [self._names(item) for item in value]
        return self._name(value) if isinstance(value, str) else value

    def _name(self, name: str) -> str:
        return self._swap(Passage(name, Place.NAME))


class _Pseudonyms:
    """Replaces ids that no prompt holds, equal ones alike, by ids of the same shape."""

    def __init__(self, key: bytes) -> None:
        self._key = hashlib.blake2b(key, digest_size=32, person=b"pseudonyms").digest()

    def __call__(self, id: str) -> str:
        secret = hashlib.shake_256(self._key + id.encode(errors="replace"))
        if 0 < len(id) < _SHORT:
            # As short as it is, it might become equal to another one.
            return secret.hexdigest(_SHORT // 2)
        is_hex = _HEX_ID.fullmatch(id) is not None
        pairs = zip(id, secret.digest(len(id)), strict=True)
        return "".join(_like(char, byte, is_hex) for char, byte in pairs)


def _like(char: str, byte: int, is_hex: bool) -> str:
    if not char.isalnum():
        return char
    if is_hex:
        return _HEX_DIGITS[byte % 16]
    if char.isdigit():
        return str(byte % 10)
    letter = chr(ord("a") + byte % 26)
    return letter.upper() if char.isupper() else letter
