"""The address that a notebook serves at, kept while its kernel restarts.

One small file for each notebook holds port and token, for its owner only. Never in the
notebook itself, which people share.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from mlxlab.errors import ServerError
from mlxlab.files import expanded, write_private
from mlxlab.ownership import read_own

__all__ = ["FOLDER", "Address", "is_free", "name_notebook", "recall", "remember"]

#: Beside the files of running endpoints.
FOLDER = Path("~/.cache/mlxlab/addresses")

_ADVICE = "a new port and token are taken"


@dataclass(frozen=True, slots=True)
class Address:
    """Where clients of a notebook send requests, and with which token."""

    port: Annotated[int, Field(gt=0, lt=2**16)]
    token: str = field(repr=False)


_SCHEMA = TypeAdapter(Address)


def name_notebook(
    variables: Mapping[str, object], environment: Mapping[str, str] = os.environ
) -> str:
    """The notebook's path if its front end gives it, else the working folder.

    Args:
        variables: of the shell, where VS Code puts the path.
        environment: of the kernel, where Jupyter puts it.
    """
    named = environment.get("JPY_SESSION_NAME") or variables.get("__vsc_ipynb_file__")
    return str(named or Path.cwd())


def recall(notebook: str, folder: Path = FOLDER) -> Address | None:
    """The address that a notebook served at last; None if it never did.

    Raises:
        ServerError: others may have read or written the file, or it is damaged.
    """
    path = _path(notebook, folder)
    try:
        return _SCHEMA.validate_json(read_own(path, secret=True))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ServerError(f"{path}: {error.strerror}; {_ADVICE}") from None
    except ValidationError:
        raise ServerError(f"{path}: no address; {_ADVICE}") from None


def remember(notebook: str, address: Address, folder: Path = FOLDER) -> None:
    """Keep an address for the next start.

    Raises:
        ServerError: the file cannot be written.
    """
    path = _path(notebook, folder)
    try:
        write_private(path, _SCHEMA.dump_json(address))
    except OSError as error:
        raise ServerError(
            f"{path}: {error.strerror}; the next start has a new address"
        ) from None


def is_free(port: int) -> bool:
    """Whether a server of this machine may bind a port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen()
        except OSError:
            return False
    return True


def _path(notebook: str, folder: Path) -> Path:
    name = sha256(notebook.encode(errors="surrogatepass")).hexdigest()[:16]
    return expanded(folder) / f"{name}.json"
