"""Made-up results of fidelity runs."""

from __future__ import annotations

import pandas as pd

from mlxlab.analysis.fidelity.result import REQUEST_TYPES, Fidelity
from mlxlab.models.folder import ModelFolder, find_model
from mlxlab.replay.bounds import Bounds, tabulate_bounds
from mlxlab.replay.specs import parse_specs
from mlxlab.strategies import parse_strategy

__all__ = ["sample_fidelity"]


def sample_fidelity(
    strategies: str,
    *,
    folder: ModelFolder | None = None,
    kld: float = 0.5,
    lost: int = 10,
    tasks: bool = False,
) -> Fidelity:
    """Return the result of two answers of two tokens for each of ``strategies``.

    Args:
        strategies: as a run takes them.
        folder: the answering model; the bundled one if None.
        kld: divergence of approximate strategies, at each position.
        lost: tokens lost to exact reuse in each request, all recovered.
        tasks: whether the trace has tasks.
    """
    made = parse_specs(strategies)
    kinds = {"full prefill": "reference", "noise floor": "floor"}
    kinds |= {spec.name: "approximate" for spec in made}
    requests = [
        {
            "variant": name,
            "kind": kind,
            "prompt_tokens": 100,
            "reused_tokens": 50,
            "lost_tokens": lost,
            "recovered_tokens": lost * (kind == "approximate"),
            "shift": None,
            "first_kl": 0.0,
            "greedy_prefix": 1,
            "greedy_tokens": 1,
            "tool_name_agrees": None,
            "tool_arguments_agree": None,
            "task_right": kind == "reference" or request == 0 if tasks else None,
            "ttft_s": 0.1,
        }
        for name, kind in kinds.items()
        for request in (0, 1)
    ]
    frame = pd.DataFrame(requests).astype(REQUEST_TYPES)
    positions = [
        {
            "row": row,
            "kld": kld if request["kind"] == "approximate" else 0.0,
            "same_top": request["kind"] != "approximate" or position == 0,
            "delta_p": 0.0,
        }
        for row, request in enumerate(requests)
        for position in (0, 1)
    ]
    manifest = {
        "traces": [{"name": "one"}, {"name": "two"}],
        "model": {"digest": (folder or find_model()).digest},
        "strategies": [
            {
                "strategy": spec.strategy,
                "exact": parse_strategy(spec.strategy).exact,
                "rules": list(spec.rules),
            }
            for spec in made
        ],
        "day": "2026-11-23",
        "edits": ["date", "header"],
        "packages": {"mlxlab": None},
    }
    bounds = tabulate_bounds([Bounds(100, 50, {}, None)], 100)
    return Fidelity(frame, bounds, manifest, pd.DataFrame(positions))
