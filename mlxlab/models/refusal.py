"""Refuses a model in one line, whatever other libraries make of its files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mlxlab.errors import ModelError

__all__ = ["refusing"]

#: Characters of a reason.
_REASON = 400


@contextmanager
def refusing(model: str, failed: str) -> Iterator[None]:
    """Turn any error of other libraries into one line.

    They raise any type at strangers' files: mlx-lm calls ``sys.exit``, and a panic of
    ``tokenizers`` is no Exception.

    Args:
        model: its name.
        failed: begins the reason.

    Raises:
        ModelError: the block raised an error; it is the cause.
    """
    try:
        yield
    except ModelError as error:
        named = f"model {model}: "
        raise ModelError(named + str(error).removeprefix(named)) from error.__cause__
    except (KeyboardInterrupt, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:_REASON]
        raise ModelError(f"model {model}: {failed}: {why}") from error
