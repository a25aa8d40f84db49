"""Cache layouts of models that people run, for simulations without their files."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TypeAlias

from pydantic import TypeAdapter

from mlxlab.errors import ConfigError, ModelError, did_you_mean
from mlxlab.models.layout import CacheLayout
from mlxlab.sizes import read_size

__all__ = ["PATH", "LayoutLike", "known_layout", "known_layouts", "read_layout"]

LayoutLike: TypeAlias = CacheLayout | str
"""A layout, a name of :func:`known_layouts`, or sizes such as ``24KiB+74MiB``."""

#: Made by data/geometries/make.py.
PATH = Path(__file__).with_name("geometries.json")

_FORM = "give a known model, bytes a token such as 96KiB, or with a checkpoint's "
_FORM += "such as 24KiB+74MiB"


@cache
def known_layouts() -> Mapping[str, CacheLayout]:
    """Return all known layouts by the name of the model."""
    return TypeAdapter(dict[str, CacheLayout]).validate_json(PATH.read_bytes())


def known_layout(name: str) -> CacheLayout:
    """Return the layout of a model that people run.

    Args:
        name: as in :func:`known_layouts`; upper and lower case are the same.

    Raises:
        ModelError: no layout of that name is known.
    """
    names = {known.casefold(): known for known in known_layouts()}
    if (found := names.get(name.casefold())) is None:
        near = did_you_mean(name, known_layouts())
        raise ModelError(f"no layout is known of model {name!r}{near}")
    return known_layouts()[found]


def read_layout(given: LayoutLike, argument: str) -> CacheLayout:
    """Return the layout that an argument stands for.

    Args:
        given: see :data:`LayoutLike`.
        argument: its name, for the error.

    Raises:
        ConfigError: an unknown name, or sizes in another form.
    """
    if isinstance(given, CacheLayout):
        return given
    try:
        if given[:1].isdigit():
            token, plus, checkpoint = given.partition("+")
            sizes = [token, checkpoint] if plus else [token]
            return CacheLayout.plain(*(read_size(size, argument) for size in sizes))
        return known_layout(given)
    except (ConfigError, ModelError):
        near = did_you_mean(given, known_layouts())
        raise ConfigError(f"{argument} {given!r}: {_FORM}{near}") from None
