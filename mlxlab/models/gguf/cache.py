"""Unpacks a GGUF file into a model folder in the user's cache, once."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from mlxlab.content import content_sample
from mlxlab.errors import ModelError
from mlxlab.files import cache_folder, make_folder, replaced, replaced_folder
from mlxlab.models.gguf.header import open_file, read_header
from mlxlab.ownership import require_own

__all__ = ["unpack"]

#: To be raised when the same file gives another folder.
_VERSION = 1

#: Runs the converter of this very package, wherever this process found it.
_CONVERTER = """\
import json, sys
sys.path[:] = json.loads(sys.argv.pop(1))
from mlxlab.models.gguf.weights import main
sys.exit(main())
"""


def unpack(file: Path) -> Path:
    """Return the model folder of a GGUF file; write it unless the cache has it.

    The folder is for this user only, and is whole or not there. Its name holds a
    digest of the file's content, sampled if it is large, and of its time of change: a
    download that was repaired may differ in its middle only.

    Raises:
        ModelError: the file is damaged, or mlxlab cannot read its model.
        UntrustedError: another user may have written the cached folder.
        OSError: the cache folder cannot be written.
    """
    try:
        open_file(file).close()
        digest = hashlib.sha256(f"{_VERSION} {file.stat().st_mtime_ns} ".encode())
        digest.update(content_sample(file))
        name = f"{file.stem}-{digest.hexdigest()[:16]}"
        folder = cache_folder() / "models" / name
        if not folder.is_dir():
            _write(file, folder)
    except ModelError as error:
        raise ModelError(f"model {str(file)!r}: {error}") from None
    require_own(folder)
    return folder


def _write(file: Path, folder: Path) -> None:
    contents, weights = _describe(file)
    make_folder(folder.parent)
    require_own(folder.parent)
    with replaced_folder(folder) as part:
        for name, content in contents.items():
            with replaced(part / name) as opened:
                opened.write(content.encode())
        _convert(file, part, weights)


def _describe(file: Path) -> tuple[dict[str, str], int]:
    """Return the texts of a model's small files by name, and its number of weights."""
    # These take a while to import, and a folder in the cache needs none of them.
    from mlxlab.models.gguf.architecture import (
        check_tensors,
        place_weights,
        read_config,
    )
    from mlxlab.models.gguf.tokenizer import end_ids, make_tokenizer, tokenizer_config

    header = read_header(file)
    config = read_config(header, file)
    check_tensors(header, config)
    metadata = header.metadata
    ends = {"eos_token_id": end_ids(metadata)}
    objects: dict[str, dict[str, Any]] = {
        "config.json": {**config, **ends},
        "generation_config.json": ends,
        "tokenizer_config.json": tokenizer_config(
            metadata, config["max_position_embeddings"]
        ),
    }
    contents = {name: json.dumps(own, indent=1) for name, own in objects.items()}
    contents["tokenizer.json"] = make_tokenizer(metadata).to_str()
    return contents, sum(1 for _ in place_weights(config))


def _convert(file: Path, folder: Path, weights: int) -> None:
    """Write the weights into the folder, in a process of their own."""
    from tqdm.auto import tqdm  # as above

    command = [sys.executable, "-P", "-c", _CONVERTER, json.dumps(sys.path)]
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [*command, str(file.absolute()), str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as process,
        tqdm(total=weights, desc=f"unpacking {file.name}", delay=1, leave=False) as bar,
    ):
        assert process.stdout is not None  # for mypy
        try:
            for _ in process.stdout:
                bar.update()
        except BaseException:
            process.kill()
            raise
        status = process.wait()
        errors.seek(0)
        said = errors.read().decode(errors="replace").split("\n")
    if status:
        raise ModelError(_reason(status, [line for line in said if line.strip()]))
    _settle(folder)


def _reason(status: int, said: list[str]) -> str:
    if status == 2 and said:
        return said[-1]
    why = said[-1] if said else f"exit status {status}"
    if status < 0:
        why = f"it ended with {signal.Signals(-status).name}"
    return f"mlx cannot read it: {why}"


def _settle(folder: Path) -> None:
    """Bring the files to the disk, before their folder gets its name."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
