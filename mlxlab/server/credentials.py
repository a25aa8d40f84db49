"""Finds an endpoint's token, and checks which tokens are accepted."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from mlxlab.client.discovery import TOKEN_VARIABLE
from mlxlab.errors import ServerError, UntrustedError
from mlxlab.files import expanded
from mlxlab.ownership import read_own
from mlxlab.web.guard import is_loopback

__all__ = ["check_token", "find_token", "is_short"]

_MIN_TOKEN = 8
_MOST_BYTES = 2**12


def find_token(
    token: str | None = None,
    file: str | Path | None = None,
    environment: Mapping[str, str] = os.environ,
) -> str | None:
    """Return the chosen token: given directly, in a file, or in ``MLXLAB_TOKEN``.

    Args:
        token: takes precedence over the environment.
        file: takes precedence over the environment; holds only the token.
        environment: variables of this process.

    Returns:
        The token, None if none was chosen.

    Raises:
        ServerError: both ``token`` and ``file`` are given, or the file is empty,
            cannot be read, or may be read by other users.
    """
    if token is not None and file is not None:
        raise ServerError("--token and --token-file exclude each other; give one")
    if token is not None:
        return token
    if file is not None:
        return _read(expanded(file))
    return environment.get(TOKEN_VARIABLE) or None


def check_token(token: str, host: str | None = None) -> None:
    """Refuse a token that can be guessed or cannot be sent.

    Args:
        token: the token that clients send.
        host: address that the server binds. On loopback a token may be short, because
            no other machine can guess it.

    Raises:
        ServerError: the token is empty, too short, or not printable ASCII.
    """
    printable = token.isascii() and token.isprintable() and token == token.strip()
    short = is_short(token) and not (host and is_loopback(host))
    if not token or short or not printable:
        raise ServerError(
            f"token: give at least {_MIN_TOKEN} printable ASCII characters, or none "
            "to have one made"
        )


def is_short(token: str) -> bool:
    """Return whether a token is short enough to be guessed."""
    return len(token) < _MIN_TOKEN


def _read(path: Path) -> str:
    """Read a file that only this user can read.

    Raises:
        ServerError: others may read the file, or it is empty or unreadable.
    """
    try:
        data = read_own(path.absolute(), secret=True)
    except UntrustedError as error:
        raise ServerError(f"{error}; own it and chmod 600 it") from None
    except OSError as error:
        raise ServerError(f"{path}: {error.strerror}; give a file to read") from None
    token = data.decode(errors="replace").strip()
    if not token or len(data) > _MOST_BYTES:
        raise ServerError(f"{path}: give one line that holds the token alone")
    return token
