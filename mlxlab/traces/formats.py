"""Trace formats: each is declared by a class in its own file, which registers it."""

from __future__ import annotations

import logging
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from mlxlab.errors import TraceError

__all__ = ["ENTRY_POINTS", "Format", "Registry"]

log = logging.getLogger(__name__)

#: Installed packages name modules with formats of their own in this group.
ENTRY_POINTS = "mlxlab.formats"


class Format(ABC):
    """A form in which programs keep requests.

    Attributes:
        name: the name that users choose the format by.
        summary: one line for lists of formats.
    """

    name: ClassVar[str]
    summary: ClassVar[str]

    @abstractmethod
    def recognizes(self, path: Path) -> bool:
        """Return whether the file or folder at ``path``, which exists, has the format.

        Raises:
            TraceError: ``path`` cannot be read.
        """


F = TypeVar("F", bound=Format)


class Registry(Mapping[str, F], Generic[F]):
    """Formats by name, in alphabetical order.

    The modules of a package, and those that other packages name as entry points, are
    imported when the registry is first read. Each registers its formats.

    Args:
        package: the package whose modules declare formats.
    """

    def __init__(self, package: str) -> None:
        self._package = package
        self._formats: dict[str, F] = {}
        self._is_loaded = False

    def register(self, kind: type[F]) -> type[F]:
        """Add a format; a class decorator.

        A class that is defined again, as in a notebook cell, replaces the earlier one.

        Raises:
            TraceError: another class has that name.
        """
        if not kind.__module__.startswith(f"{self._package}."):
            self._load()  # so that a name of the package's own is known to be taken
        known = self._formats.get(kind.name)
        if known is not None and _place(type(known)) != _place(kind):
            raise TraceError(
                f"{_place(kind)}: format {kind.name!r} is taken by "
                f"{_place(type(known))}; give another name"
            )
        self._formats[kind.name] = kind()
        return kind

    def recognizing(self, path: Path) -> list[F]:
        """Return the formats that recognize ``path``."""
        return [format for format in self.values() if format.recognizes(path)]

    def __getitem__(self, name: str) -> F:
        self._load()
        return self._formats[name]

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(sorted(self._formats))

    def __len__(self) -> int:
        self._load()
        return len(self._formats)

    def _load(self) -> None:
        if self._is_loaded:
            return
        self._is_loaded = True
        package = import_module(self._package)
        for module in pkgutil.walk_packages(package.__path__, f"{self._package}."):
            import_module(module.name)
        for entry in entry_points(group=ENTRY_POINTS):
            try:
                entry.load()
            except Exception as error:  # the built-in formats have to stay usable
                log.warning(
                    "formats of %s are not available (%s); repair or uninstall it",
                    entry.value,
                    error,
                )


def _place(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
