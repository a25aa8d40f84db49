"""Replay: the same traffic through many strategies, simulated or live."""

from mlxlab.replay.requests import Step, render_steps
from mlxlab.replay.simulator import SimulatedTarget
from mlxlab.replay.targets import Outcome, Target

__all__ = ["Outcome", "SimulatedTarget", "Step", "Target", "render_steps"]
