"""Replay coding-agent requests through KV-cache strategies, and measure each of them.

    import mlxlab as ml

    ml.compare("sessions", ["prefix@none", "paged"], simulate=True)

Every verb returns a result with ``requests``, ``bounds``, ``manifest``, ``summary()``,
``plot()``, ``to_json()`` and ``read_json()``. Public names are loaded when they are
first used, so ``import mlxlab`` takes no time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from mlxlab.extras import needs

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from mlxlab.analysis.audit.result import Audit
    from mlxlab.analysis.audit.run import audit
    from mlxlab.analysis.calibrate import calibrate
    from mlxlab.analysis.calibration import Calibration
    from mlxlab.analysis.capacity.result import Capacity
    from mlxlab.analysis.capacity.run import plan
    from mlxlab.analysis.compare import compare
    from mlxlab.analysis.comparison import Comparison
    from mlxlab.analysis.doctor.result import Diagnosis
    from mlxlab.analysis.doctor.run import doctor
    from mlxlab.analysis.eviction.result import Evictions
    from mlxlab.analysis.eviction.run import evictions
    from mlxlab.analysis.fidelity.result import Fidelity
    from mlxlab.analysis.fidelity.run import fidelity
    from mlxlab.analysis.html_report import report
    from mlxlab.analysis.misses.result import Misses
    from mlxlab.analysis.misses.run import misses
    from mlxlab.analysis.result import Result, read_result
    from mlxlab.analysis.sweep import Sweep, sweep
    from mlxlab.analysis.tune import tune
    from mlxlab.analysis.tuning import Tuning
    from mlxlab.errors import MlxlabError
    from mlxlab.models.folder import ModelFolder, find_model
    from mlxlab.prompt import Prompt, Segment
    from mlxlab.rendering.renderer import Renderer
    from mlxlab.rendering.rules import RULES
    from mlxlab.replay.export import export_trace
    from mlxlab.server.server import serve
    from mlxlab.strategies import STRATEGIES, Strategy, make_strategy
    from mlxlab.strategies.placements import PLACEMENTS
    from mlxlab.traces import Trace, bundled_traces
    from mlxlab.traces.anonymize.anonymizer import anonymize
    from mlxlab.traces.importers import import_trace
    from mlxlab.traces.open import read_trace
    from mlxlab.traces.recording.recorder import record

__all__ = [
    "PLACEMENTS",
    "RULES",
    "STRATEGIES",
    "Audit",
    "Calibration",
    "Capacity",
    "Comparison",
    "Diagnosis",
    "Evictions",
    "Fidelity",
    "Misses",
    "MlxlabError",
    "ModelFolder",
    "Prompt",
    "Renderer",
    "Result",
    "Segment",
    "Strategy",
    "Sweep",
    "Trace",
    "Tuning",
    "anonymize",
    "audit",
    "bundled_traces",
    "calibrate",
    "compare",
    "doctor",
    "evictions",
    "export_trace",
    "fidelity",
    "find_model",
    "import_trace",
    "make_strategy",
    "misses",
    "plan",
    "read_result",
    "read_trace",
    "record",
    "report",
    "serve",
    "sweep",
    "tune",
]

#: Public names by the module that defines them.
_MODULES = {
    "mlxlab.analysis.audit.result": ("Audit",),
    "mlxlab.analysis.audit.run": ("audit",),
    "mlxlab.analysis.calibrate": ("calibrate",),
    "mlxlab.analysis.calibration": ("Calibration",),
    "mlxlab.analysis.capacity.result": ("Capacity",),
    "mlxlab.analysis.capacity.run": ("plan",),
    "mlxlab.analysis.compare": ("compare",),
    "mlxlab.analysis.comparison": ("Comparison",),
    "mlxlab.analysis.doctor.result": ("Diagnosis",),
    "mlxlab.analysis.doctor.run": ("doctor",),
    "mlxlab.analysis.eviction.result": ("Evictions",),
    "mlxlab.analysis.eviction.run": ("evictions",),
    "mlxlab.analysis.fidelity.result": ("Fidelity",),
    "mlxlab.analysis.fidelity.run": ("fidelity",),
    "mlxlab.analysis.html_report": ("report",),
    "mlxlab.analysis.misses.result": ("Misses",),
    "mlxlab.analysis.misses.run": ("misses",),
    "mlxlab.analysis.result": ("Result", "read_result"),
    "mlxlab.analysis.sweep": ("Sweep", "sweep"),
    "mlxlab.analysis.tune": ("tune",),
    "mlxlab.analysis.tuning": ("Tuning",),
    "mlxlab.errors": ("MlxlabError",),
    "mlxlab.models.folder": ("ModelFolder", "find_model"),
    "mlxlab.prompt": ("Prompt", "Segment"),
    "mlxlab.rendering.renderer": ("Renderer",),
    "mlxlab.rendering.rules": ("RULES",),
    "mlxlab.replay.export": ("export_trace",),
    "mlxlab.server.server": ("serve",),
    "mlxlab.strategies": ("STRATEGIES", "Strategy", "make_strategy"),
    "mlxlab.strategies.placements": ("PLACEMENTS",),
    "mlxlab.traces": ("Trace", "bundled_traces"),
    "mlxlab.traces.anonymize.anonymizer": ("anonymize",),
    "mlxlab.traces.importers": ("import_trace",),
    "mlxlab.traces.open": ("read_trace",),
    "mlxlab.traces.recording.recorder": ("record",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

# Hidden from type checkers, which would accept any name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Load a public name when it is first used (PEP 562)."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        with needs(name, "serve"):  # other extras are named where they are imported
            module = import_module(_HOMES[name])
        value = getattr(module, name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        """List the public names."""
        return sorted(__all__)


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Add ``%serve`` and a magic for each verb; called by ``%load_ext mlxlab``."""
    with needs("%load_ext mlxlab", "lab"):
        from mlxlab.jupyter.magics import ServeMagics
        from mlxlab.jupyter.verbs import register_verbs

    shell.register_magics(ServeMagics(shell))
    register_verbs(shell)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """Stop the server and remove all magics, at ``%unload_ext`` or ``%reload_ext``."""
    from mlxlab.jupyter.verbs import unregister_verbs

    unregister_verbs(shell)
    magics = shell.magics_manager.registry.pop("ServeMagics", None)
    if magics is not None:
        magics.stop()
        shell.magics_manager.magics["line"].pop("serve", None)
