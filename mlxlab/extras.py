"""Optional dependencies: one clear line where an extra is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mlxlab.errors import MissingExtraError

__all__ = ["needs"]


@contextmanager
def needs(subject: str, extra: str | None = None) -> Iterator[None]:
    """Turn a failed import in the block into one line that names the extra.

    ::

        with needs("tune"):
            import optuna

    Args:
        subject: the verb or part that needs the imports.
        extra: the extra in ``pyproject.toml`` that brings them; ``subject`` if None.

    Raises:
        MissingExtraError: a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", __name__.partition(".")[0]):
            raise  # a bug in mlxlab, not a missing package
        raise MissingExtraError(
            f"{subject} needs {package}: pip install 'mlxlab[{extra or subject}]'"
        ) from None
