"""Rules that users write: ``move:gitStatus...`` instead of a name.

The words behind the colon are those that a line begins with. The rule applies to the
line; three dots make it reach to the next heading, or to the end of the block.
"""

from __future__ import annotations

from functools import partial

from mlxlab.errors import RuleError
from mlxlab.rendering.rules.base import Effect, Rule
from mlxlab.rendering.rules.passages import Passages, find_lines, find_sections

__all__ = ["RESERVED", "read_written"]

RESERVED = ",+@"
"""Characters that separate rules and cannot be part of one."""

_ON = "..."
_EFFECTS = {"move": Effect.MOVED, "drop": Effect.LEFT_OUT}


def read_written(name: str) -> Rule | None:
    """Return the rule that a text describes; None if it describes none.

    Raises:
        RuleError: there are no words behind the colon, or a reserved character.
    """
    action, colon, words = name.partition(":")
    if not colon or action not in _EFFECTS:
        return None
    begins = words.removesuffix(_ON).strip()
    if not begins or any(char in begins for char in RESERVED):
        raise RuleError(
            f"rule {name!r}: give the first words of a line after the :, without "
            f"any of {' '.join(RESERVED)}"
        )
    find = find_sections if words.endswith(_ON) else find_lines
    effect = _EFFECTS[action]
    return Rule(
        name=name,
        summary=f"{action} text that begins with {begins!r}",
        place="text before the first answer",
        reason="the user wrote it",
        effect=effect,
        default=False,
        apply=Passages(partial(find, begins=begins), moved=effect is Effect.MOVED),
    )
