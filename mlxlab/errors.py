"""Exceptions that callers of mlxlab may want to catch.

Each message is one line: what is wrong, where, and what would be accepted. The command
line prints it and exits with code 2.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "OUT_OF_MEMORY",
    "ConfigError",
    "IntegrityError",
    "MemoryFullError",
    "MissingExtraError",
    "MlxlabError",
    "ModelError",
    "NotebookError",
    "RequestError",
    "RuleError",
    "ScriptError",
    "ServerError",
    "StrategyError",
    "TraceError",
    "UnknownModelError",
    "UntrustedError",
    "did_you_mean",
]


#: Says what Python's MemoryError does not.
OUT_OF_MEMORY = "out of memory: the system gives no more; free some, or use less"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'paged'?`` for the known name that is closest.

    Empty if no known name is close.
    """
    from difflib import get_close_matches  # most runs need no suggestion

    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


class MlxlabError(Exception):
    """Base of all errors that mlxlab raises on purpose."""


class MissingExtraError(MlxlabError, ImportError):
    """A package of an extra, such as ``mlxlab[plots]``, that is not installed."""


class StrategyError(MlxlabError):
    """An unknown strategy, or parameters that it does not accept."""


class RuleError(MlxlabError):
    """An unknown canonicalisation rule."""


class ModelError(MlxlabError):
    """A model that cannot be found or loaded, or a prompt beyond its window."""


class NotebookError(MlxlabError):
    """Notebooks that cannot be copied."""


class RequestError(MlxlabError):
    """A request that is not a valid Messages request."""


class MemoryFullError(MlxlabError):
    """A request for which running ones leave no memory; it may be sent again."""


class TraceError(MlxlabError):
    """A trace or capture that cannot be read or written."""


class ScriptError(MlxlabError):
    """A script of answers that cannot be read."""


class ConfigError(MlxlabError):
    """A settings file, such as model_aliases.json, that cannot be used."""


class ServerError(MlxlabError):
    """An endpoint that cannot be started, or that is not running."""


class UnknownModelError(MlxlabError):
    """A model id that matches no alias."""


class UntrustedError(MlxlabError, OSError):
    """A cached file that another user may have written; it is not used.

    Args:
        errno: None.
        strerror: the reason.
        filename: path of the file.
    """

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


class DiskError(MlxlabError):
    """A folder of stored keys and values, or a file of it, that cannot be used."""


class IntegrityError(MlxlabError):
    """An inconsistent strategy or store: a bug in mlxlab or in a plug-in."""
