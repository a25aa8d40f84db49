"""The configuration files of a model folder, checked: strangers wrote them.

Only settings that mlxlab itself uses are checked here. mlx-lm and transformers check
theirs; see :mod:`mlxlab.models.refusal`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mlxlab.content import read_whole
from mlxlab.errors import ModelError
from mlxlab.limits import MODEL_PARTS

__all__ = ["GenerationConfig", "ModelConfig", "read_object", "read_settings"]

SettingsT = TypeVar("SettingsT", bound="_Settings")
TokenIds: TypeAlias = Annotated[int, Field(ge=-1, lt=2**31)]

#: Numbers of parts that are built one by one.
_NUMBER = re.compile(r"(num|n)_(\w+_)?(layers?|blocks?|experts)$")


class _Settings(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    eos_token_id: TokenIds | list[TokenIds] | None = None

    @property
    def end_ids(self) -> frozenset[int]:
        """Token ids that end an answer."""
        ids = self.eos_token_id
        return frozenset(ids if isinstance(ids, list) else [] if ids is None else [ids])


class ModelConfig(_Settings):
    """What mlxlab reads of ``config.json``, or of the ``text_config`` in it."""

    model_type: str | None = None
    dtype: str | None = None
    torch_dtype: str | None = None
    max_position_embeddings: Annotated[int, Field(ge=1)] | None = None
    vocab_size: Annotated[int, Field(ge=1)] | None = None
    text_config: dict[str, Any] | None = None


class GenerationConfig(_Settings):
    """What mlxlab reads of ``generation_config.json``."""

    do_sample: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=1000)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None


def read_object(model: str, file: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Args:
        model: its name, for errors.
        file: of its folder.

    Raises:
        ModelError: the file is missing, cannot be read or holds anything else.
    """
    try:
        found = json.loads(read_whole(file))
    except OSError as error:
        problem = error.strerror
    except (ValueError, RecursionError) as error:
        problem = f"not JSON: {error}".partition(";")[0]
    else:
        if isinstance(found, dict):
            return found
        problem = "not a JSON object"
    raise ModelError(
        f"model {model!r}: {file} cannot be read ({problem}); "
        "give a folder in mlx-lm's format"
    )


def read_settings(
    kind: type[SettingsT], model: str, file: Path, values: Mapping[str, Any]
) -> SettingsT:
    """Check the settings that a file holds.

    Args:
        kind: the settings.
        model: its name, for errors.
        file: in which they are.
        values: of that file.

    Raises:
        ModelError: names the setting and what it may be.
    """
    try:
        _check_numbers(values)
        settings = kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        problem = f"{first['loc'][0]}: {first['msg']}"
    except ValueError as error:
        problem = str(error)
    except RecursionError:
        problem = "lists and objects nested too deep"
    else:
        return settings
    raise ModelError(f"model {model}: cannot be loaded: {file.name}: {problem}")


def _check_numbers(values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict):
            _check_numbers(value)
        elif isinstance(value, int) and _NUMBER.match(key) and value > MODEL_PARTS:
            raise ValueError(f"{key}: Input should be at most {MODEL_PARTS}")
