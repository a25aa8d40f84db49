"""Measured cache layouts of model folders, kept in the user's cache folder.

A layout is measured by mlx in a process of its own, so that a simulation imports no
mlx. It is kept for the next time, one file per model, and so is a refusal. Loading the
model also tries it out on a few tokens; an accepted model need not be tried out again.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from mlxlab.errors import MlxlabError, ModelError
from mlxlab.files import cache_folder, locked, write_json
from mlxlab.limits import LAYOUT_S
from mlxlab.models.layout import CacheLayout
from mlxlab.ownership import read_own

__all__ = ["LayoutRecord", "Trial", "find_record", "keep_record", "recall_record"]

log = logging.getLogger(__name__)

#: Counts what layouts say: records of an earlier form are measured again.
_FORM = 2


class Trial(BaseModel):
    """A trial that a model has passed with its weights.

    Attributes:
        conditions: that it depends on, apart from the record's ``engine``.
        batched: whether answers of the model may share a batch.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    conditions: str
    batched: bool


class LayoutRecord(BaseModel):
    """What a model's caches keep, or why the model cannot be served.

    Attributes:
        engine: versions of mlx and mlx-lm, which decide both, and the record's form.
        layout: None for a model that is refused.
        refusal: the reason.
        trial: None if the weights were not read, or the model is refused.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: str
    layout: CacheLayout | None = None
    refusal: str | None = None
    trial: Trial | None = None

    @model_validator(mode="after")
    def _require_one(self) -> Self:
        if (self.layout is None) == (self.refusal is None):
            raise ValueError("give a layout or a refusal")
        if self.trial is not None and self.layout is None:
            raise ValueError("a refused model has passed no trial")
        return self

    @classmethod
    def of(
        cls, found: CacheLayout | ModelError, model: str, trial: Trial | None = None
    ) -> Self:
        """Make a record with the installed versions.

        Args:
            found: the layout, or the error of a model that is refused.
            model: the name in that error.
            trial: that the model has passed.
        """
        if isinstance(found, CacheLayout):
            return cls(engine=_engine(), layout=found, trial=trial)
        return cls(
            engine=_engine(), refusal=str(found).removeprefix(f"model {model}: ")
        )

    def require(self, model: str) -> CacheLayout:
        """Return the layout.

        Args:
            model: the name of the model, for the error.

        Raises:
            ModelError: the model is refused.
        """
        if self.layout is None:
            raise ModelError(f"model {model}: {self.refusal}")
        return self.layout


def find_record(folder: Path, digest: str) -> LayoutRecord:
    """Return the kept record of a model folder, or measure it and keep it.

    Args:
        folder: of the model.
        digest: of its files.

    Raises:
        ModelError: the layout cannot be measured here, for example without mlx.
    """
    if kept := recall_record(digest):
        return kept
    found = _measure(folder)
    keep_record(found, digest)
    return found


def recall_record(digest: str) -> LayoutRecord | None:
    """Return the kept record of the model of that digest.

    None if there is none, or only one of other versions or a damaged one.
    """
    try:
        kept = _read(digest)
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        reason = error if isinstance(error, OSError) else "not of this format"
        log.warning("layout of model %s: %s; measured again", digest, reason)
        return None
    return kept if kept.engine == _engine() else None


def keep_record(record: LayoutRecord, digest: str) -> None:
    """Keep a record of the model of that digest, if the cache folder takes it.

    One without a trial does not replace the same with a trial, which another process
    may have kept meanwhile.
    """
    try:
        with locked(_file(digest).parent):
            if not _is_known(record, digest):
                write_json(record.model_dump(mode="json"), _file(digest), own=True)
    except (MlxlabError, OSError) as error:
        log.warning("the model's layout is not kept: %s", error)


def _is_known(record: LayoutRecord, digest: str) -> bool:
    """Return whether what is kept says the same, or the same and a trial."""
    try:
        kept = _read(digest)
    except (OSError, ValidationError):
        return False
    return record in (kept, kept.model_copy(update={"trial": None}))


def _file(digest: str) -> Path:
    return cache_folder() / "layouts" / f"{digest}.json"


def _read(digest: str) -> LayoutRecord:
    return LayoutRecord.model_validate_json(read_own(_file(digest)))


def _measure(folder: Path) -> LayoutRecord:
    command = [sys.executable, "-m", "mlxlab.engine", str(folder)]
    try:
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, timeout=LAYOUT_S
        )
    except subprocess.TimeoutExpired:
        raise ModelError(
            f"model {folder}: its cache layout cannot be measured in {LAYOUT_S} s"
        ) from None
    try:
        return LayoutRecord.model_validate_json(done.stdout)
    except ValidationError:
        said = done.stderr.decode(errors="replace").split("\n")
        why = next((line for line in reversed(said) if line.strip()), "no reason given")
        raise ModelError(
            f"model {folder}: its cache layout cannot be measured: "
            f"{why.removeprefix('mlxlab: ')}"
        ) from None


def _engine() -> str:
    versions = [f"{name} {_version(name)}" for name in ("mlx", "mlx-lm")]
    return ", ".join([*versions, f"form {_FORM}"])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
