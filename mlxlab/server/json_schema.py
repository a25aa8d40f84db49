"""Refuses JSON schemas that cannot be held, before any other request waits for them.

Compiling a schema may take time and memory that grow exponentially with its size, and
nothing in this process could end it. So a process with limits tries it first.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from mlxlab.engine.json_constraint import LIMITS, OPTIONS, refusal
from mlxlab.limits import SCHEMA_BYTES, SCHEMA_CPU_S, SCHEMA_MEMORY

__all__ = ["check_schema"]

#: Seconds for a trial on a busy machine; its processor time is limited far below.
_TRIAL_S = 20.0
_TRIAL = Path(__file__).with_name("schema_trial.py")
_COMPLEX = "too complex; give fewer or simpler patterns, limits and multiples"


def check_schema(schema: Mapping[str, Any]) -> None:
    """Try whether answers can be held to a schema.

    Args:
        schema: a JSON schema.

    Raises:
        RequestError: they cannot, or finding out takes too long.
    """
    text = json.dumps(schema, separators=(",", ":"))
    if len(text) > SCHEMA_BYTES:
        raise refusal(f"{len(text):,} bytes; give at most {SCHEMA_BYTES:,}")
    problem = _problem(text)
    if problem:
        raise refusal(problem)


@lru_cache(maxsize=64)  # clients repeat their schemas
def _problem(schema: str) -> str:
    asked = json.dumps({"options": OPTIONS, "limits": LIMITS})
    try:
        trial = subprocess.run(
            [sys.executable, "-P", str(_TRIAL), str(SCHEMA_CPU_S), str(SCHEMA_MEMORY)],
            input=f'{asked[:-1]},"schema":{schema}}}',
            capture_output=True,
            text=True,
            timeout=_TRIAL_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _COMPLEX
    # A limit ends the process by a signal, or by the library's panic.
    return trial.stdout if trial.returncode == 0 else _COMPLEX
