"""GGUF files: read without trust, written once as a folder in mlx-lm's format."""

from mlxlab.models.gguf.unpack import unpack

__all__ = ["unpack"]
