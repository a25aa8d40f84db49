"""Replay: the same traffic through many strategies, simulated or live."""

from mlxlab.replay.compare import compare
from mlxlab.replay.report import Comparison
from mlxlab.replay.simulate import SimulatedTarget
from mlxlab.replay.steps import Step, render_steps
from mlxlab.replay.targets import Outcome, Target

__all__ = [
    "Comparison",
    "Outcome",
    "SimulatedTarget",
    "Step",
    "Target",
    "compare",
    "render_steps",
]
