"""GGUF files become model folders that compute the same, or one line of refusal."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from tokenizers import Tokenizer

from mlxlab.engine import load_model
from mlxlab.errors import ModelError, UntrustedError
from mlxlab.models.folder import find_model
from mlxlab.models.gguf.tokenizer import make_tokenizer
from tests.support.gguf_files import (
    METADATA,
    TOKENS,
    random_model,
    save_gguf,
    tensors_of,
)

IDS = mx.array([[5, 9, 200, 17, 44, 260, 3]])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of unpacked models; it is not there yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/mlxlab/models"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return save_gguf(tmp_path_factory.mktemp("gguf") / "whole.gguf").read_bytes()


def refused(file: Path, cache: Path) -> str:
    with pytest.raises(ModelError) as caught:
        find_model(str(file))
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"model {str(file)!r}: ")
    assert not cache.exists() or not list(cache.iterdir())
    return line.partition(": ")[2]


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("llama", {}),
        ("llama", {"attention_bias": True, "tie_word_embeddings": False}),
        ("qwen2", {}),
        ("qwen3", {"tie_word_embeddings": False}),
    ],
    ids=str,
)
def test_the_unpacked_model_computes_what_the_original_does(
    kind: str, config: dict[str, Any], tmp_path: Path
) -> None:
    model = random_model(kind, **config)
    folder = find_model(str(save_gguf(tmp_path / "a.gguf", model, kind)))
    assert mx.array_equal(load_model(folder)(IDS), model(IDS))
    assert folder.window == 512
    assert folder.layout.token_bytes() == 2 * 2 * 2 * 16 * 4
    assert folder.end_ids == {2}


def test_heads_in_the_order_of_llama_cpp_are_not_left_so(tmp_path: Path) -> None:
    model = random_model("llama")
    tensors = tensors_of(model, "qwen3")  # not paired
    file = save_gguf(tmp_path / "a.gguf", model, tensors=tensors)
    assert not mx.allclose(load_model(find_model(str(file)))(IDS), model(IDS))


@pytest.mark.parametrize("dtype", [mx.float16, mx.float32])
def test_small_models_become_float32(dtype: mx.Dtype, tmp_path: Path) -> None:
    model = random_model("llama")
    tensors = {n: a.astype(dtype) for n, a in tensors_of(model, "llama").items()}
    folder = find_model(str(save_gguf(tmp_path / "a.gguf", model, tensors=tensors)))
    loaded = load_model(folder)
    assert loaded(IDS).dtype == mx.float32
    assert mx.allclose(loaded(IDS), model(IDS), atol=5e-2)


def quantized(array: mx.array, kind: str) -> tuple[bytes, mx.array]:
    """Blocks of 32 weights as llama.cpp packs them, and what they mean."""
    groups = np.array(array, dtype=np.float32).reshape(-1, 32)
    low, high = groups.min(1, keepdims=True), groups.max(1, keepdims=True)
    if kind == "Q8_0":
        scale = (abs(groups).max(1, keepdims=True) / 127).astype(np.float16)
        levels = np.round(groups / scale).astype(np.int8)
        rows = np.hstack([scale.view(np.uint8), levels.view(np.uint8)])
        meant = levels * scale.astype(np.float32)
    else:  # Q4_1
        scale = ((high - low) / 15).astype(np.float16)
        bias = low.astype(np.float16)
        levels = np.clip(np.round((groups - bias) / scale), 0, 15).astype(np.uint8)
        nibbles = levels[:, :16] | levels[:, 16:] << 4
        rows = np.hstack([scale.view(np.uint8), bias.view(np.uint8), nibbles])
        meant = levels * scale.astype(np.float32) + bias.astype(np.float32)
    return rows.tobytes(), mx.array(meant.reshape(array.shape))


def pack(data: bytes, tensors: dict[str, mx.array], kinds: dict[str, str]) -> bytes:
    """Replace tensors in a GGUF file by packed ones, which go to its end."""
    changed = bytearray(data)
    base = -(-header_end(data) // 32) * 32
    for name, kind in kinds.items():
        blocks, tensors[name] = quantized(tensors[name], kind)
        changed += bytes(-len(changed) % 32)
        # Behind the name come the number of dimensions, these, type and offset.
        at = data.index(struct.pack("<Q", len(name)) + name.encode()) + 8 + len(name)
        at += 4 + 8 * struct.unpack_from("<I", data, at)[0]
        code = {"Q4_1": 3, "Q8_0": 8}[kind]
        struct.pack_into("<IQ", changed, at, code, len(changed) - base)
        changed += blocks
    return bytes(changed)


def header_end(data: bytes) -> int:
    """Where the last tensor's description ends."""
    ends = []
    for name in tensors_of(random_model("llama"), "llama"):
        key = struct.pack("<Q", len(name)) + name.encode()
        at = data.index(key) + len(key)
        ends.append(at + 4 + 8 * struct.unpack_from("<I", data, at)[0] + 12)
    return int(max(ends))


