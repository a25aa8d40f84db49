"""The bundled model: the path of its folder."""

from pathlib import Path

__all__ = ["PATH"]

#: Folder in mlx-lm's and transformers' format: trained weights, its own tokenizer.
PATH = Path(__file__).parent
