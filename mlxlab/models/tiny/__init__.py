"""The bundled model: where its folder is. Knows nothing of how it is loaded."""

from pathlib import Path

__all__ = ["PATH"]

#: Folder in mlx-lm's and transformers' format: random weights, a real tokenizer.
PATH = Path(__file__).parent
