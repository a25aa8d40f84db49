"""Measures how reuse changes answers: ``python -m bench.fidelity [NAME ...]``.

Runs ``mlxlab fidelity`` with the bundled model on tasks and on recorded traces, and
writes the results to ``data/fidelity``, which notebook 05 reads. All runs take an hour
or two on two CPU cores. Each run has its own file, so it can be repeated alone.
"""

from __future__ import annotations

from argparse import ArgumentParser
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

import mlxlab.analysis.fidelity
from mlxlab import fidelity
from mlxlab.analysis.fidelity.store import remember
from mlxlab.replay.specs import FIDELITY_SPECS

FOLDER = Path(__file__).parents[1] / "data/fidelity"
#: Figures that come with mlxlab, for the server to show.
MEASUREMENTS = Path(mlxlab.analysis.fidelity.__file__).with_name("measurements.json")

#: No limits on moves, to find the distance at which moving fails.
FREE = "shift=0,governing=0,rewritten=0"
SWEEP = f"suffix:{FREE},suffix:{FREE},rotate=no,suffix:{FREE},head=0"
#: For edits that the limits exclude, to see whether they should.
UNLIMITED = f"suffix:{FREE},segmented:{FREE}"


@dataclass(frozen=True, slots=True)
class Run:
    """One call of ``fidelity``.

    Attributes:
        keep: whether the server should show the figures.
    """

    trace: str
    edits: str = "classes"
    strategies: str = FIDELITY_SPECS
    keep: bool = False


RUNS = {
    "tasks": Run("tasks", keep=True),
    "tasks_shifts": Run("tasks", "shifts", SWEEP, keep=True),
    "tasks_unlimited": Run("tasks", "tool-added,tools-reordered", UNLIMITED),
    "recorded": Run("thinking"),
    "recorded_shifts": Run("sessions", "shifts", SWEEP),
    "recorded_unlimited": Run("thinking", "tools-reordered,compaction", UNLIMITED),
}


def main() -> None:
    """Make all runs, or the named ones."""
    parser = ArgumentParser(prog="python -m bench.fidelity")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(RUNS))
    names = parser.parse_args().names or list(RUNS)
    if unknown := set(names) - set(RUNS):
        parser.error(f"no run {', '.join(unknown)}; give some of {', '.join(RUNS)}")
    console = Console(width=100)
    for name in names:
        run = RUNS[name]
        found = fidelity(run.trace, edits=run.edits, strategies=run.strategies)
        found.to_json(FOLDER / f"{name}.json.gz")
        if run.keep:
            remember(found, MEASUREMENTS)
        console.print(found.title, found.summary().to_string(), sep="\n")


if __name__ == "__main__":
    main()
