"""Splits a request into bodies that repeat and the rest, and joins them again.

``cache_control`` moves at every turn, so it is removed from the bodies and kept as
``(path, value)`` pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from mlxlab.traces.schema import Json, Path

__all__ = ["LISTS", "Parts", "join", "split"]

#: The top-level keys whose items repeat from request to request.
LISTS = ("system", "tools", "messages")
_KEY = "cache_control"

Marks: TypeAlias = tuple[tuple[Path, Json], ...]


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a request body.

    Attributes:
        params: the keys that are not in ``lists``, in order.
        lists: bodies by key of :data:`LISTS`; a system text may be one string.
        cache_control: the cache markers removed from the bodies, by path into the
            request.
    """

    params: Mapping[str, Json]
    lists: Mapping[str, Sequence[Json] | str]
    cache_control: Marks


def split(body: Mapping[str, Json]) -> Parts:
    """Return the parts of ``body``, which is not changed."""
    lists = {key: body[key] for key in LISTS if _repeats(key, body.get(key))}
    marks = tuple(_marks(lists))
    bare = _edited(lists, [path for path, _ in marks])
    params = {key: value for key, value in body.items() if key not in lists}
    return Parts(params, bare, marks)


def join(parts: Parts) -> dict[str, Json]:
    """Return the request that was split; bodies are shared, not copied."""
    body: dict[str, Json] = {**parts.params, **parts.lists}
    for path, value in parts.cache_control:
        body = _with_mark(body, path, value)
    return body


def _repeats(key: str, value: Json) -> bool:
    return isinstance(value, list) or (key == "system" and isinstance(value, str))


def _marks(lists: Mapping[str, Json]) -> Iterator[tuple[Path, Json]]:
    for key, value in lists.items():
        if isinstance(value, list):
            yield from _marks_in((key,), value)


def _marks_in(path: Path, blocks: list[Json]) -> Iterator[tuple[Path, Json]]:
    for index, block in enumerate(blocks):
        if not isinstance(block, dict):
            continue
        at = (*path, index)
        # Only a last key is removed, so that joining restores the key order.
        if block and next(reversed(block)) == _KEY:
            yield at, block[_KEY]
        content = block.get("content")
        if isinstance(content, list):
            yield from _marks_in((*at, "content"), content)


def _edited(lists: Mapping[str, Json], paths: Sequence[Path]) -> dict[str, Json]:
    edited: Json = dict(lists)
    for path in paths:
        edited = _replaced(edited, path, _without_mark)
    return dict(edited)


def _with_mark(body: dict[str, Json], path: Path, value: Json) -> dict[str, Json]:
    return dict(_replaced(body, path, lambda block: {**block, _KEY: value}))


def _without_mark(block: Mapping[str, Json]) -> dict[str, Json]:
    return {key: value for key, value in block.items() if key != _KEY}


def _replaced(node: Json, path: Path, change: Json) -> Json:
    """Return ``node`` with the node at ``path`` changed; only nodes on it are copied.

    Raises:
        KeyError, IndexError, TypeError: there is no node at ``path``.
    """
    if not path:
        return change(node)
    copy: Json = dict(node) if isinstance(node, dict) else list(node)
    copy[path[0]] = _replaced(node[path[0]], path[1:], change)
    return copy
