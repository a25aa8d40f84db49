"""Finds running endpoints through one small file per endpoint.

The files hold tokens, so only their owner may read them. A file that another user can
have written is refused.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, PositiveInt, StringConstraints, TypeAdapter, ValidationError

from mlxlab.errors import ServerError
from mlxlab.files import expanded, write_private
from mlxlab.ownership import read_own

__all__ = [
    "DEFAULT",
    "FOLDER",
    "TIERS",
    "TOKEN_VARIABLE",
    "Endpoint",
    "find",
    "publish",
    "running",
    "withdraw",
]

#: Notebooks and terminals may have different runtime folders, so this is not one.
FOLDER = Path("~/.cache/mlxlab/endpoints")

#: The alias for clients that name no model.
DEFAULT = "default"

#: Environment variable that holds a server's token.
TOKEN_VARIABLE = "MLXLAB_TOKEN"

#: Kinds of model that clients ask for instead of a model id.
TIERS = ("opus", "sonnet", "haiku", "fable")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A running endpoint, as clients see it.

    Attributes:
        url: base URL.
        token: the token that clients send; never shown.
        window: longest sequence in tokens.
        aliases: model ids that are answered.
        tiers: the alias for each of :data:`TIERS`.
        model: of the default alias; so are the next two. Empty if not known.
        strategy: as it is written.
        rules: as they are written.
        pid: id of the endpoint's process.
        started: Unix seconds.
    """

    url: Annotated[str, StringConstraints(pattern=r"^https?://[^\s/]+:[0-9]+$")]
    token: str = field(repr=False)
    window: PositiveInt
    aliases: tuple[str, ...]
    tiers: dict[str, str] = field(default_factory=dict)
    model: str = ""
    strategy: str = ""
    rules: str = ""
    pid: Annotated[int, Field(gt=0)] = field(default_factory=os.getpid)
    started: float = field(default_factory=time.time)

    @property
    def port(self) -> int:
        """TCP port; unique among a machine's endpoints."""
        port = urlsplit(self.url).port
        assert port is not None
        return port


_SCHEMA = TypeAdapter(Endpoint)


def publish(endpoint: Endpoint, folder: Path = FOLDER) -> None:
    """Write the file of an endpoint, in place of an earlier one at its port.

    Raises:
        ServerError: the file cannot be written, or its folder is another user's.
    """
    path = _path(endpoint, folder)
    try:
        write_private(path, _SCHEMA.dump_json(endpoint))
    except OSError as error:
        raise ServerError(
            f"{path}: {error.strerror}; make the folder yours to write"
        ) from None


def withdraw(endpoint: Endpoint, folder: Path = FOLDER) -> None:
    """Remove the file of an endpoint, unless a later endpoint has taken its port."""
    path = _path(endpoint, folder)
    # A file that is gone, or that another user may have written, is not ours to remove.
    with suppress(FileNotFoundError, ServerError):
        if _read(path).pid == endpoint.pid:
            path.unlink(missing_ok=True)


def running(folder: Path = FOLDER) -> list[Endpoint]:
    """Return all endpoints of this user, oldest first; remove files of dead ones.

    Raises:
        ServerError: a file is damaged, or other users may have written or read it.
    """
    found = []
    for path in expanded(folder).glob("*.json"):
        try:
            endpoint = _read(path)
        except FileNotFoundError:
            continue  # stopped just now
        if _is_alive(endpoint.pid):
            found.append(endpoint)
        else:
            path.unlink(missing_ok=True)
    return sorted(found, key=lambda endpoint: endpoint.started)


def find(url: str | None = None, folder: Path = FOLDER) -> Endpoint:
    """Return the endpoint at ``url``, or the only running one.

    Raises:
        ServerError: no endpoint runs there, or several run and ``url`` is None.
    """
    found = running(folder)
    urls = ", ".join(endpoint.url for endpoint in found)
    if not found:
        raise ServerError("no endpoint runs; start one: mlxlab serve, or %serve")
    if url is not None:
        found = [e for e in found if e.url == url.rstrip("/")]
        if not found:
            raise ServerError(f"no endpoint runs at {url}; running: {urls}")
    if len(found) > 1:
        raise ServerError(f"several endpoints run; choose one with --url: {urls}")
    return found[0]


def _path(endpoint: Endpoint, folder: Path) -> Path:
    return expanded(folder) / f"{endpoint.port}.json"


def _read(path: Path) -> Endpoint:
    """Read a file that only this user can have written or read.

    Raises:
        FileNotFoundError: the file is gone.
        ServerError: the file is damaged, or others may have written or read it.
    """
    advice = "remove it and start the endpoint again"
    try:
        data = read_own(path, secret=True)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ServerError(f"{path}: {error.strerror}; {advice}") from None
    try:
        return _SCHEMA.validate_json(data)
    except ValidationError:
        raise ServerError(f"{path}: not an endpoint's file; {advice}") from None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (OSError, OverflowError):
        return False  # gone, or another user's process has the id now
    return True
