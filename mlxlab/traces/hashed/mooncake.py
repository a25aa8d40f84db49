"""Hashed traces as Mooncake publishes them (arXiv 2407.00079).

One JSON object a line, packed or not: ``timestamp`` in milliseconds, ``input_length``,
``output_length``, ``hash_ids``, one for each block of 512 tokens, chained.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from mlxlab.errors import TraceError
from mlxlab.files import unpacked
from mlxlab.traces.hashed.trace import HashedRequest, HashedTrace

__all__ = ["open_mooncake", "read_mooncake"]

UNIT = 512
_MOST = 2**31 - 1


class _Line(BaseModel):
    timestamp: float
    input_length: Annotated[int, Field(ge=1, le=_MOST)]
    hash_ids: list[Annotated[int, Field(ge=0, le=_MOST)]]


def open_mooncake(path: Path) -> HashedTrace:
    """The trace in a file.

    Raises:
        TraceError: its first line is no such request.
    """
    next(read_mooncake(path))
    return HashedTrace(path, UNIT, read_mooncake)


def read_mooncake(path: Path) -> Iterator[HashedRequest]:
    """Requests in the order of the file, one in memory at a time.

    A last block that is not full has a number too; it is left out, for nobody could
    restore it.

    Raises:
        TraceError: a line that is no such request.
    """
    number = 0
    try:
        with unpacked(path) as lines:
            for data in lines:
                number += 1
                line = _Line.model_validate_json(data)
                whole = line.hash_ids[: line.input_length // UNIT]
                yield HashedRequest(
                    line.timestamp / 1000,
                    line.input_length,
                    np.array(whole, dtype=np.int32),
                )
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