@pytest.mark.parametrize("packed", [False, True], ids=["float32", "packed"])
def test_packed_weights_mean_the_same(
    packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if packed:
        monkeypatch.setattr("mlxlab.models.gguf.architecture._FLOAT32_BELOW", 0)
    model = random_model("llama")
    tensors = tensors_of(model, "llama")
    file = save_gguf(tmp_path / "a.gguf", model)
    kinds = {"blk.0.attn_q.weight": "Q4_1", "blk.1.attn_k.weight": "Q8_0"}
    kinds |= {"blk.0.ffn_up.weight": "Q4_1", "token_embd.weight": "Q8_0"}
    file.write_bytes(pack(file.read_bytes(), tensors, kinds))
    folder = find_model(str(file))
    loaded: Any = load_model(folder)
    same = load_model(find_model(str(save_gguf(tmp_path / "b.gguf", tensors=tensors))))
    assert ("quantization" in folder.config) == packed
    kept = loaded.model.layers[0].self_attn.q_proj.weight.dtype
    assert kept == (mx.uint32 if packed else mx.float32)
    assert loaded.model.layers[1].self_attn.v_proj.weight.dtype != mx.uint32
    tolerance = 0.05 if packed else 1e-5  # float16 rounds
    assert mx.allclose(loaded(IDS), same(IDS), atol=tolerance)
    assert not mx.allclose(loaded(IDS), model(IDS), atol=tolerance)


def test_llama_3_scales_its_rotations(tmp_path: Path) -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    model = random_model("llama", rope_theta=500000.0, rope_scaling=scaling)
    frequencies = model.model.layers[0].self_attn.rope._freqs
    factors = frequencies / 500000.0 ** (mx.arange(0, 16, 2) / 16)
    assert factors.max() > 7.9
    rope = {"rope_freqs.weight": factors}
    folder = find_model(str(save_gguf(tmp_path / "a.gguf", model, tensors=rope)))
    assert mx.allclose(load_model(folder)(IDS), model(IDS), atol=1e-5)


def test_linear_scaling_is_kept(tmp_path: Path) -> None:
    model = random_model("llama", rope_scaling={"type": "linear", "factor": 4.0})
    factor: dict[str, Any] = {"llama__rope__scaling__factor": mx.array(4.0)}
    folder = find_model(str(save_gguf(tmp_path / "a.gguf", model, **factor)))
    assert mx.allclose(load_model(folder)(IDS), model(IDS), atol=1e-5)


def test_ids_and_texts_are_those_of_the_file(tmp_path: Path) -> None:
    tokenizer: Any = find_model(str(save_gguf(tmp_path / "a.gguf"))).tokenizer
    text = "<|im_start|>the 12 the<tool>\u00e9<|im_end|>"
    ids = tokenizer.encode(text)
    expected = ["<|im_start|>", "t", "he", "\u0120", "1", "2", "\u0120the", "<tool>"]
    expected += ["\u00c3", "\u00a9", "<|im_end|>"]
    assert [TOKENS[i] for i in ids] == expected
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the 12 the<tool>\u00e9"
    chat = [{"role": "user", "content": "the"}]
    shown = tokenizer.apply_chat_template(chat, tokenize=False)
    assert shown == "<|im_start|>user\nthe<|im_end|>\n"


def split(pre: str, text: str) -> list[str]:
    tokenizer: Any = make_tokenizer({**plain(), "tokenizer.ggml.pre": pre})
    whole = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
    return [part for part, _ in tokenizer.pre_tokenizer.pre_tokenize_str(whole)]


def plain() -> dict[str, Any]:
    """The tokenizer's metadata as a header holds them."""
    arrays = (key for key, own in METADATA.items() if isinstance(own, mx.array))
    return METADATA | {key: METADATA[key].tolist() for key in arrays}


@pytest.mark.parametrize(
    ("pre", "parts"),
    [
        ("gpt-2", ["I", "'ll", "\u0120pay", "\u012012345", "."]),
        ("smollm", ["I", "'ll", "\u0120pay", "\u0120", *"12345", "."]),
        ("qwen2", ["I", "'ll", "\u0120pay", "\u0120", *"12345", "."]),
        ("llama-bpe", ["I", "'ll", "\u0120pay", "\u0120", "123", "45", "."]),
    ],
)
def test_text_is_cut_as_the_model_learned_it(pre: str, parts: list[str]) -> None:
    assert split(pre, "I'll pay 12345.") == parts
    composed = split(pre, "e\u0301")
    assert (composed == split(pre, "\u00e9")) == (pre == "qwen2")


def test_a_first_token_is_added_where_the_file_says_so() -> None:
    tokenizer: Tokenizer = make_tokenizer(
        {**plain(), "tokenizer.ggml.add_bos_token": True}
    )
    assert tokenizer.encode("he").ids[:1] == [1]
    assert make_tokenizer(plain()).encode("he").ids[:1] != [1]


def test_a_file_is_unpacked_once_and_again_when_it_changes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = save_gguf(tmp_path / "a.gguf")
    first = find_model(str(file))
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", None)
        assert find_model(str(file)).path == first.path
    os.utime(file, ns=(0, 0))  # a large file may have changed where none looked
    touched = find_model(str(file))
    save_gguf(file, random_model("llama", seed=1))
    changed = find_model(str(file))
    assert len({first.path, touched.path, changed.path}) == 3
    assert first.digest == touched.digest != changed.digest
    assert len(list(cache.iterdir())) == 3


def test_the_folder_is_private_and_another_users_is_not_used(
    tmp_path: Path, cache: Path
) -> None:
    file = save_gguf(tmp_path / "a.gguf")
    folder = find_model(str(file)).path
    assert folder.parent == cache
    assert folder.stat().st_mode & 0o077 == 0
    folder.chmod(0o777)
    with pytest.raises(UntrustedError, match="others may write it"):
        find_model(str(file))


def test_two_may_unpack_at_once(tmp_path: Path, cache: Path) -> None:
    file = save_gguf(tmp_path / "a.gguf")
    barrier = threading.Barrier(3)

    def find() -> Path:
        barrier.wait()
        return find_model(str(file)).path

    with ThreadPoolExecutor(3) as pool:
        found = [pool.submit(find) for _ in range(3)]
    assert len({own.result() for own in found}) == 1
    assert [path.name for path in cache.iterdir()] == [found[0].result().name]


def test_no_mlx_is_loaded(tmp_path: Path) -> None:
    file = save_gguf(tmp_path / "a.gguf")
    script = f"""
import sys
from mlxlab.models.folder import find_model
for _ in range(2):
    find_model({str(file)!r})
    assert "mlx" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_missing_mlx_is_one_line(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = save_gguf(tmp_path / "a.gguf")
    broken = tmp_path / "path/mlx"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text(
        "raise ModuleNotFoundError('no mlx', name='mlx')"
    )
    monkeypatch.syspath_prepend(str(broken.parent))
    assert refused(file, cache) == (
        "unpacking a GGUF file needs mlx: pip install 'mlxlab[cpu]'"
    )


def test_a_crash_of_mlx_is_one_line(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = save_gguf(tmp_path / "a.gguf")
    crash = "import os; os.kill(os.getpid(), 11)"
    monkeypatch.setattr("mlxlab.models.gguf.cache._CONVERTER", crash)
    assert refused(file, cache) == "mlx cannot read it: it ended with SIGSEGV"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"general__architecture": "mamba"},
            "architecture 'mamba'; mlxlab reads llama, qwen2, qwen3",
        ),
        ({"general__architecture": ["llama"]}, "architecture ['llama']; mlxlab reads"),
        (
            {"tokenizer__ggml__model": "llama"},
            "tokenizer 'llama' with pre-tokenizer 'smollm'; mlxlab reads 'gpt2' with",
        ),
        (
            {"tokenizer__ggml__pre": "tekken"},
            "tokenizer 'gpt2' with pre-tokenizer 'tekken'; mlxlab reads 'gpt2' with",
        ),
        ({"tokenizer__chat_template": None}, "it has no chat template"),
        ({"tokenizer__ggml__merges": ["h q"]}, "damaged: its merges: "),
        ({"tokenizer__ggml__eos_token_id": None}, "it names no token that ends"),
        (
            {"tokenizer__ggml__eos_token_id": mx.array(999, mx.uint32)},
            "damaged: tokenizer.ggml.eos_token_id is 999",
        ),
        (
            {"llama__expert_count": mx.array(8, mx.uint32)},
            "llama.expert_count is 8, which mlxlab does not know",
        ),
        (
            {"llama__block_count": mx.array(2**31, mx.uint32)},
            "it claims 2,147,483,648 layers",
        ),
        (
            {"llama__block_count": mx.array(1, mx.uint32)},
            "tensor 'blk.1.attn_k.weight', which mlxlab does not know",
        ),
        (
            {"llama__feed_forward_length": mx.array(64, mx.uint32)},
            "tensor 'blk.0.ffn_gate.weight' is (96, 64), not (64, 64)",
        ),
        (
            {"llama__embedding_length": None},
            "llama.embedding_length is missing; it must be a number above 0",
        ),
        (
            {"llama__rope__dimension_count": mx.array(8, mx.uint32)},
            "rope.dimension_count 8 with 4 heads",
        ),
        ({"llama__rope__scaling__type": "longrope"}, "rope.scaling.type 'longrope'"),
        (
            {"tensors": {"blk.1.ffn_up.weight": None}},
            "it lacks tensor 'blk.1.ffn_up.weight'; give a whole model",
        ),
        (
            {"tensors": {"rope_freqs.weight": mx.arange(8.0)}},
            "tensor 'rope_freqs.weight' does not scale as Llama 3 does",
        ),
        ({"general__alignment": mx.array(64, mx.uint32)}, "an alignment other than 32"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_not_known_is_refused_in_one_line(
    changes: dict[str, Any], line: str, tmp_path: Path, cache: Path
) -> None:
    file = save_gguf(tmp_path / "a.gguf", **changes)
    assert refused(file, cache).startswith(line)


@pytest.mark.parametrize(
    ("code", "name"), [(12, "Q4_K"), (13, "Q5_K"), (77, "type 77")]
)
def test_packings_that_mlx_reads_wrong_are_refused(
    code: int, name: str, whole: bytes, tmp_path: Path, cache: Path
) -> None:
    key = b"blk.0.attn_q.weight"
    at = whole.index(key) + len(key) + 4 + 2 * 8
    file = tmp_path / "a.gguf"
    file.write_bytes(whole[:at] + struct.pack("<I", code) + whole[at + 4 :])
    assert refused(file, cache) == (
        f"tensor 'blk.0.attn_q.weight' is {name}, which mlx cannot read; "
        "give a file of F32, F16, Q4_0, Q4_1, Q8_0, Q6_K, BF16"
    )


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda data: b"", "damaged or cut short: it ends within its header"),
        (lambda data: b"PK\3\4" + data[4:], "not a GGUF file"),
        (lambda data: data[:4] + b"\1" + data[5:], "GGUF version 1;"),
        (lambda data: data[:5000], "damaged or cut short: it ends within its header"),
        (lambda data: data[:-4000], "damaged or cut short: tensor"),
        (lambda data: data[:8] + b"\xff" * 8 + data[16:], "damaged: it claims 18,446"),
        (lambda data: data[:16] + b"\xff" * 8 + data[24:], "damaged: it claims 18,446"),
        (lambda data: data[:24] + b"\xff" * 8 + data[32:], "damaged: it claims 18,446"),
        (lambda data: data.replace(b"general.", b"general\xff"), "damaged: a text"),
    ],
)
def test_damaged_files_are_refused_in_one_line(
    damage: Callable[[bytes], bytes],
    line: str,
    whole: bytes,
    tmp_path: Path,
    cache: Path,
) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(damage(whole))
    assert refused(file, cache).startswith(line)


def test_random_damage_never_does_more_than_refuse(
    whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlxlab.models.gguf.cache._convert", lambda *_: None)
    chance, file = random.Random(13), tmp_path / "a.gguf"
    lines = []
    for _ in range(300):
        data = bytearray(whole)
        at = chance.randrange(chance.choice([64, 4000, len(data)]))
        match chance.randrange(4):
            case 0:
                data[at : at + 8] = chance.randbytes(8)
            case 1:
                data[at : at + 8] = b"\xff" * 8
            case 2:
                del data[at : at + chance.randrange(1, 40)]
            case _:
                data[at:at] = bytes(chance.randrange(1, 40))
        file.write_bytes(data)
        try:
            find_model(str(file))
        except ModelError as error:
            lines.append(str(error))
    assert len(lines) > 150
    assert not [line for line in lines if "\n" in line]


def test_what_is_no_file_is_refused(tmp_path: Path, cache: Path) -> None:
    pipe = tmp_path / "pipe.gguf"
    os.mkfifo(pipe)
    assert refused(pipe, cache) == "not a regular file; give a GGUF file"
    assert (
        refused(tmp_path / "no.gguf", cache)
        == "No such file or directory; give a GGUF file"
    )
    folder = tmp_path / "folder.gguf"
    folder.mkdir()
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        find_model(str(folder))


def test_the_command_line_ends_with_one_line_and_status_2(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(b"GGUF")
    command = [sys.executable, "-m", "mlxlab", "compare", "sessions", "--simulate"]
    done = subprocess.run(
        [*command, "--model", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"mlxlab: model {str(file)!r}: damaged or cut short: "
        "it ends within its header\n"
    )
