"""Settings and meters of a server, as JSON values for its live view."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlxlab.client.launch import environment_lines
from mlxlab.rendering.rules import RULES, find_rule, label_rules, parse_rules
from mlxlab.server.aliases import Aliases
from mlxlab.strategies import STRATEGIES

if TYPE_CHECKING:
    from mlxlab.server.server import Server

__all__ = ["Description"]


class Description:
    """Describes a server each time that it is called.

    Args:
        server: may have stopped.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._described: tuple[Aliases, dict[str, Any]] | None = None

    def __call__(self) -> dict[str, dict[str, Any]]:
        server = self._server
        is_running = server.is_running
        settings = self._settings() if is_running else self._last()
        return {
            "server": settings | {"is_running": is_running},
            "meters": server.meters(),
        }

    def _settings(self) -> dict[str, Any]:
        """Describe the aliases once: notices read files."""
        server, aliases = self._server, self._server.aliases
        if self._described is None or self._described[0] is not aliases:
            described = _describe_aliases(aliases) | {
                "url": server.url,
                "notices": server.notices,
                "environment": environment_lines(server.endpoint, token=False),
            }
            self._described = aliases, described
        return self._described[1]

    def _last(self) -> dict[str, Any]:
        """Return the settings before the end, as far as they are known."""
        known = self._described[1] if self._described else {}
        return known or _describe_aliases(self._server.aliases)


def _describe_aliases(aliases: Aliases) -> dict[str, Any]:
    alias = aliases.default
    active = parse_rules(alias.rules)
    kinds = {"exact": True, "approximate": False}
    return {
        "model": alias.model,
        "strategy": alias.strategy,
        "strategies": {
            kind: [name for name, s in STRATEGIES.items() if s.exact is exact]
            for kind, exact in kinds.items()
        },
        "rules": [
            {"name": name, "summary": find_rule(name).summary, "is_on": name in active}
            for name in dict.fromkeys((*RULES, *active))  # some are written by users
        ],
        "rules_label": label_rules(active),
    }
