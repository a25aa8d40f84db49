"""Writes sub-agents of Claude Code that run under an alias: ``.claude/agents/NAME.md``.

The client sends the ``model:`` of such a file unchanged. So a user or the main agent
chooses an alias by choosing a sub-agent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlxlab.client.discovery import DEFAULT
from mlxlab.errors import ConfigError
from mlxlab.files import written
from mlxlab.server.aliases import Alias, Aliases

__all__ = ["write_agents"]

_FOLDER = Path(".claude/agents")
_MARK = "# written by mlxlab, "


@dataclass(frozen=True, slots=True)
class _Role:
    """When the main agent calls a sub-agent, and the sub-agent's instructions."""

    description: str
    prompt: str


_ROLES: Mapping[str, _Role] = {
    "default": _Role(
        description="Any task of several steps that fits none of the other agents.",
        prompt="Work on the task you are given until it is done. Check the result "
        "before you report it.",
    ),
    "fast": _Role(
        description="Small, clear tasks where speed counts: find a file, look up a "
        "name, make one obvious edit.",
        prompt="Do the one thing you are asked for, by the shortest way, and stop.",
    ),
    "background": _Role(
        description="Long routine work without hurry: read many files, run the "
        "tests, collect and sum up the results.",
        prompt="Work through the task steadily and without questions. Change only what "
        "you are told to change.",
    ),
    "think": _Role(
        description="Hard problems that want thought before action: a fault whose "
        "cause is unknown, a design with several ways to go, a review.",
        prompt="Collect the facts before you decide. Weigh more than one "
        "explanation, test the likely one, and name the evidence against it.",
    ),
}
_REPORT = "Only your last message is read: give the result and the files concerned."


def write_agents(folder: Path, aliases: Aliases, *, force: bool = False) -> list[Path]:
    """Write one sub-agent per alias below ``folder``, a project or the home folder.

    Args:
        folder: gets ``.claude/agents/NAME.md``.
        aliases: the aliases that the sub-agents run under.
        force: whether to replace files that mlxlab did not write, or that were edited.

    Returns:
        The files, in the aliases' order.

    Raises:
        ConfigError: a file would be lost, or cannot be written. In the first case
            nothing is written.
    """
    agents = {
        folder / _FOLDER / f"{name}.md": _agent(name, alias)
        for name, alias in zip(aliases.names(), aliases.values(), strict=True)
    }
    try:
        for path in agents:
            if path.exists() and not force and not _is_ours(path.read_text("utf-8")):
                raise ConfigError(
                    f"{path}: not written by mlxlab, or edited since; move it, or give "
                    "--force to replace it"
                )
        for path, text in agents.items():
            with written(path) as file:
                file.write(text.encode())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{folder / _FOLDER}: {error}; give another folder") from None
    return list(agents)


def _agent(name: str, alias: Alias) -> str:
    role = _ROLES.get(name) or _Role(
        f"Tasks for the model {alias.model}.", _ROLES[DEFAULT].prompt
    )
    # A JSON string is a YAML string, whatever it contains.
    front = (
        f"name: {name}\ndescription: {json.dumps(role.description)}\nmodel: {name}\n"
    )
    rest = f"{front}---\n\n{role.prompt} {_REPORT}\n"
    return f"---\n{_MARK}{_digest(rest)}\n{rest}"


def _is_ours(text: str) -> bool:
    """Return whether mlxlab wrote a file and it was not edited since."""
    opening, _, rest = text.partition(_MARK)
    digest, _, rest = rest.partition("\n")
    return opening == "---\n" and digest == _digest(rest)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
