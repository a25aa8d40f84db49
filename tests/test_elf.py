"""Renaming the symbols of the library that mlx is given on Linux."""

import ctypes
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

from mlxlab.elf import drop_prefix

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="another format here")


@pytest.fixture(scope="module")
def library() -> bytes:
    folder = distribution("scipy-openblas32").locate_file("scipy_openblas32/lib")
    (path,) = Path(str(folder)).glob("libscipy_openblas*.so")
    return path.read_bytes()


@linux_only
def test_names_lose_their_prefix_and_the_others_stay(
    library: bytes, tmp_path: Path
) -> None:
    renamed = tmp_path / "renamed.so"
    renamed.write_bytes(drop_prefix(library, b"scipy_"))
    loaded = ctypes.CDLL(str(renamed), mode=ctypes.RTLD_LOCAL)
    for name in ("cblas_sgemm", "openblas_get_config", "dgemm_", "LAPACKE_dgesv"):
        assert hasattr(loaded, name)
        assert not hasattr(loaded, f"scipy_{name}")
    assert not hasattr(loaded, "cblas_sgem")


@linux_only
def test_nothing_but_names_and_hashes_changes(library: bytes) -> None:
    renamed = drop_prefix(library, b"scipy_")
    assert len(renamed) == len(library)
    changed = [i for i in range(1 << 20) if renamed[i] != library[i]]
    assert changed
    assert renamed[1 << 20 :] == library[1 << 20 :]
    assert renamed == drop_prefix(library, b"scipy_")
    # Without a name to change, the library is the same but for its hash table.
    assert len(drop_prefix(library, b"no such prefix")) == len(library)


@linux_only
@pytest.mark.parametrize("stop", [0, 10, 100, 1 << 12])
def test_what_is_no_library_is_refused(library: bytes, stop: int) -> None:
    with pytest.raises(OSError, match="not a little-endian ELF64 library"):
        drop_prefix(library[:stop], b"scipy_")


def test_another_format_is_refused() -> None:
    with pytest.raises(OSError, match="not a little-endian ELF64 library"):
        drop_prefix(b"\xcf\xfa\xed\xfe" * 100, b"scipy_")
