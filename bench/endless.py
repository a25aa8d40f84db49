"""A copy of a model whose answers do not end by themselves.

Servers are to generate equal numbers of tokens, and most protocols cannot ask for that.
So the copy names another token as the end of a turn, one that answers do not have.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from mlxlab.models.folder import ModelFolder, find_model

__all__ = ["endless"]

_CONFIGURATIONS = ("config.json", "generation_config.json")
_TOKENIZER = "tokenizer_config.json"


@contextmanager
def endless(folder: ModelFolder) -> Iterator[ModelFolder]:
    """Copy a model; its weights are linked. The copy is removed after the block."""
    added = folder.tokenizer.added_tokens_decoder
    id, token = max((i, t) for i, t in added.items() if i not in folder.end_ids)
    with TemporaryDirectory() as temporary:
        path = Path(temporary)
        for file in folder.path.iterdir():
            if file.name in _CONFIGURATIONS:
                _write(file, path, eos_token_id=id)
            elif file.name == _TOKENIZER:
                _write(file, path, eos_token=str(token))
            elif file.is_file():
                (path / file.name).symlink_to(file.resolve())
        yield replace(find_model(str(path)), name=folder.name)


def _write(file: Path, folder: Path, **changes: object) -> None:
    content = json.loads(file.read_text(encoding="utf-8")) | changes
    (folder / file.name).write_text(json.dumps(content), encoding="utf-8")
