"""Loads models: with their weights, or as an outline whose weights are never read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.utils import _get_classes, load_config
from mlx_lm.utils import load_model as load_mlx_model

from mlxlab.engine.layout import measure_layout
from mlxlab.engine.trial import try_out
from mlxlab.errors import ModelError
from mlxlab.models.folder import ModelFolder
from mlxlab.models.layout import CacheLayout

__all__ = ["load_model", "outline_layout"]

_TYPES = {"float16": mx.float16, "float32": mx.float32}


def load_model(folder: ModelFolder) -> Any:
    """Load a model and its weights into memory, without running code from its folder.

    The layout, or the refusal, is kept for simulations.

    Raises:
        ModelError: the weights are missing or broken, mlx-lm does not know the
            architecture, or the model's caches cannot be restored.
    """
    with _refusing(folder, "cannot be loaded: "):
        model, _ = load_mlx_model(folder.path)
    try:
        with _refusing(folder, "cannot be run: "):
            layout = measure_layout(model)
            try_out(model)
    except ModelError as error:
        folder.keep_layout(error)
        raise
    folder.keep_layout(layout)
    return model


def outline_layout(folder: ModelFolder) -> CacheLayout:
    """Return the layout of a model whose weights are not read and take no memory.

    Shapes and types are those of the loaded model: the headers of the weight files
    decide them. Without such files, weights have the type that the configuration names.

    Raises:
        ModelError: the model cannot be loaded or run, or keeps caches of an unknown
            class.
    """
    with _refusing(folder, "cannot be loaded: "):
        if any(folder.path.glob("model*.safetensors")):
            model, _ = load_mlx_model(folder.path, lazy=True)
        else:
            model = _without_weights(folder)
        # Some models evaluate a part of their pass, and would read weights for it.
        model.update(tree_map(_blank, model.parameters()))
    with _refusing(folder, "cannot be run: "):
        return measure_layout(model)


def _without_weights(folder: ModelFolder) -> Any:
    config = load_config(folder.path)
    model_class, arguments_class = _get_classes(config)
    model = model_class(arguments_class.from_dict(config))
    model.set_dtype(_TYPES.get(folder.dtype, mx.bfloat16))
    return model


def _blank(weight: mx.array) -> mx.array:
    return mx.broadcast_to(mx.zeros((), dtype=weight.dtype), weight.shape)


@contextmanager
def _refusing(folder: ModelFolder, failed: str) -> Iterator[None]:
    """Turn whatever mlx-lm raises into one line: any type, and it calls sys.exit."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"model {folder.name}: {error}") from None
    except (Exception, SystemExit) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise ModelError(f"model {folder.name}: {failed}{why}") from error
