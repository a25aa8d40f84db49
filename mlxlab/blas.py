"""Chooses the BLAS that mlx calls on Linux, before mlx is imported.

The wheel of ``mlx[cpu]`` brings the reference BLAS, which is about 30 times slower
than OpenBLAS. It finds ``cblas_sgemm`` by name, so a library with that name in the
process's global scope takes its place.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from mlxlab.elf import drop_prefix
from mlxlab.errors import UntrustedError
from mlxlab.files import cache_folder, make_folder, replaced
from mlxlab.ownership import read_own, require_own
from mlxlab.unfinished import scratch_folder

__all__ = ["Blas", "preload"]

log = logging.getLogger(__name__)

_WHEEL = "scipy-openblas32"
_SYSTEM = "libopenblas.so.0"
_CUDA_BACKENDS = ("mlx-cuda-12", "mlx-cuda-13")
_ENTRY = "cblas_sgemm"


@dataclass(frozen=True, slots=True)
class Blas:
    """The BLAS in use.

    Attributes:
        name: library, version and origin, as manifests show them.
        path: the loaded file; None for the BLAS that comes with mlx.
    """

    name: str
    path: Path | None = None

    def __str__(self) -> str:
        return self.name


@cache
def preload() -> Blas:
    """Give mlx a fast BLAS, once; later calls return the BLAS in use.

    Takes the first that exists: a library that the user put in the global scope
    (``LD_PRELOAD``), the ``scipy-openblas32`` wheel, the system's OpenBLAS. The wheel
    comes before the system: its version was installed with mlxlab, which keeps results
    comparable between machines. Outside Linux nothing is loaded. After the import of
    mlx nothing is loaded either, because mlx's calls are bound by then.
    """
    if sys.platform == "linux":
        blas = _preload_on_linux()
    else:
        blas = Blas("mlx's own (Metal and Accelerate)")
    log.info("BLAS: %s", blas)
    return blas


def _preload_on_linux() -> Blas:
    if (found := _in_global_scope()) is not None:
        return found
    if "mlx.core" in sys.modules:
        log.warning(
            "BLAS: mlx was imported before mlxlab.engine, too late for a fast BLAS; "
            "import mlxlab.engine first"
        )
        return Blas("mlx's own (reference BLAS)")
    if any(map(_is_installed, _CUDA_BACKENDS)):
        return Blas("mlx's own (CUDA)")
    return _load_first(_load_wheel, _load_system)


def _load_first(*sources: Callable[[], Blas]) -> Blas:
    reasons = []
    for source in sources:
        try:
            return source()
        except OSError as error:
            reasons.append(str(error))
    log.warning(
        "BLAS: mlx's reference BLAS is in use, some 30 times slower than OpenBLAS "
        "(%s); pip install 'mlxlab[cpu]', or install the system package libopenblas0",
        "; ".join(reasons),
    )
    return Blas("mlx's own (reference BLAS)")


def _in_global_scope() -> Blas | None:
    """Return the library that already provides ``cblas_sgemm``, if there is one."""
    process = ctypes.CDLL(None)
    if not hasattr(process, _ENTRY):
        return None
    path = _file_of(process)
    return Blas(f"{_title(process, path.name)} (preloaded by the user)", path)


def _load_wheel() -> Blas:
    """Load the wheel's OpenBLAS from a copy whose symbols have no prefix."""
    if not _is_installed(_WHEEL):
        raise FileNotFoundError(f"{_WHEEL} is not installed")
    # Importing the package would load the library under its prefixed names too.
    wheel = distribution(_WHEEL)
    folder = Path(str(wheel.locate_file("scipy_openblas32/lib")))
    library = next(folder.glob("libscipy_openblas*.so"), None)
    if library is None:
        raise FileNotFoundError(f"{_WHEEL} {wheel.version} holds no library")
    name = f"{_WHEEL}-{wheel.version}-{platform.machine()}.so"
    renamed = drop_prefix(library.read_bytes(), b"scipy_")
    try:
        return _load(_cached_copy(renamed, name), _WHEEL)
    except UntrustedError as error:
        log.warning("BLAS: private copy, the cached one is not used: %s", error)
    except OSError as error:
        log.debug("BLAS: private copy, the cached one cannot be used: %s", error)
    with scratch_folder() as private:
        copy = private.resolve() / name
        copy.write_bytes(renamed)
        copy.chmod(0o600)
        require_own(copy)
        # A loaded library outlives its file.
        return _load(copy, _WHEEL)


def _load_system() -> Blas:
    return _load(Path(_SYSTEM), "system")


def _load(path: Path, source: str) -> Blas:
    library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    if not hasattr(library, _ENTRY):
        raise OSError(f"{path} has no {_ENTRY}")
    return Blas(f"{_title(library, path.name)} ({source})", _file_of(library))


def _cached_copy(renamed: bytearray, name: str) -> Path:
    """Return the renamed copy in the user's cache folder; write it if it is missing.

    The library runs with the user's rights. So the copy is used only if no other user
    can have written it, and if each byte equals a fresh renaming of the wheel. A digest
    beside the copy would be as easy to plant as the copy. The copy is checked first and
    loaded by name later; in between, only this user can replace it.

    Raises:
        UntrustedError: another user may have written the copy, or its content differs.
        OSError: the copy can be neither read nor written.
    """
    copy = cache_folder() / name
    try:
        found = read_own(copy)
    except FileNotFoundError:
        make_folder(copy.parent)
        require_own(copy.parent)
        # Another process may write the copy too, so it gets its name when it is
        # complete.
        with replaced(copy) as file:
            file.write(renamed)
        found = read_own(copy)
    if found != renamed:
        reason = f"differs from the installed {_WHEEL}; remove it"
        raise UntrustedError(None, reason, str(copy))
    return copy


def _title(library: ctypes.CDLL, otherwise: str) -> str:
    """Return OpenBLAS's own name and version, or ``otherwise`` for other libraries."""
    if not hasattr(library, "openblas_get_config"):
        return otherwise
    library.openblas_get_config.restype = ctypes.c_char_p
    words = library.openblas_get_config().decode().split()
    return " ".join(words[:2])


class _SymbolInfo(ctypes.Structure):
    """``Dl_info`` of ``dladdr(3)``."""

    _fields_ = (
        ("file_name", ctypes.c_char_p),
        ("file_base", ctypes.c_void_p),
        ("symbol_name", ctypes.c_char_p),
        ("symbol_address", ctypes.c_void_p),
    )


def _file_of(library: ctypes.CDLL) -> Path:
    """Return the file that ``library`` loaded its ``cblas_sgemm`` from."""
    info = _SymbolInfo()
    ctypes.CDLL(None).dladdr(getattr(library, _ENTRY), ctypes.byref(info))
    return Path(os.fsdecode(info.file_name or b""))


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
