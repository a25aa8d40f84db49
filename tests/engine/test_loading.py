"""Broken and hostile model folders: one clear error, and nothing of theirs runs."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxlab.decoding import Grammar
from mlxlab.engine import Worker, load_model
from mlxlab.errors import ModelError
from mlxlab.models import tiny
from mlxlab.models.folder import find_model

WEIGHTS = (tiny.PATH / "model.safetensors").read_bytes()
LENGTH = struct.unpack("<Q", WEIGHTS[:8])[0]
HEADER = WEIGHTS[8 : 8 + LENGTH]
TENSOR = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as worker:
        yield worker


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny.PATH / file, folder)
    return folder


def refusal(worker: Worker, folder: Path) -> str:
    """Return the one line that says why the model is not loaded."""
    with pytest.raises(ModelError) as caught:
        worker.call(load_model, find_model(str(folder)))
    message = str(caught.value)
    assert message.startswith(f"model {folder}: cannot be loaded: ")
    assert message.isprintable()
    return message


def with_weights(folder: Path, data: bytes) -> Path:
    (folder / "model.safetensors").write_bytes(data)
    return folder


def with_config(folder: Path, change: dict[str, Any]) -> Path:
    config = json.loads((tiny.PATH / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def reheaded(change: Callable[[dict[str, Any]], object]) -> bytes:
    """The weights under a header that says something else."""
    header = json.loads(HEADER)
    change(header)
    data = json.dumps(header).encode()
    return struct.pack("<Q", len(data)) + data + WEIGHTS[8 + LENGTH :]


CUTS = st.one_of(
    st.integers(0, 8 + LENGTH + 1), st.integers(0, len(WEIGHTS) - 1), st.just(7)
)


@given(cut=CUTS)
@settings(max_examples=60)
def test_weights_cut_off_anywhere_are_refused(
    worker: Worker, folder: Path, cut: int
) -> None:
    refusal(worker, with_weights(folder, WEIGHTS[:cut]))


@given(at=st.integers(0, 8 + LENGTH - 1), garbage=st.binary(min_size=1, max_size=8))
@settings(max_examples=100)
def test_a_garbled_header_never_crashes(
    worker: Worker, folder: Path, at: int, garbage: bytes
) -> None:
    data = bytearray(WEIGHTS)
    data[at : at + len(garbage)] = garbage
    with_weights(folder, bytes(data[: len(WEIGHTS)]))
    with suppress(ModelError):  # white space may be garbled freely
        worker.call(load_model, find_model(str(folder)))


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [2**40, 2**40]},
        {"shape": [2**62 + 1114112]},
        {"shape": [-8704, -128]},
        {"shape": [128, 8704]},
        {"shape": []},
        {"shape": "8704"},
        {"data_offsets": [10**12, 10**12 + 4456448]},
        {"data_offsets": [-4456448, 0]},
        {"data_offsets": [4456448, 0]},
        {"data_offsets": [0, 2**64]},
        {"dtype": "F99"},
        {"dtype": 5},
        {"dtype": "F16"},
    ],
    ids=str,
)
def test_shapes_are_checked_before_anything_is_read(
    worker: Worker, folder: Path, change: dict[str, Any]
) -> None:
    data = reheaded(lambda header: header[TENSOR].update(change))
    refusal(worker, with_weights(folder, data))


def test_missing_and_unknown_weights_are_refused(worker: Worker, folder: Path) -> None:
    missing = reheaded(lambda header: header.pop(TENSOR))
    assert TENSOR in refusal(worker, with_weights(folder, missing))
    extra = reheaded(lambda header: header.update(other=header[TENSOR]))
    assert "other" in refusal(worker, with_weights(folder, extra))


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_model.bin",
        "model.bin",
        "model.pt",
        "model.gguf",
        "weights.npz",
        "model.npy",
        "model.pkl",
    ],
)
def test_only_safetensors_are_read(
    worker: Worker, folder: Path, name: str, tmp_path: Path
) -> None:
    other = tmp_path / "model"
    shutil.copytree(folder, other, ignore=shutil.ignore_patterns("*.safetensors"))
    (other / name).write_bytes(WEIGHTS)
    assert "safetensors" in refusal(worker, other)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "../evil"},
        {"model_type": 5},
        {"num_hidden_layers": "x"},
        {"num_hidden_layers": 9},
        {"hidden_size": 0},
        {"vocab_size": None},
        {"quantization": {}},
        {"quantization": 5},
        {"text_config": 5},
        {"rope_parameters": [1]},
    ],
    ids=str,
)
def test_a_broken_config_is_refused(
    worker: Worker, folder: Path, change: dict[str, Any]
) -> None:
    with_weights(folder, WEIGHTS)
    try:
        refusal(worker, with_config(folder, change))
    finally:
        with_config(folder, {})


def test_a_model_that_ends_the_process_is_refused(worker: Worker, folder: Path) -> None:
    with_weights(folder, WEIGHTS)
    try:
        said = refusal(worker, with_config(folder, {"model_type": "olmo"}))
        assert "SystemExit" in said
    finally:
        with_config(folder, {})


@pytest.mark.parametrize("text", ["[]", "5", "null", "{", "[" * 100_000])
def test_a_config_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        find_model(str(tmp_path))


EVIL = "from pathlib import Path\nPath({file!r}).touch()\n"


@pytest.mark.parametrize("key", ["model_file", "auto_map"])
def test_code_in_a_folder_is_never_run(
    worker: Worker, tmp_path: Path, key: str
) -> None:
    other, ran = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(tiny.PATH, other, ignore=shutil.ignore_patterns("*.py", "__*"))
    for module in ("modeling_evil", "tokenization_evil", "configuration_evil"):
        (other / f"{module}.py").write_text(EVIL.format(file=str(ran)))
    classes = {
        "AutoConfig": "configuration_evil.Config",
        "AutoModelForCausalLM": "modeling_evil.Model",
    }
    change = {"model_file": "modeling_evil.py", "auto_map": classes}
    with_config(other, {key: change[key]})
    tokenizer = json.loads((other / "tokenizer_config.json").read_text())
    tokenizer["auto_map"] = {"AutoTokenizer": ["tokenization_evil.T", None]}
    (other / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    if key == "model_file":
        assert "custom module" in refusal(worker, other)
    else:
        assert worker.call(load_model, find_model(str(other)))
    for name in (tokenizer["tokenizer_class"], "Unheard"):
        changed = tokenizer | {"tokenizer_class": name}
        (other / "tokenizer_config.json").write_text(json.dumps(changed))
        assert find_model(str(other)).tokenizer.encode("a b")
        assert Grammar.of(find_model(str(other)))
    assert not ran.exists()
