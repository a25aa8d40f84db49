"""Model folders: their files, the layout of their caches, their tokenizer.

A model is a folder in mlx-lm's format, given by path or hub repository, or unpacked
from a GGUF file. This module reads its configuration and tokenizer and never its
weights, so that a simulation imports no mlx.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlxlab.content import content_sample, read_whole
from mlxlab.errors import ModelError
from mlxlab.files import expanded
from mlxlab.limits import LINE_BYTES
from mlxlab.models import gguf, smollm2, tiny
from mlxlab.models.config import (
    GenerationConfig,
    ModelConfig,
    read_object,
    read_settings,
)
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
from mlxlab.models.refusal import refusing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["BUNDLED", "SMOLLM2", "ModelFolder", "find_model"]

#: Name of the model that comes with mlxlab.
BUNDLED = "tiny"
#: Name of the language model that comes from the package index.
SMOLLM2 = "smollm2"

#: Suffixes of the files that are read, and of those that are read whole.
_READ = {".json", ".jinja", ".safetensors"}
_TEXTS = {".json", ".jinja"}
_LONGEST = 2**31 - 1


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
        own, text = self._settings, self._text_settings
        named = text.dtype or own.dtype or text.torch_dtype or own.torch_dtype
        return named or "bfloat16"

    @property
    def window(self) -> int:
        """Longest sequence in tokens; 2**31 - 1 if the configuration names none."""
        return min(self._text_settings.max_position_embeddings or _LONGEST, _LONGEST)

    def require_ids(self, tokens: NDArray[np.integer[Any]]) -> None:
        """Check that the model has an embedding of each id.

        Nothing else would: mlx reads what lies in memory behind the last one. A
        tokenizer may have more ids, of images for example.

        Raises:
            ModelError: it has not.
        """
        sizes = (self._settings.vocab_size, self._text_settings.vocab_size)
        most = max((size for size in sizes if size), default=_LONGEST)
        for id in (int(tokens.min()), int(tokens.max())) if len(tokens) else ():
            if not 0 <= id < most:
                raise ModelError(
                    f"model {self.name}: id {id} of its tokenizer is beyond its "
                    f"vocab_size of {most}; leave out the text of this id"
                )

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer with its chat template.

        Raises:
            ModelError: there is no fast tokenizer, or no chat template.
        """
        # Otherwise transformers prints advice on stderr if torch is missing.
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        from transformers import AutoTokenizer

        with refusing(self.name, "no tokenizer"):
            # mlxlab checks the window itself; transformers would only warn.
            tokenizer = AutoTokenizer.from_pretrained(
                self.path,
                local_files_only=True,
                model_max_length=sys.maxsize,
                trust_remote_code=False,  # by default it asks on the terminal
            )
            if tokenizer.is_fast and tokenizer.chat_template:
                tokenizer.get_chat_template()  # of several there must be a default
                return tokenizer
        raise ModelError(
            f"model {self.name}: mlxlab needs a tokenizer.json and a chat template"
        )

    def encode(self, text: str) -> list[int]:
        """Return the ids of a short text that the model is made to say.

        Raises:
            ModelError: the tokenizer cannot, or the model lacks an id.
        """
        tokenizer = self.tokenizer
        with refusing(self.name, "its tokenizer cannot encode this text"):
            ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
        self.require_ids(np.array(ids, dtype=np.int64))
        return ids

    @cached_property
    def encoder(self) -> Encoder:
        """Encodes texts with :attr:`tokenizer`, and caches the ids of their pieces.

        Raises:
            ModelError: see :attr:`tokenizer`; or the tokenizer encodes nothing.
        """
        tokenizer = self.tokenizer
        with refusing(self.name, "its tokenizer does not work"):
            return Encoder(tokenizer)

    @property
    def end_ids(self) -> frozenset[int]:
        """Token ids that end an answer."""
        own = self.tokenizer.eos_token_id
        ids = self._generation_settings.end_ids | self._settings.end_ids
        return ids | {own} if isinstance(own, int) else ids

    @property
    def sampling(self) -> Mapping[str, float]:
        """The model's own settings of temperature, top_p, top_k and min_p, if any."""
        settings = self._generation_settings
        if settings.do_sample is False:
            return {}
        keys = {"temperature", "top_p", "top_k", "min_p"}
        return settings.model_dump(include=keys, exclude_none=True)

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
        with refusing(self.name, "its files cannot be read"):
            for file in sorted(self.path.iterdir()):
                if file.suffix in _READ:
                    digest.update(file.name.encode() + b"\0" + content_sample(file))
        return digest.hexdigest()[:16]

    def check(self) -> None:
        """Check the settings that mlxlab uses.

        Raises:
            ModelError: one of them means nothing.
        """
        _ = self._settings, self._text_settings, self._generation_settings

    @cached_property
    def _settings(self) -> ModelConfig:
        file = self.path / "config.json"
        return read_settings(ModelConfig, self.name, file, self.config)

    @cached_property
    def _text_settings(self) -> ModelConfig:
        """Those of the language model in a model of more than text."""
        nested = self._settings.text_config
        if nested is None:
            return self._settings
        return read_settings(ModelConfig, self.name, self.path / "config.json", nested)

    @cached_property
    def _generation_settings(self) -> GenerationConfig:
        file = self.path / "generation_config.json"
        values = read_object(self.name, file) if file.exists() else {}
        return read_settings(GenerationConfig, self.name, file, values)


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
    _check_files(name, path)
    folder = ModelFolder(name, path, read_object(name, path / "config.json"))
    folder.check()
    return folder


def _check_files(name: str, folder: Path) -> None:
    """Refuse what is not a file or too large: others open the files by name.

    They would wait for a pipe, and read a device until memory ends.
    """
    try:
        for file in folder.iterdir():
            if file.suffix in _READ or (file.exists() and not file.is_dir()):
                _check_file(name, file)
    except OSError as error:
        raise ModelError(f"model {name!r}: {folder}: {error.strerror}") from None


def _check_file(name: str, file: Path) -> None:
    if not file.is_file():
        raise ModelError(f"model {name!r}: {file} is not a regular file; remove it")
    if file.suffix in _TEXTS and file.stat().st_size > LINE_BYTES:
        raise ModelError(
            f"model {name!r}: {file} has more than {LINE_BYTES:,} bytes; remove it"
        )


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
