"""Kinds of cases, and how many of each there are."""

from __future__ import annotations

from collections.abc import Mapping

from tests.hostile.cases.command import Setting
from tests.hostile.cases.exchange import Exchanges
from tests.hostile.cases.files import break_packed, break_trace
from tests.hostile.cases.folders import mix_folder
from tests.hostile.cases.homes import move_home
from tests.hostile.cases.names import name_oddly
from tests.hostile.cases.requests import break_request
from tests.hostile.cases.wire import break_wire

__all__ = ["COMMANDS", "EXCHANGES", "counts"]

#: Over HTTP, and the share of each among them.
EXCHANGES: Mapping[str, tuple[Exchanges, float]] = {
    "requests": (break_request, 0.6),
    "wire": (break_wire, 0.4),
}
#: On the command line, likewise.
COMMANDS: Mapping[str, tuple[Setting, float]] = {
    "traces": (break_trace, 0.4),
    "packed": (break_packed, 0.1),
    "folders": (mix_folder, 0.2),
    "names": (name_oddly, 0.2),
    "homes": (move_home, 0.1),
}


def counts(cases: int, commands: float) -> dict[str, int]:
    """Return the number of cases of each kind.

    Args:
        cases: of all kinds together.
        commands: the share of command lines.
    """
    found: dict[str, int] = {}
    for kinds, share in ((EXCHANGES, 1 - commands), (COMMANDS, commands)):
        found |= {kind: round(cases * share * own) for kind, (_, own) in kinds.items()}
    found["requests"] += cases - sum(found.values())
    return found
