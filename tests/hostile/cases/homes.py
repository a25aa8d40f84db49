"""Cases of homes: odd values of HOME and of caches, and odd files in a cache."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from random import Random

from mlxlab.models.folder import find_model
from tests.hostile.cases.command import Commands
from tests.hostile.cases.documents import documents
from tests.hostile.cases.faults import NASTY, break_bytes, break_value, encoded
from tests.hostile.cases.files import write_document
from tests.hostile.cases.folders import ODD

__all__ = ["move_home"]

_HOMES = (
    *(None, "", "relative", ".", "file", "file/below", "loop", "/dev/null", "/proc/1"),
    *("missing/home", "\udcff", "a" * 300, "~", "~nobody", "[x]", "\x1b[2J", "home\n"),
)
_VARIABLES: dict[str, tuple[str | None, ...]] = {
    "HOME": _HOMES,
    "XDG_CACHE_HOME": _HOMES,
    "MLXLAB_PROGRESS": ("0", "no", "2", "", "\x1b[2J"),
    "COLUMNS": ("0", "1", "-1", "999999", "no", ""),
    "TERM": ("", "dumb", "no"),
    "NO_COLOR": ("1",),
    "TMPDIR": ("", "missing", "file", "/dev/null"),
    "TZ": ("", "no", "UTC", ":/dev/null"),
    "PATH": ("", None),
    "MLXLAB_CLAUDE": ("", "no", "file", "/bin/true", "[x]"),
    "HF_HOME": ("", "relative", "file", "/dev/null"),
}
_COMMANDS = (
    *("misses own.jsonl", "read-trace own.jsonl", "claude", "agents --write ."),
    *(
        "compare own.jsonl --simulate --strategies paged",
        "import-trace --out new.jsonl",
    ),
    *("sweep weka.json --scheduler here --strategies paged", "notebooks books"),
    *("misses weka.json", "claude --url http://127.0.0.1:1", "rules", "misses latest"),
    *("anonymize own.jsonl --out new.jsonl", "export-trace own.jsonl --out h.jsonl"),
    *("doctor", "doctor --fill", "audit own.jsonl", "plan weka.json --most 2"),
    *("misses own.jsonl --plots plots", "record --out r.jsonl --script script.json"),
)
_POINT = {"start": 0, "stop": 100, "prefill_s": 0.1, "restore_s": 0.01}
_CALIBRATION = {"calibrations": [{"machine": {}, "points": [_POINT]}]}
_ENDPOINT = {
    "url": "http://127.0.0.1:1",
    "token": "t",
    "window": 100,
    "aliases": ["default"],
    "tiers": {"opus": "default"},
    "pid": 1,
    "started": 1.0,
}


@cache
def _files() -> dict[str, object]:
    """Return files of a cache, as mlxlab writes them."""
    cached = ".cache/mlxlab"
    return {
        f"{cached}/calibration/{find_model().digest}.json": _CALIBRATION,
        f"{cached}/endpoints/1.json": _ENDPOINT,
        f"{cached}/endpoints/2.json": {**_ENDPOINT, "pid": os.getpid()},
        f"{cached}/latest.json": "/no/trace.jsonl",
        ".claude/projects/p/s.jsonl": documents()["claude-code"].files["p/s.jsonl"][0],
    }


def move_home(chance: Random, folder: Path) -> Commands:
    """A command under odd variables, or in a home with odd files."""
    for form in ("own", "weka", "script"):
        write_document(documents()[form], folder, chance, 0)
    (folder / "file").touch()
    (folder / "loop").symlink_to("loop")
    words = chance.choice(_COMMANDS).split()
    if chance.random() < 0.5:
        names = chance.sample(list(_VARIABLES), chance.randrange(1, 4))
        values = {name: chance.choice(_VARIABLES[name]) for name in names}
        return Commands((tuple(words),), values)
    for _ in range(chance.randrange(1, 4)):
        _put(chance, folder / "own home")
    home = str(folder / "own home")
    return Commands((tuple(words),), {"HOME": home})


def _put(chance: Random, home: Path) -> None:
    name, value = chance.choice(list(_files().items()))
    path = home / name
    if chance.random() < 0.2:
        path = path.parent
    if os.path.lexists(path):
        return
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if chance.random() < 0.4:
            chance.choice(ODD)(path)
            return
        lines = [value]
        break_value(lines, chance)
        data = encoded(lines[0] if lines else chance.choice(NASTY))
        path.write_bytes(break_bytes(data, chance) if chance.random() < 0.3 else data)
        path.chmod(chance.choice((0o600, 0o600, 0o600, 0o644, 0o666, 0)))
    except OSError:
        return  # something odd is in the way
