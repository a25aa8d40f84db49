"""Completes the lines of magics: options, and the names that they take."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from typer.core import TyperCommand

__all__ = ["complete_line"]


def complete_line(
    commands: Mapping[str, TyperCommand],
    text: str,
    symbol: str,
    options: Mapping[str, Collection[str]],
) -> list[str]:
    """Return the completions of ``symbol``, the end of a magic's line.

    Args:
        commands: by the names of their magics.
        text: the line up to the cursor.
        symbol: the part of the last word that IPython replaces.
        options: names of options, for magics whose command has other ones.
    """
    match = re.search(rf"%({'|'.join(commands)})\s(?:.*\s)?(\S*)$", text, re.DOTALL)
    if match is None:
        return []
    command, word = commands[match[1]], match[2]
    before = text[: match.start(2)].split()
    names = options.get(match[1]) or [o for own in command.params for o in own.opts]
    found = _complete(command, names, before[-1], word)
    # IPython breaks words at commas, colons and equals signs.
    return [own[len(word) - len(symbol) :] for own in found]


def _complete(
    command: TyperCommand, names: Collection[str], previous: str, word: str
) -> list[str]:
    options = {name: own for own in command.params for name in own.opts}
    name, equals, value = word.partition("=")
    if equals and name in options:
        return [f"{name}={own}" for own in _values(command, options[name], value)]
    option = options.get(previous)
    if option is not None and not getattr(option, "is_flag", False):
        return _values(command, option, word)
    if word.startswith("-"):
        return [own for own in names if own.startswith(word)]
    arguments = [own for own in command.params if own.param_type_name == "argument"]
    return _values(command, arguments[0], word) if arguments else []


def _values(command: TyperCommand, parameter: Any, word: str) -> list[str]:
    context = command.make_context(command.name, [], resilient_parsing=True)
    return [item.value for item in parameter.shell_complete(context, word)]
