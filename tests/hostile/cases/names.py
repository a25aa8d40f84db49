"""Cases of names and arguments: odd ones for files that are good."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

from mlxlab.strategies import STRATEGIES
from tests.hostile.cases.command import Commands
from tests.hostile.cases.documents import documents
from tests.hostile.cases.files import write_document

__all__ = ["name_oddly", "odd_name"]

_PARTS = (
    *("a", "x", "-", "--", "--help", "-v", "[bold]", "[/x]", "[", "]", "{0}", "%s"),
    *(
        "\x1b[2J",
        "\x07",
        "\n",
        "\r",
        "\t",
        "\x9b",
        "\u202e",
        "\u2028",
        "\ufeff",
        "\x7f",
    ),
    *("é", "e\u0301", "日本", "👩\u200d💻", "~", "*", "?", "$(id)", "`id`", "'", '"'),
    *("\udcff", "\udced\udca0\udc80", "\\", ":", ",", "=", "@", "+", " ", "  ", "."),
    *("..", "CON", "a" * 100, "0", "-1", "1e9", "NaN", "tiny", "sessions", "latest"),
)
_ENDINGS = ("", ".jsonl", ".jsonl", ".json", ".jsonl.gz", ".html")
_NUMBERS = (
    *("0", "1", "-1", "2", "99999999999", "1e9", "NaN", "inf", "0x10", "१", "", " "),
    *("9" * 400, "1.5", "-0", "+1", "1_0", "\u00b2"),
)
_SIZES = ("0", "1GiB", "-1GiB", "1e3GiB", "9" * 400 + "GiB", "1KiB", "NaNGiB", "GiB")
_OPTIONS: dict[str, tuple[str, ...]] = {
    "--users": _NUMBERS,
    "--capacity": (*_SIZES, *_NUMBERS),
    "--capacities": (*_SIZES, "1GiB,,2GiB", "1GiB,1GiB"),
    "--layout": ("no", "96KiB", "24KiB+74MiB", "0KiB", "9" * 400 + "KiB", "+", "[x]"),
    "--chunk": _NUMBERS,
    "--limit": _NUMBERS,
    "--since": ("2025-01-01", "no", "99999-01-01", "1", "0001-01-01", "9999-12-31"),
    "--text": ("full", "none", "no"),
    "--rules": ("all", "none", "-", "all,none", "-time", ",", "[x]"),
    "--model": ("tiny", "", ".", "..", "/", "/dev/null", "good.jsonl", "[x]", "\x1b["),
    "--format": ("auto", "no", "capture", "telemetry", "\x1b[2J"),
}
_COMMANDS = (
    *("misses {path}", "read-trace {path}", "misses {path} --json {new}"),
    *("compare {path} --simulate --strategies paged", "anonymize {path} --out {new}"),
    *(
        "sweep {path} --scheduler here --strategies paged",
        "export-trace {path} --out {new}",
    ),
    *(
        "misses {path} --strategy {spec}",
        "compare {path} --simulate --strategies {spec}",
    ),
    *("import-trace {path} --out {new}", "misses {path} --plots {new}"),
    *("agents --write {new}", "agents --write . --aliases {path}", "notebooks {new}"),
    *("record --out {new} --script {path}", "record --out {new} --upstream {name}"),
    *("{name}", "{name} {path}", "{path}", "rules {name}", "strategies --json {new}"),
    *("sweep {path} --scheduler here --strategies paged --out {new}",),
    *("doctor {path}", "audit {path}", "misses {path} --rules move:{name}"),
    *("plan {path} --most 2 --strategy {spec}", "plan {path} --ttft {name}"),
    *("evictions {path} --strategy {spec}", "evictions {path} --plots {new}"),
    *("compare {path} --simulate --strategies paged --endpoint {name}",),
)


def odd_name(chance: Random) -> str:
    """Return a name that a file can have, as Python decodes it."""
    text = "".join(chance.choices(_PARTS, k=chance.randrange(1, 5)))
    if chance.random() < 0.1:
        text = chance.choice(("a", "é", "日")) * 255
    data = os.fsencode(text).replace(b"/", b"|")[: chance.choice((255, 255, 256, 40))]
    name = os.fsdecode(data)
    return f"_{name}" if name in {".", ".."} else name


def name_oddly(chance: Random, folder: Path) -> Commands:
    """A good file under an odd name, or a good file and odd arguments."""
    form = chance.choice(("own", "weka", "capture", "script", "aliases"))
    document = documents()[form]
    write_document(document, folder, chance, 0)
    path = f"{odd_name(chance)}{chance.choice(_ENDINGS)}"
    try:
        (folder / document.path).rename(folder / path)
    except OSError:  # the name is too long
        path = document.path
    words = chance.choice(_COMMANDS).split()
    names = {
        "path": chance.choice((path, path, f"./{path}", odd_name(chance))),
        "new": odd_name(chance) + chance.choice(_ENDINGS),
        "name": odd_name(chance),
        "spec": _spec(chance),
    }
    line = [word.format(**names) for word in words]
    if chance.random() < 0.4:
        option = chance.choice(list(_OPTIONS))
        line += [option, chance.choice(_OPTIONS[option])]
    return Commands((tuple(line),))


def _spec(chance: Random) -> str:
    name = chance.choice((*STRATEGIES, odd_name(chance)))
    found = STRATEGIES.get(name)
    keys = (*found.declared, odd_name(chance)) if found else ("block",)
    values = (*_NUMBERS, *_SIZES, odd_name(chance), "true", "none", "ends", "every[9]")
    pairs = [
        f"{chance.choice(keys)}={chance.choice(values)}"
        for _ in range(chance.randrange(3))
    ]
    rules = chance.choice(("", "", "@all", "@none", "@-", "@[x]"))
    return f"{name}{':' if pairs else ''}{','.join(pairs)}{rules}"
