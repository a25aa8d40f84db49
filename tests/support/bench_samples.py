from __future__ import annotations

import sys
from pathlib import Path

from bench.dialects import Messages
from bench.processes import Server


def stand_in(fault: str = "", name: str = "") -> Server:
    """Return a server that runs ``stand_in.py``, with one fault or none."""
    script = Path(__file__).with_name("stand_in.py")
    command = (sys.executable, str(script), *([fault] if fault else []))
    return Server(name or fault or "good", command, Messages(), model="m")
