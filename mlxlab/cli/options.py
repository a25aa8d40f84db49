"""Options that several commands have, each defined once.

Defaults are those of the Python verbs: an option that is not given is None here, and
the verb is called without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from mlxlab.cli.completion import (
    complete_layouts,
    complete_models,
    complete_rules,
    complete_strategies,
    complete_texts,
    complete_traces,
)
from mlxlab.cli.screen import STDOUT, Screen
from mlxlab.errors import ConfigError
from mlxlab.files import is_writable
from mlxlab.sizes import SIZE_FORM, read_size

if TYPE_CHECKING:
    from mlxlab.models.folder import ModelFolder
    from mlxlab.replay.cost_model import CostModel
    from mlxlab.traces.open import TraceLike

__all__ = [
    "AnyTraces",
    "Capacity",
    "Chunk",
    "Fill",
    "Json",
    "Layout",
    "Memory",
    "Model",
    "OneTrace",
    "Plots",
    "Rules",
    "Strategies",
    "Text",
    "Traces",
    "Users",
    "check_file",
    "check_folder",
    "find_folder",
    "given",
    "known_costs",
    "named_traces",
    "parse_counts",
    "parse_seconds",
    "parse_sizes",
    "size_option",
]


def size_option(name: str, help_: str) -> Any:
    """Return an option that takes a size such as ``16GiB``."""

    def read(text: str) -> int:
        return parse_sizes(text, name)[0]

    return typer.Option(name, help=help_, parser=read, metavar="SIZE")


Traces: TypeAlias = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="TRACE",
        help="Read these trace files or bundled traces; sessions by default.",
        autocompletion=complete_traces,
    ),
]
AnyTraces: TypeAlias = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="TRACE",
        help="Read these traces, recorded or hashed, or folders of them; sessions by "
        "default.",
        autocompletion=complete_traces,
    ),
]
OneTrace: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="TRACE",
        help="Read this trace file or bundled trace.",
        autocompletion=complete_traces,
    ),
]
Users: TypeAlias = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, help="Replay this many traces at a time into one cache."
    ),
]
Model: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Use this folder, GGUF file, hub repository or smollm2; tiny by default.",
        autocompletion=complete_models,
    ),
]
Strategies: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="SPEC,...",
        help="Use these strategies, each name[:key=value,...][@rules].",
        autocompletion=complete_strategies,
    ),
]
Rules: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="RULES",
        help="Apply these rules where a strategy names none: all (by default), none, "
        "names, exceptions such as -name, or all,name.",
        autocompletion=complete_rules,
    ),
]
Capacity: TypeAlias = Annotated[
    int | None,
    size_option("--capacity", "Let each strategy without a capacity hold this much."),
]
Memory: TypeAlias = Annotated[
    int | None,
    size_option("--memory", "Hold this much keys and values; 4GiB by default."),
]
Chunk: TypeAlias = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="Compute this many tokens at a time; 2048 by default."
    ),
]
Fill: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--fill",
        help="Assume system text and tools where a history lacks them, from the "
        "nearest recorded client.",
    ),
]
Text: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="FORM",
        help="Show the text of changed blocks: redacted (by default), full or none.",
        autocompletion=complete_texts,
    ),
]


def check_file(option: typer.CallbackParam, path: Path | None) -> Path | None:
    """Refuse a file that cannot be written, before any work.

    Raises:
        ConfigError: it is a folder, for example, or in one that is not this user's.
    """
    if path and path != STDOUT and not is_writable(path):
        name = option.opts[0]
        raise ConfigError(f"{name} {path}: give a file in a folder of yours")
    return path


def check_folder(option: typer.CallbackParam, path: Path | None) -> Path | None:
    """Refuse a folder in which no file can be written; see :func:`check_file`."""
    if path and not is_writable(path / "any"):
        name = option.opts[0]
        raise ConfigError(f"{name} {path}: give a folder in a folder of yours")
    return path


def _check_layout(text: str | None) -> str | None:
    """Refuse text that names no layout, before any work."""
    if text is not None:
        from mlxlab.models.geometry import read_layout

        read_layout(text, "--layout")
    return text


Json: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="FILE",
        callback=check_file,
        help="Write the result as JSON to this file; - prints it.",
    ),
]
Layout: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        callback=_check_layout,
        help="Count the bytes that this known model keeps, or a token's such as 96KiB, "
        "or with a checkpoint's such as 24KiB+74MiB; the model's by default.",
        autocompletion=complete_layouts,
    ),
]
Plots: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        callback=check_folder,
        help="Write plots to this folder, as SVG files.",
    ),
]


def given(**options: Any) -> dict[str, Any]:
    """Return the options that are given, for a verb that has defaults."""
    return {name: value for name, value in options.items() if value is not None}


def named_traces(
    traces: Sequence[str] | None, screen: Screen, fill: bool = False
) -> Sequence[TraceLike]:
    """Return the given traces, or the default one after a note that names it.

    Args:
        traces: the traces, if any are given.
        screen: where to note.
        fill: whether to open and fill them.
    """
    if traces and fill:
        from mlxlab.traces.open import open_traces

        return open_traces(traces, fill=True)
    if traces:
        return list(traces)
    from mlxlab.traces.bundled import DEFAULT_TRACE

    screen.note(f"No trace is named; this uses the bundled trace {DEFAULT_TRACE}.")
    return [DEFAULT_TRACE]


def find_folder(model: str | None) -> ModelFolder:
    """Find a model, the bundled one by default.

    Raises:
        ModelError: see :func:`mlxlab.find_model`.
    """
    from mlxlab.models.folder import find_model

    return find_model(**given(name=model))


def known_costs(
    folder: ModelFolder, *, chunk: int | None = None, layout: str | None = None
) -> CostModel | None:
    """Return the model's calibration on this machine, if there is one.

    Args:
        folder: the model.
        chunk: tokens computed at a time; None for the default.
        layout: of another model, which has no calibration; None for this one.
    """
    from mlxlab.replay.cost_model import CHUNK, recall_costs

    return None if layout else recall_costs(folder.digest, chunk or CHUNK)


def parse_sizes(text: str, option: str) -> list[int]:
    """Return the bytes of sizes such as ``1GiB,512MiB``.

    Raises:
        ConfigError: a size without a unit, or in another form.
    """
    try:
        return [read_size(size, option) for size in text.split(",")]
    except ConfigError:
        raise ConfigError(f"{option} {text!r}: give {SIZE_FORM}") from None


def parse_seconds(text: str, option: str) -> float:
    """Return the seconds of a text such as ``5s``, ``0.5`` or ``200ms``.

    Raises:
        ConfigError: another form, or not more than 0.
    """
    number, milli, _ = text.partition("ms")
    try:
        seconds = float(number.removesuffix("s")) / (1000 if milli else 1)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < inf:
        raise ConfigError(f"{option} {text!r}: give seconds > 0, as in 5s or 200ms")
    return seconds


def parse_counts(text: str, option: str) -> list[int]:
    """Return the whole numbers of 1 or more in a list such as ``1,8``.

    Raises:
        ConfigError: another form.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdecimal() and int(word) for word in words):
        raise ConfigError(f"{option} {text!r}: give whole numbers >= 1, as in 1,8")
    return [int(word) for word in words]
