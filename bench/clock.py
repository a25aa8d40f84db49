"""Predicts what users wait for on this machine, and checks it with the real engine.

    python -m bench.clock [--trace TRACE ...] [--users 1,2,4] [--think-times 1]

Calibrate first, on a quiet machine: ``mlxlab calibrate --force``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import pandas as pd

from mlxlab.analysis.capacity.check import check_clock
from mlxlab.cli.options import known_costs
from mlxlab.errors import ConfigError
from mlxlab.models.folder import find_model
from mlxlab.traces.open import open_recorded

__all__ = ["main"]

#: One for each user at least.
_TRACES = ("sessions", "tasks", "loop", "subagents")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print predicted and measured seconds by number of users."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", nargs="+", default=_TRACES)
    parser.add_argument("--users", default="1,2,4")
    parser.add_argument("--think-times", type=float, default=1.0)
    given = parser.parse_args(arguments)
    folder = find_model()
    costs = known_costs(folder)
    if costs is None:
        raise ConfigError("no calibration; run: mlxlab calibrate")
    found = check_clock(
        open_recorded(given.trace),
        costs,
        users=[int(n) for n in given.users.split(",")],
        think_times=given.think_times,
        model=folder,
    )
    off = found.measured.where(found.measured > 0, np.nan)
    with pd.option_context("display.width", 100):
        print(found.assign(error=found.predicted / off - 1).to_string(index=False))


if __name__ == "__main__":
    main()
