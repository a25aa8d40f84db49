"""Model folders: their files, the layout of their caches, their tokenizer.

A model is a folder in mlx-lm's format, given by path or hub repository, or unpacked
from a GGUF file. This module reads its configuration and tokenizer and never its
weights, so that a simulation imports no mlx.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxlab.content import content_sample, read_whole
from mlxlab.errors import ModelError
from mlxlab.files import expanded
from mlxlab.models import gguf, smollm2, tiny
from mlxlab.models.encoder import Encoder
from mlxlab.models.geometry import known_layout
from mlxlab.models.layout import CacheLayout
from mlxlab.models.layout_record import (
    LayoutRecord,
    Trial,
    find_record,
    keep_record,
    recall_record,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["BUNDLED", "SMOLLM2", "ModelFolder", "find_model"]

#: Name of the model that comes with mlxlab.
BUNDLED = "tiny"
#: Name of the language model that comes from the package index.
SMOLLM2 = "smollm2"


@dataclass(frozen=True)
class ModelFolder:
    """A model's files.

    Attributes:
        name: as the user gave it.
        path: folder with ``config.json``, tokenizer and safetensors.
        config: the decoded ``config.json``.
    """

    name: str
    path: Path
    config: Mapping[str, Any]

    @cached_property
    def layout(self) -> CacheLayout:
        """What the model's caches keep, and its sizes.

        Raises:
            ModelError: the model cannot be served; the message gives the reason.
        """
        if self.path == tiny.PATH:
            return known_layout(BUNDLED)
        return find_record(self.path, self.digest).require(self.name)

    def recall_trial(self, conditions: str) -> tuple[CacheLayout, Trial] | None:
        """Return the layout, and the trial that the model has passed, if any.

        Args:
            conditions: of a trial now.
        """
        kept = recall_record(self.digest)
        if kept is None or kept.layout is None or kept.trial is None:
            return None
        if kept.trial.conditions != conditions:
            return None
        return kept.layout, kept.trial

    def keep_layout(
        self, found: CacheLayout | ModelError, trial: Trial | None = None
    ) -> None:
        """Keep what loading the model has found, for later runs.

        Args:
            found: the layout, or the refusal of a model that cannot be run.
            trial: that the model has passed.
        """
        keep_record(LayoutRecord.of(found, self.name, trial), self.digest)

    @property
    def dtype(self) -> str:
        """Type of the weights by the configuration, such as ``bfloat16``."""
        config = {**self.config, **self._text_config}
        return str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")

    @property
    def window(self) -> int:
        """Longest sequence in tokens; 2**31 - 1 if the configuration names none."""
        return int(self._text_config.get("max_position_embeddings", 2**31 - 1))

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer with its chat template.

        Raises:
            ModelError: there is no fast tokenizer, or no chat template.
        """
        # Otherwise transformers prints advice on stderr if torch is missing.
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        from transformers import AutoTokenizer

        try:
            # mlxlab checks the window itself; transformers would only warn.
            tokenizer = AutoTokenizer.from_pretrained(
                self.path,
                local_files_only=True,
                model_max_length=sys.maxsize,
                trust_remote_code=False,  # by default it asks on the terminal
            )
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"model {self.name}: no tokenizer: {error}") from error
        if not tokenizer.is_fast or not tokenizer.chat_template:
            raise ModelError(
                f"model {self.name}: mlxlab needs a tokenizer.json and a chat template"
            )
        return tokenizer

    @cached_property
    def encoder(self) -> Encoder:
        """Encodes texts with :attr:`tokenizer`, and caches the ids of their pieces."""
        return Encoder(self.tokenizer)

    @property
    def end_ids(self) -> frozenset[int]:
        """Token ids that end an answer."""
        ids = {self.tokenizer.eos_token_id}
        for named in (self._generation_config, self.config):
            eos = named.get("eos_token_id")
            ids |= set(eos) if isinstance(eos, list) else {eos}
        return frozenset(i for i in ids if isinstance(i, int))

    @property
    def sampling(self) -> Mapping[str, float]:
        """The model's own settings of temperature, top_p, top_k and min_p, if any."""
        keys = ("temperature", "top_p", "top_k", "min_p")
        config = self._generation_config
        if config.get("do_sample") is False:
            return {}
        return {key: config[key] for key in keys if key in config}

    @cached_property
    def tokenizer_digest(self) -> str:
        """SHA-256 of ``tokenizer.json``, 16 hex digits: equal digests, equal ids.

        Raises:
            ModelError: the folder has no ``tokenizer.json``.
        """
        try:
            data = read_whole(self.path / "tokenizer.json")
        except OSError as error:
            raise ModelError(f"model {self.name}: no tokenizer: {error}") from None
        return hashlib.sha256(data).hexdigest()[:16]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the files that decide tokens and logits, 16 hex digits.

        Files of 64 MiB and more are hashed by size, first MiB and last MiB.
        """
        digest = hashlib.sha256()
        for file in sorted(self.path.iterdir()):
            if file.suffix in {".json", ".jinja", ".safetensors"}:
                digest.update(file.name.encode() + b"\0" + content_sample(file))
        return digest.hexdigest()[:16]

    @cached_property
    def _generation_config(self) -> Mapping[str, Any]:
        file = self.path / "generation_config.json"
        try:
            found = json.loads(read_whole(file)) if file.exists() else {}
        except (OSError, ValueError) as error:
            raise ModelError(f"model {self.name}: {file.name}: {error}") from None
        return found if isinstance(found, dict) else {}

    @property
    def _text_config(self) -> Mapping[str, Any]:
        nested = self.config.get("text_config")
        return nested if isinstance(nested, dict) else self.config


def find_model(name: str = BUNDLED, *, download: bool = True) -> ModelFolder:
    """Find a model's folder.

    Args:
        name: ``tiny``, ``smollm2``, a folder, a GGUF file, or a hub repository
            (``owner/name``). A repository is looked up in the local hub cache first.
            ``smollm2`` and GGUF files are unpacked into mlxlab's cache folder once.
        download: whether to download a repository that is not in that cache, or
            ``smollm2`` if it is not there.

    Raises:
        ModelError: there is no such model, or mlxlab cannot read it.
        UntrustedError: another user may have written the unpacked files.
        OSError: the cache folder cannot be written.
    """
    path = tiny.PATH if name == BUNDLED else expanded(name)
    if name == SMOLLM2:
        path = gguf.unpack(smollm2.find_file(download=download))
    elif path.suffix == ".gguf" and not path.is_dir():
        path = gguf.unpack(path)
    elif not path.is_dir():
        path = _fetch(name, download)
    _require_regular(name, path)
    try:
        config = json.loads(read_whole(path / "config.json"))
        if not isinstance(config, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"model {name!r}: {path / 'config.json'} cannot be read ({error}); "
            "give a folder in mlx-lm's format"
        ) from None
    return ModelFolder(name, path, config)


def _require_regular(name: str, folder: Path) -> None:
    """Refuse pipes and devices: others open the files by name, and would wait."""
    for file in folder.iterdir():
        if file.exists() and not (file.is_file() or file.is_dir()):
            raise ModelError(f"model {name!r}: {file} is not a regular file; remove it")


def _fetch(name: str, download: bool) -> Path:
    accepted = (
        f"give {BUNDLED!r}, {SMOLLM2!r}, a folder, a GGUF file, "
        "or a hub repository such as owner/name"
    )
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ModelError(f"unknown model {name!r}: no such folder; {accepted}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(name, local_files_only=not download))
    except (OSError, ValueError, HfHubHTTPError, HFValidationError) as error:
        raise ModelError(
            f"unknown model {name!r}: not in the hub cache, and not "
            f"downloaded ({type(error).__name__}); {accepted}"
        ) from error
