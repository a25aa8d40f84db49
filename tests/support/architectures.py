"""Tiny configurations of mlx-lm's architectures, and folders with random weights.

The configurations lie beside the checkout; tests that need them are skipped elsewhere.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map
from mlx_lm.utils import _get_classes

from mlxlab.models import tiny

__all__ = ["FAMILIES", "NOT_HERE", "configurations", "save_architecture"]

_FILE = "shared/models/configs.json"

#: One configuration of each kind of layout, or with a fault of its own.
FAMILIES = (
    "qwen3",
    "gpt2",
    "glm4_moe_lite",
    "nemotron-nas+linear",
    "gpt_oss",
    "gemma3",
    "minimax_m3_vl",
    "longcat_flash_ngram",
    "llama4",
    "qwen3_5",
    "kimi_linear",
    "falcon_h1",
    "mamba",
    "recurrent_gemma",
    "dbrx",
)

#: Configurations that mlx-lm cannot run here: two need Metal, one a package.
NOT_HERE = {"bitnet", "muse_spark", "olmo"}


def configurations() -> Mapping[str, Mapping[str, Any]]:
    """Return the contents of ``config.json`` by name; empty where there are none."""
    here = Path(__file__).resolve()
    found = next((up / _FILE for up in here.parents if (up / _FILE).exists()), None)
    return json.loads(found.read_text()) if found else {}


def save_architecture(
    folder: Path, config: Mapping[str, Any], dtype: mx.Dtype = mx.float32
) -> Any:
    """Save a model with random weights and the bundled tokenizer, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    for name in names:
        shutil.copy(tiny.PATH / name, folder / name)
    (folder / "config.json").write_text(json.dumps(config))
    mx.random.seed(0)
    model_class, arguments_class = _get_classes(dict(config))
    model = model_class(arguments_class.from_dict(dict(config)))
    model.update(tree_map(_varied, model.parameters()))
    model.set_dtype(dtype)
    weights: Any = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    model.eval()
    return model


def _varied(weight: mx.array) -> mx.array:
    """Return other weights for equal ones: a zero could hide a wrong state."""
    if not mx.issubdtype(weight.dtype, mx.floating) or weight.max() > weight.min():
        return weight
    return weight + 0.1 * mx.random.normal(weight.shape)
