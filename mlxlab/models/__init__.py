"""Model folders: their files, tokenizer and chat template, without their weights."""

from mlxlab.models.folder import ModelFolder, find_model

__all__ = ["ModelFolder", "find_model"]
