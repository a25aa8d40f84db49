"""Files that are not regular ones."""

from __future__ import annotations

import os
import socket
from pathlib import Path

__all__ = ["make_socket"]


def make_socket(path: Path) -> None:
    """Make a socket's file."""
    with socket.socket(socket.AF_UNIX) as own:
        here = Path.cwd()
        os.chdir(path.parent)  # names of sockets are short
        own.bind(path.name)
        os.chdir(here)
