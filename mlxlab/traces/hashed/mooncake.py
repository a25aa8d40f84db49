"""Hashed traces as Mooncake publishes them (arXiv 2407.00079).

A line holds one JSON object: ``timestamp`` in milliseconds, ``input_length``,
``output_length`` and ``hash_ids``, one chained hash for each block of 512 tokens. The
file is packed with gzip or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from mlxlab.content import unpacked
from mlxlab.errors import TraceError
from mlxlab.limits import TRACE_SECONDS
from mlxlab.traces.hashed.base import HASHED_FORMATS, BlockId, Count, HashedFormat
from mlxlab.traces.hashed.trace import HashedRequest

__all__ = ["Mooncake"]

#: Tokens of a block.
UNIT = 512


class _Line(BaseModel):
    timestamp: Annotated[
        float, Field(strict=True, ge=0, lt=TRACE_SECONDS * 1000, allow_inf_nan=False)
    ]
    input_length: Annotated[Count, Field(ge=1)]
    hash_ids: list[BlockId]


@HASHED_FORMATS.register
class Mooncake(HashedFormat):
    """One request per line."""

    name = "mooncake"
    summary = "hashed requests of Mooncake, .jsonl or .jsonl.gz"
    signature = b'"input_length"'

    def unit(self, path: Path) -> int:
        next(self.requests(path))  # refuses files of other formats
        return UNIT

    def requests(self, path: Path) -> Iterator[HashedRequest]:
        number = 0
        try:
            with unpacked(path) as lines:
                for data in lines:
                    number += 1
                    yield _hashed(_Line.model_validate_json(data))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            at = ".".join(map(str, first["loc"])) or "line"
            raise TraceError(
                f"{path}:{number}: {at}: {first['msg']}; accepted: timestamp, "
                "input_length, hash_ids"
            ) from None
        except OSError as error:
            raise TraceError(f"{path}: {error.strerror}; give a hashed trace") from None
        if number == 0:
            raise TraceError(f"{path}: empty; give one hashed request per line")


def _hashed(line: _Line) -> HashedRequest:
    # A last block that is not full has a number too, but cannot be restored.
    whole = line.hash_ids[: line.input_length // UNIT]
    chained = np.array(whole, dtype=np.int32)
    return HashedRequest(
        line.timestamp / 1000, line.input_length, chained, session=None
    )
