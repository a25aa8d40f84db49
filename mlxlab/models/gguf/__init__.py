"""GGUF files: read without trust, written once as a folder in mlx-lm's format."""

from mlxlab.models.gguf.cache import unpack

__all__ = ["unpack"]
