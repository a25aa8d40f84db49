"""Makes mlxlab/models/geometries.json; see the README here.

Each layout is asked of the caches of the model that mlx-lm builds from the public
values in configs.json. Weights are neither read nor drawn.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlxlab.engine.loading import outline_layout
from mlxlab.files import write_json
from mlxlab.models import geometry
from mlxlab.models.folder import BUNDLED, find_model
from mlxlab.models.layout import CacheLayout

__all__ = ["CONFIGS", "measure"]

CONFIGS = Path(__file__).parent / "configs.json"


def measure() -> dict[str, CacheLayout]:
    """Return the layouts of the bundled model and of all models in configs.json."""
    models = json.loads(CONFIGS.read_text())
    found = {BUNDLED: outline_layout(find_model())}
    return found | {name: _layout(model["config"]) for name, model in models.items()}


def _layout(config: Mapping[str, Any]) -> CacheLayout:
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        return outline_layout(find_model(folder))


if __name__ == "__main__":
    layouts = {name: asdict(layout) for name, layout in measure().items()}
    write_json(layouts, geometry.PATH)
