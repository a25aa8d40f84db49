"""Replay coding-agent traffic through KV-cache strategies, and see what each saves.

Importing this package loads neither mlx nor a web framework.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlxlab.analysis.compare import compare
from mlxlab.analysis.fidelity.result import Fidelity
from mlxlab.analysis.fidelity.run import fidelity
from mlxlab.analysis.misses.explain import Misses, explain
from mlxlab.analysis.segments import count_segments
from mlxlab.analysis.sweep import sweep
from mlxlab.analysis.tables import summarize, write_json
from mlxlab.analysis.tune import tune
from mlxlab.analysis.tuning import Tuning
from mlxlab.errors import MlxlabError
from mlxlab.models.folder import ModelFolder, find_model
from mlxlab.prompt import Prompt, Segment
from mlxlab.rendering.renderer import Renderer
from mlxlab.rendering.rules import RULES
from mlxlab.strategies import STRATEGIES, Strategy, make_strategy
from mlxlab.traces import Trace, bundled_traces, load_trace

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = [
    "RULES",
    "STRATEGIES",
    "Fidelity",
    "Misses",
    "MlxlabError",
    "ModelFolder",
    "Prompt",
    "Renderer",
    "Segment",
    "Strategy",
    "Trace",
    "Tuning",
    "bundled_traces",
    "compare",
    "count_segments",
    "explain",
    "fidelity",
    "find_model",
    "load_trace",
    "make_strategy",
    "summarize",
    "sweep",
    "tune",
    "write_json",
]


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Called by ``%load_ext mlxlab``: adds ``%serve``."""
    from mlxlab.jupyter.magics import ServeMagics

    shell.register_magics(ServeMagics(shell))


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """Called by ``%unload_ext`` and ``%reload_ext``: stops what is served."""
    magics = shell.magics_manager.registry.pop("ServeMagics", None)
    if magics is not None:
        magics.stop()
        shell.magics_manager.magics["line"].pop("serve", None)
