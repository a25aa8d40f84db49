"""Which BLAS mlx calls on Linux, decided before mlx is imported.

The wheel of ``mlx[cpu]`` brings the reference BLAS, which is some 30 times slower than
OpenBLAS. Its calls go to ``cblas_sgemm`` by name, so a library with that name in the
process's global scope is used instead. Must not import mlx, directly or not, and knows
nothing of models.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from mlxlab.elf import drop_prefix
from mlxlab.errors import UntrustedError
from mlxlab.files import cache_folder, make_folder, replaced
from mlxlab.ownership import read_own, require_own

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
        name: library, version and where it came from; what a manifest carries.
        path: the file it was loaded from; None for what mlx brings along.
    """

    name: str
    path: Path | None = None

    def __str__(self) -> str:
        return self.name


@cache
def preload() -> Blas:
    """Give mlx a fast BLAS, once; later calls only say which one is in use.

    The first that there is: what the user put in the global scope (``LD_PRELOAD``),
    the ``scipy-openblas32`` wheel, the system's OpenBLAS. The wheel comes before the
    system because its version is the one that was installed with mlxlab, which keeps
    results comparable between machines. Nothing is loaded outside Linux, or once mlx is
    imported, because its calls are bound by then.
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
    """The library that answers to ``cblas_sgemm`` by now, if any."""
    process = ctypes.CDLL(None)
    if not hasattr(process, _ENTRY):
        return None
    path = _file_of(process)
    return Blas(f"{_title(process, path.name)} (preloaded by the user)", path)


def _load_wheel() -> Blas:
    """OpenBLAS of the wheel, whose names all carry a prefix, from a renamed copy."""
    if not _is_installed(_WHEEL):
        raise FileNotFoundError(f"{_WHEEL} is not installed")
    # Not by importing it, which would load the library under its prefixed names too.
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
    with tempfile.TemporaryDirectory(prefix="mlxlab-") as private:
        copy = Path(private).resolve() / name
        copy.write_bytes(renamed)
        copy.chmod(0o600)
        require_own(copy)
        # Once loaded, the library outlives its file.
        return _load(copy, _WHEEL)


def _load_system() -> Blas:
    return _load(Path(_SYSTEM), "system")


def _load(path: Path, source: str) -> Blas:
    library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    if not hasattr(library, _ENTRY):
        raise OSError(f"{path} has no {_ENTRY}")
    return Blas(f"{_title(library, path.name)} ({source})", _file_of(library))


def _cached_copy(renamed: bytearray, name: str) -> Path:
    """The renamed copy in the user's cache folder, written there if it is missing.

    What is loaded runs as the user. So the copy is used only if nobody else can have
    written it and every byte is what renaming gives, made anew from the wheel. A digest
    kept beside the copy would be as easy to plant as the copy itself. The copy is read
    before it is loaded by name: in between, only this user can replace it.

    Raises:
        UntrustedError: another user may have written it, or it has other content.
        OSError: it can be neither read nor written.
    """
    copy = cache_folder() / name
    try:
        found = read_own(copy)
    except FileNotFoundError:
        make_folder(copy.parent)
        require_own(copy.parent)
        # Under its own name only when complete: another process may be at it too.
        with replaced(copy) as file:
            file.write(renamed)
        found = read_own(copy)
    if found != renamed:
        reason = f"not what the installed {_WHEEL} gives; remove it"
        raise UntrustedError(None, reason, str(copy))
    return copy


def _title(library: ctypes.CDLL, otherwise: str) -> str:
    """Name and version as OpenBLAS gives them; other libraries by their file's name."""
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
    """The file that ``cblas_sgemm`` as seen by ``library`` was loaded from."""
    info = _SymbolInfo()
    ctypes.CDLL(None).dladdr(getattr(library, _ENTRY), ctypes.byref(info))
    return Path(os.fsdecode(info.file_name or b""))


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
