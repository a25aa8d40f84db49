"""Imports mlx-lm, after what has to be settled before it."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module

from mlxlab import blas

__all__ = ["prepare"]


@cache
def prepare() -> None:
    """Give mlx a fast BLAS, and import mlx-lm if it is installed.

    mlx-lm sets the limit of open files when it is imported. That lowers a higher limit
    for good, and fails under a lower one. So the limit stays as it is.
    """
    blas.preload()
    with suppress(ImportError), _limits_kept():
        import_module("mlx_lm")


@contextmanager
def _limits_kept() -> Iterator[None]:
    change = resource.setrlimit
    resource.setrlimit = lambda kind, limits: None
    try:
        yield
    finally:
        resource.setrlimit = change
