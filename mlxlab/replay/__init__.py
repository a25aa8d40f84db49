"""Replay: the same traffic through many strategies, simulated or live."""

from mlxlab.replay.requests import RenderedRequest, render_trace
from mlxlab.replay.simulator import Outcome, Replayer, Simulator

__all__ = ["Outcome", "RenderedRequest", "Replayer", "Simulator", "render_trace"]
