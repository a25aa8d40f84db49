"""How a client's launcher finds the endpoints that run: one small file each.

The files hold tokens, so only their owner may read them, and only files that nobody
else can have written are believed. Knows nothing of what an endpoint answers with.
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
from mlxlab.files import make_folder, replaced
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

#: Not the runtime folder, which notebooks and terminals need not have in common.
FOLDER = Path("~/.cache/mlxlab/endpoints")

#: The alias of clients that name no model.
DEFAULT = "default"

#: Environment variable that holds a server's token.
TOKEN_VARIABLE = "MLXLAB_TOKEN"

#: Kinds of model that a client asks for without naming one.
TIERS = ("opus", "sonnet", "haiku", "fable")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A running endpoint, and what a client has to know of it.

    Attributes:
        url: base URL.
        token: what clients send; never shown.
        window: longest sequence in tokens.
        aliases: model ids that are answered.
        tiers: of :data:`TIERS`, the alias that answers each.
        pid: process that it runs in.
        started: Unix seconds.
    """

    url: Annotated[str, StringConstraints(pattern=r"^https?://[^\s/]+:[0-9]+$")]
    token: str = field(repr=False)
    window: PositiveInt
    aliases: tuple[str, ...]
    tiers: dict[str, str] = field(default_factory=dict)
    pid: Annotated[int, Field(gt=0)] = field(default_factory=os.getpid)
    started: float = field(default_factory=time.time)

    @property
    def port(self) -> int:
        """TCP port; no two endpoints of a machine share one."""
        port = urlsplit(self.url).port
        assert port is not None
        return port


_SCHEMA = TypeAdapter(Endpoint)


def publish(endpoint: Endpoint, folder: Path = FOLDER) -> None:
    """Let launchers find an endpoint, in place of what ran at its port before.

    Raises:
        ServerError: the file cannot be written, or its folder is another user's.
    """
    path = _path(endpoint, folder)
    try:
        make_folder(path.parent)
        path.parent.chmod(0o700)
        with replaced(path) as file:
            file.write(_SCHEMA.dump_json(endpoint))
    except OSError as error:
        raise ServerError(
            f"{path}: {error.strerror}; make the folder yours to write"
        ) from None


def withdraw(endpoint: Endpoint, folder: Path = FOLDER) -> None:
    """Take back what was published, unless another took the port since."""
    path = _path(endpoint, folder)
    # Gone, or nobody's that we know: then it is not ours to remove.
    with suppress(FileNotFoundError, ServerError):
        if _read(path).pid == endpoint.pid:
            path.unlink(missing_ok=True)


def running(folder: Path = FOLDER) -> list[Endpoint]:
    """All endpoints of this user, the oldest first; files of dead ones are removed.

    Raises:
        ServerError: a file that others may have written or read, or that is damaged.
    """
    found = []
    for path in folder.expanduser().glob("*.json"):
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
    """The endpoint at ``url``, or the only one.

    Raises:
        ServerError: none runs there, or several run and none is chosen.
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
    return folder.expanduser() / f"{endpoint.port}.json"


def _read(path: Path) -> Endpoint:
    """Read a file that only this user can have written or read.

    Raises:
        FileNotFoundError: it has gone.
        ServerError: others may have written or read it, or it holds no endpoint.
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
        raise ServerError(f"{path}: no endpoint's file; {advice}") from None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (OSError, OverflowError):
        return False  # gone, or its id is another user's process by now
    return True
