"""Options that several commands have, each said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from mlxlab.errors import ConfigError
from mlxlab.sizes import format_size, parse_size
from mlxlab.strategies.base import CAPACITY
from mlxlab.traces.bundled import DEFAULT_TRACE

__all__ = [
    "AnyTraces",
    "Capacity",
    "Chunk",
    "Json",
    "Memory",
    "Model",
    "Plots",
    "Rules",
    "Strategies",
    "Text",
    "TokenBytes",
    "Traces",
    "parse_counts",
    "parse_sizes",
    "size_option",
]


def size_option(name: str, help_: str, **settings: Any) -> Any:
    """An option that takes bytes, written as ``16GiB``."""

    def read(text: str) -> int:
        try:
            return parse_size(str(text))  # a default is a number
        except ValueError as error:
            raise ConfigError(f"{name}: {error}") from None

    return typer.Option(name, help=help_, parser=read, metavar="SIZE", **settings)


Traces: TypeAlias = Annotated[
    list[str] | None,
    typer.Argument(help=f"Files, or names of recorded ones; {DEFAULT_TRACE} if none."),
]
AnyTraces: TypeAlias = Annotated[
    list[str] | None,
    typer.Argument(help=f"Recorded or hashed, or folders; {DEFAULT_TRACE} if none."),
]
Model: TypeAlias = Annotated[str, typer.Option(help="Folder or hub repository.")]
Strategies: TypeAlias = Annotated[
    str, typer.Option(help="name[:key=value,...][@rules],...")
]
Rules: TypeAlias = Annotated[
    str, typer.Option(help="all, none, names, or exceptions: -name,...")
]
Capacity: TypeAlias = Annotated[
    int | None, size_option("--capacity", "For each strategy that names none.")
]
Memory: TypeAlias = Annotated[
    int,
    size_option("--memory", "For keys and values.", show_default=format_size(CAPACITY)),
]
TokenBytes: TypeAlias = Annotated[
    int | None,
    size_option(
        "--token-bytes", "Keys and values of one token, if other than the model's."
    ),
]
Chunk: TypeAlias = Annotated[
    int, typer.Option(min=1, help="Tokens computed at a time.")
]
Text: TypeAlias = Annotated[
    str, typer.Option(help="Of changed blocks: redacted, full or none.")
]
Json: TypeAlias = Annotated[
    Path | None, typer.Option(help="Write what was found here.")
]
Plots: TypeAlias = Annotated[
    Path | None, typer.Option(help="Write plots, SVG files, into this folder.")
]


def parse_sizes(text: str, option: str) -> list[int]:
    """Bytes in a list such as ``1GiB,512MiB``.

    Raises:
        ConfigError: one that cannot be read.
    """
    try:
        return [parse_size(size) for size in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--{option}: {error}") from None


def parse_counts(text: str, option: str) -> list[int]:
    """Whole numbers of 1 or more in a list such as ``1,8``.

    Raises:
        ConfigError: one that cannot be read.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) for word in words):
        raise ConfigError(f"--{option}: {text!r}: give whole numbers >= 1, as in 1,8")
    return [int(word) for word in words]
