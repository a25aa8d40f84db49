"""Loads models: whole, a group's part, or an outline whose weights are never read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map
from mlx_lm.utils import _get_classes, load_config
from mlx_lm.utils import load_model as load_mlx_model

from mlxlab.engine.disk_store import DiskStore
from mlxlab.engine.engine import Engine
from mlxlab.engine.layout import measure_layout
from mlxlab.engine.memory import Memory
from mlxlab.engine.sharding import shard, weight_bytes
from mlxlab.engine.trial import conditions, try_batch, try_out
from mlxlab.errors import ModelError
from mlxlab.models.folder import ModelFolder
from mlxlab.models.layout import CacheLayout
from mlxlab.models.layout_record import Trial
from mlxlab.models.refusal import refusing
from mlxlab.prompt import Prompt
from mlxlab.strategies import Strategy, make_strategy, parse_strategy

__all__ = ["LoadedModel", "Loader", "load_model", "outline_layout", "outline_model"]

#: Tokens of a prompt whose layers multiply matrices, not vectors.
_FIRST_TOKENS = 16
_TYPES = {"float16": mx.float16, "float32": mx.float32}


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class LoadedModel:
    """A model in memory.

    Attributes:
        folder: its files.
        layout: what its caches keep in this process.
        batched: whether its answers may decode together.
    """

    folder: ModelFolder
    model: Any = field(repr=False)
    layout: CacheLayout
    batched: bool


class Loader:
    """Loads models, whole or a group's part of them, and opens engines on them.

    Args:
        group: the processes that share each model; None for a single one.
    """

    def __init__(self, group: mx.distributed.Group | None = None) -> None:
        self.group = group

    def weigh(self, folder: ModelFolder) -> int:
        """Return the bytes of a model's weights in this process; reads none of them.

        Raises:
            ModelError: the group cannot share this model.
        """
        if self.group is None:
            return sum(
                file.stat().st_size for file in folder.path.glob("*.safetensors")
            )
        return weight_bytes(_read(folder, self.group))

    def load(self, folder: ModelFolder) -> LoadedModel:
        """Load a model and its weights, without running code from its folder.

        The model is tried out on a few tokens. Of a whole model, the result is kept for
        later loads and for simulations.

        Raises:
            ModelError: the weights are missing or broken, mlx-lm does not know the
                architecture, the group cannot share it, or the model's caches cannot be
                restored.
        """
        model = _read(folder, self.group)
        with refusing(folder.name, "cannot be loaded"):
            mx.eval(model.parameters())
        found = _tried_out if self.group is not None else _accepted
        return LoadedModel(folder, model, *found(folder, model))

    def open(
        self,
        loaded: LoadedModel,
        strategy: str,
        *,
        chunk: int,
        chunk_s: float,
        memory: Memory | None = None,
        disk: Callable[[Strategy], DiskStore | None] = lambda strategy: None,
    ) -> Engine:
        """Open an engine with an empty store.

        Args:
            loaded: from :meth:`load`.
            strategy: as ``name[:key=value,...]``.
            chunk: see :class:`Engine`.
            chunk_s: see :class:`Engine`.
            memory: see :class:`Engine`.
            disk: opens the disk of a strategy that has one; None if it cannot.

        Raises:
            ModelError: the model cannot be run under this strategy, or a group cannot.
        """
        made = parse_strategy(strategy, layout=loaded.layout)
        if self.group is not None and not made.exact:
            raise ModelError(
                f"{made.name}: moves keys and values by what a whole model attends "
                "to; choose an exact strategy for a model on several machines"
            )
        if self.group is not None and not made.is_exact:
            raise ModelError(
                f"{made.name}: several machines keep keys and values as computed; "
                "leave kv out"
            )
        if self.group is not None and made.tier is not None:
            raise ModelError(
                f"{made.name}: several machines keep nothing on disk; leave disk out"
            )
        store = disk(made)
        made.tier = store.disk if store else None
        return Engine(
            loaded.model,
            made,
            chunk=chunk,
            window=loaded.folder.window,
            chunk_s=chunk_s,
            batched=loaded.batched,
            memory=memory,
            disk=store,
        )


def load_model(folder: ModelFolder) -> Any:
    """Load a whole model.

    Raises:
        ModelError: see :meth:`Loader.load`.
    """
    return Loader().load(folder).model


def _accepted(folder: ModelFolder, model: Any) -> tuple[CacheLayout, bool]:
    """Return layout and ``batched`` from an earlier trial, else from a new one."""
    now = conditions()
    if kept := folder.recall_trial(now):
        layout, trial = kept
        _start_kernels(model)
        return layout, trial.batched
    try:
        layout, batched = _tried_out(folder, model)
    except ModelError as error:
        folder.keep_layout(error)
        raise
    folder.keep_layout(layout, Trial(conditions=now, batched=batched))
    return layout, batched


def _start_kernels(model: Any) -> None:
    """Start thread pools and kernels on a few tokens, as a trial does."""
    engine = Engine(model, make_strategy("none"))
    engine.replay(Prompt.of(range(_FIRST_TOKENS)), np.empty(0, np.int32))


def _tried_out(folder: ModelFolder, model: Any) -> tuple[CacheLayout, bool]:
    with refusing(folder.name, "cannot be run"):
        layout = measure_layout(model)
        try_out(model)
    return layout, try_batch(model)


def _read(folder: ModelFolder, group: mx.distributed.Group | None) -> Any:
    """Read a model; the weights of a part are read when they are needed."""
    with refusing(folder.name, "cannot be loaded"):
        model, _ = load_mlx_model(folder.path, lazy=group is not None)
        if group is not None:
            shard(model, group)
    return model


def outline_layout(folder: ModelFolder) -> CacheLayout:
    """Return the layout of a model whose weights are not read and take no memory.

    Raises:
        ModelError: the model cannot be loaded or run, or keeps caches of an unknown
            class.
    """
    model = outline_model(folder)
    with refusing(folder.name, "cannot be run"):
        return measure_layout(model)


def outline_model(folder: ModelFolder) -> Any:
    """Return a model whose weights are not read and take no memory.

    Shapes and types are those of the loaded model: the headers of the weight files
    decide them. Without such files, weights have the type that the configuration names.

    Raises:
        ModelError: the model cannot be loaded.
    """
    with refusing(folder.name, "cannot be loaded"):
        if any(folder.path.glob("model*.safetensors")):
            model, _ = load_mlx_model(folder.path, lazy=True)
        else:
            model = _without_weights(folder)
        # Some models evaluate a part of their pass, and would read weights for it.
        model.update(tree_map(_blank, model.parameters()))
    return model


def _without_weights(folder: ModelFolder) -> Any:
    config = load_config(folder.path)
    model_class, arguments_class = _get_classes(config)
    model = model_class(arguments_class.from_dict(config))
    model.set_dtype(_TYPES.get(folder.dtype, mx.bfloat16))
    return model


def _blank(weight: mx.array) -> mx.array:
    return mx.broadcast_to(mx.zeros((), dtype=weight.dtype), weight.shape)
