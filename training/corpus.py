"""The training text of the bundled tokenizer: the running interpreter's own library.

Prompts of coding agents are prose, JSON schemas and code. So the library's sources
occur three times: as code, as the prose of their docstrings, and as JSON tool
definitions made of the docstrings. No file outside the library's folder is read.
"""

from __future__ import annotations

import ast
import json
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias
from zlib import crc32

__all__ = ["read_corpus", "read_prose"]

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)

#: Excluded from the library: tests, bundled packages, code point tables, generated
#: data.
_LEFT_OUT = frozenset(
    {"__phello__", "encodings", "ensurepip", "site-packages", "test", "tests"}
    | {"idle_test", "lib2to3", "turtledemo", "dist-packages"}
)


def read_corpus() -> Iterator[str]:
    """Yield the texts of the standard library, in an order set by its version."""
    for file in _files():
        yield from _texts(file.read_text(encoding="utf-8"))


def read_prose(*, held_out: bool) -> Iterator[str]:
    """Yield passages of at most 30 lines, from one file in 20 or from all others."""
    for file in _files():
        if (crc32(file.name.encode()) % 20 == 0) is not held_out:
            continue
        source, *others = _texts(file.read_text(encoding="utf-8"))
        lines = source.splitlines()
        yield from ("\n".join(lines[i : i + 30]) for i in range(0, len(lines), 60))
        yield from (text[:1000] for text in others if len(text) > 80)


def _files() -> Iterator[Path]:
    library = Path(sysconfig.get_path("stdlib"))
    for file in sorted(library.rglob("*.py")):
        path = file.relative_to(library)
        if _LEFT_OUT.isdisjoint(path.parts) and not path.name.startswith("_sysconfig"):
            yield file


def _texts(source: str) -> Iterator[str]:
    yield source
    with warnings.catch_warnings():
        # Old sources contain invalid escapes on purpose.
        warnings.simplefilter("ignore")
        tree = ast.parse(source)
    for node in ast.walk(tree):
        if not isinstance(node, _DOCUMENTED):
            continue
        if docstring := ast.get_docstring(node):
            yield docstring
            if isinstance(node, Function):
                yield json.dumps(_tool(node, docstring), ensure_ascii=False)
    if "topics" in source[:200]:
        yield from _strings(tree)


def _tool(function: Function, docstring: str) -> dict[str, object]:
    """Return a tool definition that describes ``function``."""
    arguments = [a.arg for a in function.args.args if a.arg != "self"]
    properties = {name: {"type": "string", "description": name} for name in arguments}
    return {
        "type": "function",
        "function": {
            "name": function.name,
            "description": docstring,
            "parameters": {
                "type": "object",
                "properties": properties,
                "required": arguments,
                "additionalProperties": False,
            },
        },
    }


def _strings(tree: ast.Module) -> Iterator[str]:
    """Yield string constants, such as the language reference in ``pydoc``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
            yield json.dumps(node.value, ensure_ascii=False)
