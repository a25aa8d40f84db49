"""Anonymises traces: words are replaced, everything a replay measures stays.

Structure, equality, times, models and numeric parameters stay. Every string, and every
name that a tool or its user chose, is replaced. For the bundled tokenizer, all blocks
keep their token counts and all prompts their common prefixes. Values are kept only if
they are known to be the API's own. Punctuation, symbols, white space and the lengths of
words in tokens stay: this hides the words, but not that an agent edited a file, nor
which public prompt it sent.

Counts and prefixes stay for the form in which templates normally print texts: calls and
definitions of tools as JSON, all else unchanged. A text that a server prints as JSON
keeps them too, except for words directly after a backslash.
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
from tqdm.auto import tqdm

from mlxlab.errors import TraceError
from mlxlab.models.tiny import PATH
from mlxlab.traces.anonymize.bpe import BpeTokenizer
from mlxlab.traces.anonymize.substitutes import Substitutes
from mlxlab.traces.anonymize.substitution import Passage, Place, Substitution
from mlxlab.traces.open import open_one
from mlxlab.traces.schema import HeaderLine, Json
from mlxlab.traces.trace import Exchange, Trace

__all__ = ["anonymize"]

Replace: TypeAlias = Callable[[Passage], str]

#: Keys whose values are the API's own and stay.
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
#: What rules look for in texts.
_MARKERS = re.compile(
    r"(^gitStatus:|^<total_tokens>| tokens left</total_tokens>|^Token usage:"
    r"|(?<=[0-9]) remaining$)",
    re.MULTILINE,
)
_ID_PREFIX = re.compile("(?:(?:srv|mcp)?toolu|msg|req|call|file|container)_|")

_ACCOUNT = frozenset({"user", "account", "session"})
_HEX_ID = re.compile("[0-9a-f-]*")
_HEX_DIGITS = "0123456789abcdef"
_SHORT = 8

#: Keys of JSON schema. The values of the first map names of the tool to schemas, those
#: of the second are data of the tool, those of the third belong to the standard.
_SCHEMA_MAPS = frozenset(
    {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}
)
_SCHEMA_DATA = frozenset({"enum", "const", "default", "examples", "example"})
_SCHEMA_KEPT = frozenset({"type", "$schema", "format", "contentEncoding"})
_REFERENCE_KEPT = _SCHEMA_MAPS | {"", "#", "items", "allOf", "anyOf", "oneOf"}


def anonymize(
    trace: Trace | str | Path, *, seed: bytes | None = None, progress: bool = True
) -> Trace:
    """Return a trace whose words and names are replaced.

    Args:
        trace: a recorded trace, its file, or the name of a bundled trace.
        seed: for tests. The replacement can be undone with the seed, so by default it
            is random and thrown away.
        progress: whether to show a bar.

    Raises:
        TraceError: the trace cannot be read, a body is nested too deeply, or there are
            too many different words.
    """
    trace = open_one(trace)
    key = secrets.token_bytes(32) if seed is None else seed
    pseudonyms = _Pseudonyms(key)
    passages: dict[Passage, None] = {}

    def collect(passage: Passage) -> str:
        passages[passage] = None
        return passage.text

    try:
        _Rewriter(collect, pseudonyms).trace(trace, "collecting words", progress)
        tokenizer = Tokenizer.from_file(str(PATH / "tokenizer.json"))
        words = Substitution(Substitutes(BpeTokenizer(tokenizer)), passages, key)
        return _Rewriter(words.replace, pseudonyms).trace(
            trace, "replacing words", progress
        )
    except RecursionError:
        raise TraceError(
            f"{trace.name}: a body is nested too deeply; give JSON of moderate depth"
        ) from None


class _Rewriter:
    """Rebuilds exchanges with other strings, by the keys of the API."""

    def __init__(self, replace: Replace, pseudonyms: _Pseudonyms) -> None:
        self._replace = replace
        self._pseudonym = pseudonyms
        #: Rebuilt objects by key and id. Requests share blocks before and after.
        self._rebuilt: dict[tuple[str, int], Json] = {}

    def trace(self, trace: Trace, task: str, progress: bool) -> Trace:
        header = {
            "recorder": trace.header.recorder,
            "created": trace.header.created,
            "skipped": dict(trace.skipped),
            "filled": trace.header.filled,
            "anonymized": True,
        }
        waiting = tqdm(trace.exchanges, desc=task, disable=not progress)
        exchanges = tuple(map(self._exchange, waiting))
        header_line = HeaderLine.model_validate(header)
        return Trace(trace.name, exchanges, header_line)

    def _exchange(self, exchange: Exchange) -> Exchange:
        response = exchange.response
        if response is not None:
            message = self._value("message", response.message)
            told = response.told and response.told.model_copy(update={"learned": None})
            # Generated ids can be decoded to the text; what was learned names tools.
            response = replace(response, message=message, generated=None, told=told)
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
            # Product and version stay; a comment may hold anything.
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
        if (key, id(value)) not in self._rebuilt:
            rebuilt = {k: self._value(k, v) for k, v in value.items()}
            self._rebuilt[key, id(value)] = rebuilt
        return self._rebuilt[key, id(value)]

    def _string(self, key: str, value: str) -> str:
        place = _PLACES.get(key, Place.VALUE)
        if place is Place.TEXT:
            header = value.startswith(_ATTRIBUTION)
            parts = (_ATTRIBUTION_KEYS if header else _MARKERS).split(value)
            parts[::2] = [self._replace(Passage(p, Place.TEXT)) for p in parts[::2]]
            return "".join(parts)
        prefix = _ID_PREFIX.match(value) if key == "id" or key.endswith("_id") else None
        if prefix:
            rest = Passage(value[prefix.end() :], Place.VALUE)
            return prefix.group() + self._replace(rest)
        return self._replace(Passage(value, place))

    def _account(self, value: str) -> str:
        """Replace the ids in ``metadata.user_id``, an object or joined by ``_``."""
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
        """Rebuild the input of a tool, which has names and data only."""
        match value:
            case dict():
                return {self._name(k): self._data(v) for k, v in value.items()}
            case list():
                return [self._data(item) for item in value]
            case str():
                return self._replace(Passage(value, Place.VALUE))
            case bool() | None:
                return value
        replaced = self._replace(Passage(repr(value), Place.NUMBER))
        number = type(value)(replaced)
        # Python may print other digits for the float; then the number stays.
        return number if repr(number) == replaced else value

    def _schema(self, value: Json) -> Json:
        match value:
            case dict():
                return {k: self._keyword(k, v) for k, v in value.items()}
            case list():
                return [self._schema(item) for item in value]
            case str():
                return self._replace(Passage(value, Place.VALUE))
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
        return self._replace(Passage(name, Place.NAME))


class _Pseudonyms:
    """Replaces ids outside of prompts, equal ids by equal ones of the same shape."""

    def __init__(self, key: bytes) -> None:
        self._key = hashlib.blake2b(key, digest_size=32, person=b"pseudonyms").digest()

    def __call__(self, id: str) -> str:
        secret = hashlib.shake_256(self._key + id.encode(errors="replace"))
        if 0 < len(id) < _SHORT:
            # Two short ids might get one pseudonym of that length.
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
