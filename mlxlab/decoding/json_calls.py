"""Calls as JSON between tags: ``{"name": ..., "arguments": {...}}``.

Qwen3, Hermes and other models write this format. The input is streamed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from mlxlab.decoding.calls import CallFormat, CallReader, Tools
from mlxlab.decoding.json_scanner import JsonScanner, Piece

__all__ = ["JsonCalls"]


@dataclass(frozen=True, slots=True)
class JsonCalls(CallFormat):
    """mlx-lm's ``json_tools``, streamed.

    A closing tag inside a string is content. Members other than name and arguments are
    read and ignored. A call without arguments has an empty object as its input.
    """

    start: str
    end: str

    def reader(self, tools: Tools) -> CallReader:
        return _JsonReader(self.end)

    def opening(self, name: str | None) -> str:
        opening = f'{self.start}\n{{"name":'
        if name is None:
            return opening
        return f'{opening} {json.dumps(name, ensure_ascii=False)}, "arguments":'


class _JsonReader(CallReader):
    def __init__(self, end: str) -> None:
        super().__init__()
        self._tag = end
        self._scanner = JsonScanner()
        self._name: list[str] = []
        self._complete: set[str] = set()

    def _step(self) -> bool:
        if self._scanner.done:
            self._read_tag()
            return False
        if not self._unread:
            return False
        piece, self._unread = self._scanner.step(self._unread)
        self.failed = self._scanner.failed
        if piece is not None:
            self._read_piece(piece)
        return True

    def _read_tag(self) -> None:
        if self._match(self._tag) is None:
            return
        if self.started:
            self._end()
        else:
            self.failed = True

    def _read_piece(self, piece: Piece) -> None:
        if piece.key in self._complete:
            self.failed = True
        elif piece.key == "name":
            self._read_name(piece)
        elif piece.key == "arguments":
            self._read_arguments(piece)

    def _read_name(self, piece: Piece) -> None:
        self._name.append(piece.json)
        if piece.last:
            self._complete.add(piece.key)
            self._start(json.loads("".join(self._name)))

    def _read_arguments(self, piece: Piece) -> None:
        if not self._opened and piece.json != "{":
            self.failed = True
            return
        if piece.last:
            self._complete.add(piece.key)
        self._write(piece.json[:-1] if piece.last else piece.json)

    def _closers(self) -> str:
        # Depth 1 is the call, depth 2 its input.
        return "" if "arguments" in self._complete else self._scanner.closers(2)
