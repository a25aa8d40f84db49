"""Replay: the same traffic through many strategies, simulated or live, and judged."""

from mlxlab.replay.compare import compare
from mlxlab.replay.fidelity import fidelity
from mlxlab.replay.findings import Fidelity
from mlxlab.replay.misses import Misses, explain
from mlxlab.replay.report import summarize, write_json
from mlxlab.replay.segments import count_segments
from mlxlab.replay.simulate import SimulatedTarget
from mlxlab.replay.steps import Step, render_steps
from mlxlab.replay.sweep import sweep
from mlxlab.replay.targets import Outcome, Target
from mlxlab.replay.tune import tune
from mlxlab.replay.tuning import Tuning

__all__ = [
    "Fidelity",
    "Misses",
    "Outcome",
    "SimulatedTarget",
    "Step",
    "Target",
    "Tuning",
    "compare",
    "count_segments",
    "explain",
    "fidelity",
    "render_steps",
    "summarize",
    "sweep",
    "tune",
    "write_json",
]
