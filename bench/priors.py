"""Makes what ``evict=residual`` knows before its first request.

``python -m bench.priors FOLDER [--out FILE]`` reads hashed traces with times and stop
reasons and writes, for each kind of ending, evenly spaced quantiles of the seconds
until the same agent's next request. The file beside the policy was made of the 48
public Claude Code sessions of kv-cache-tester (github.com/callanjfox/kv-cache-tester,
Apache-2.0).
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterable
from pathlib import Path

import numpy as np

import mlxlab.strategies.eviction as policies
from mlxlab.files import write_json
from mlxlab.replay.workload import HashedSource, Workload
from mlxlab.strategies.eviction.residual import ResidualLife
from mlxlab.traces.hashed.trace import HashedTrace
from mlxlab.traces.open import open_traces

__all__ = ["learn"]

#: Quantiles of a kind: few, so that local traffic soon counts for more.
QUANTILES = 40
FILE = Path(policies.__file__).with_name("priors.json")


def learn(traces: Iterable[HashedTrace]) -> dict[str, list[float]]:
    """Return quantiles of gaps by kind of ending, in seconds."""
    policy = ResidualLife()
    policy.recall({})
    for request in Workload([HashedSource(trace) for trace in traces]):
        policy.begin(request.use)
    return {
        kind: np.quantile(gaps, _levels(len(gaps))).round(1).tolist()
        for kind, gaps in sorted(policy.learned().items())
    }


def _levels(gaps: int) -> np.ndarray:
    count = min(gaps, QUANTILES)
    return (np.arange(count) + 0.5) / count


def main() -> None:
    """Read traces, and write the file."""
    parser = ArgumentParser(prog="python -m bench.priors")
    parser.add_argument("folder", type=Path, help="read hashed traces from this folder")
    parser.add_argument("--out", type=Path, default=FILE, metavar="FILE")
    arguments = parser.parse_args()
    traces = [t for t in open_traces([arguments.folder]) if isinstance(t, HashedTrace)]
    source = {
        "sessions": len(traces),
        "source": "github.com/callanjfox/kv-cache-tester",
    }
    write_json({**source, "gaps": learn(traces)}, arguments.out)


if __name__ == "__main__":
    main()
