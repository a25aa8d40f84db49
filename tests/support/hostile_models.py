"""Model folders that were broken on purpose, in a hundred ways."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import mlx.core as mx

from mlxlab.models import tiny

__all__ = ["CASES", "MARKER", "make_folder"]

Break: TypeAlias = Callable[[Path], None]

#: Code in a folder would make this file in the user's home.
MARKER = "executed"

_CODE = "import os, pathlib\n"
_CODE += f"pathlib.Path(os.environ['HOME'], '{MARKER}').touch()\n"
_DEEP = 50_000


def make_folder(name: str, parent: Path) -> Path:
    """Copy the bundled model into a folder, and break it."""
    folder = parent / "model"
    shutil.copytree(tiny.PATH, folder, ignore=shutil.ignore_patterns("*.py", "__*"))
    for place in (folder, parent):
        (place / "code.py").write_text(_CODE)
    CASES[name](folder)
    return folder


def _changed(file: str, **changes: Any) -> Break:
    def change(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def _without(file: str, *keys: str) -> Break:
    def drop(folder: Path) -> None:
        path = folder / file
        value = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in value.items() if k not in keys}))

    return drop


def _written(file: str, content: str | bytes) -> Break:
    data = content.encode() if isinstance(content, str) else content

    def write(folder: Path) -> None:
        (folder / file).write_bytes(data)

    return write


def _edited(file: str, edit: Callable[[Any], object]) -> Break:
    """Let a function change the JSON value of a file in place."""

    def change(folder: Path) -> None:
        path = folder / file
        value = json.loads(path.read_text())
        edit(value)
        path.write_text(json.dumps(value))

    return change


def _cut(file: str, share: float) -> Break:
    def cut(folder: Path) -> None:
        data = (folder / file).read_bytes()
        (folder / file).write_bytes(data[: int(len(data) * share)])

    return cut


def _marked(file: str) -> Break:
    def mark(folder: Path) -> None:
        data = (folder / file).read_bytes()
        (folder / file).write_bytes(b"\xef\xbb\xbf" + data)

    return mark


def _removed(*files: str) -> Break:
    def remove(folder: Path) -> None:
        for file in files:
            (folder / file).unlink()

    return remove


def _folder_as(file: str) -> Break:
    def make(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        (folder / file).mkdir()

    return make


def _link(file: str, target: str) -> Break:
    def link(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        (folder / file).symlink_to(target)

    return link


def _weights(change: Callable[[dict[str, mx.array]], object]) -> Break:
    def save(folder: Path) -> None:
        path = str(folder / "model.safetensors")
        weights: Any = mx.load(path)
        change(weights)
        mx.save_safetensors(path, weights)

    return save


def _header(header: bytes, length: int | None = None) -> Break:
    size = len(header) if length is None else length
    data = size.to_bytes(8, "little") + header + b"1234"
    return _written("model.safetensors", data)


def _all(*breaks: Break) -> Break:
    def each(folder: Path) -> None:
        for one in breaks:
            one(folder)

    return each


def _large(file: str) -> Break:
    def lengthen(folder: Path) -> None:
        with (folder / file).open("ab") as opened:
            opened.truncate(101_000_000)

    return lengthen


def _set(weights: dict[str, mx.array], part: str, value: Callable[..., Any]) -> None:
    for name in [name for name in weights if part in name]:
        weights[name] = value(weights[name])


def _drop(weights: dict[str, mx.array], part: str) -> None:
    for name in [name for name in weights if part in name]:
        del weights[name]


def _split(pattern: str) -> Callable[[Any], object]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    return lambda value: value.update(pre_tokenizer=split | {"invert": False})


def _added(**changes: Any) -> Break:
    return _edited("tokenizer.json", lambda v: v["added_tokens"][1].update(changes))


def _vocab(change: Callable[[dict[str, Any]], object]) -> Break:
    return _edited("tokenizer.json", lambda value: change(value["model"]["vocab"]))


_CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "hidden_size": {"text": "128", "zero": 0, "negative": -1, "huge": 10**30},
    "num_hidden_layers": {"null": None, "million": 10**7, "float": 3.5},
    "vocab_size": {"list": [1], "small": 10, "huge": 10**18},
    "num_attention_heads": {"zero": 0, "object": {}},
    "rms_norm_eps": {"text": "x", "nan": float("nan")},
    "rope_theta": {"zero": 0, "infinite": float("inf")},
    "rope_scaling": {"text": "linear", "unknown": {"type": "nope", "factor": 0}},
    "max_position_embeddings": {
        "text": "many",
        "negative": -1,
        "zero": 0,
        "huge": 10**30,
        "null": None,
        "list": [4096],
    },
    "model_type": {
        "unknown": "nonesuch",
        "path": "../x",
        "number": 7,
        "list": ["qwen3"],
        "null": None,
        "module": "cache",
    },
    "architectures": {"number": 7, "nested": [[1]]},
    "model_file": {"code": "code.py", "outside": "../code.py"},
    "auto_map": {"code": {"AutoTokenizer": ["code.T", "code.T"]}, "number": 1},
    "quantization": {
        "number": 4,
        "zero": {"group_size": 0, "bits": 0},
        "text": {"group_size": "a", "bits": "b"},
    },
    "dtype": {"number": 7, "unknown": "float7", "list": []},
    "text_config": {"number": 7, "empty": {}},
    "eos_token_id": {"text": "a", "nested": [[1]], "huge": 10**12},
}

_GENERATION: Mapping[str, Mapping[str, Any]] = {
    "temperature": {"text": "hot", "negative": -1, "huge": 10**400, "null": None},
    "top_k": {"negative": -5, "text": "x", "huge": 10**30, "float": 1.5},
    "top_p": {"two": 2, "list": [1], "nan": float("nan")},
    "min_p": {"negative": -1, "true": True},
    "eos_token_id": {
        "text": "a",
        "huge": 10**12,
        "negative": -1,
        "nested": [[1], None],
    },
    "do_sample": {"list": [1], "text": "no"},
}

_TOKENIZER: Mapping[str, Mapping[str, Any]] = {
    "eos_token": {
        "list": ["a"],
        "number": 5,
        "object": {},
        "null": None,
        "absent": "@@",
    },
    "chat_template": {
        "number": 5,
        "list": [{"name": "default", "template": 5}],
        "nameless": [{"template": "a"}],
        "object": {"a": "b"},
        "named": [{"name": "tool_use", "template": "a"}],
    },
    "tokenizer_class": {"number": 5, "unknown": "Nonesuch", "slow": "BertTokenizer"},
    "auto_map": {"code": {"AutoTokenizer": ["code.T", "code.T"]}},
    "added_tokens_decoder": {"text": "a", "odd": {"x": {"content": 5}}},
    "extra_special_tokens": {"number": 5, "text": "abc"},
    "tool_parser_type": {"path": "../x", "number": 5, "unknown": "nonesuch"},
    "model_max_length": {"text": "long", "negative": -5},
}


def _no_template(file: str, **changes: Any) -> Break:
    return _all(_removed("chat_template.jinja"), _changed(file, **changes))


def _grid(
    file: str, values: Mapping[str, Mapping[str, Any]], make: Callable[..., Break]
) -> dict[str, Break]:
    return {
        f"{file.partition('.')[0]}-{key}-{name}": make(file, **{key: value})
        for key, named in values.items()
        for name, value in named.items()
    }


_JSON_FILES: tuple[str, ...] = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
)
_JSON_FILES += ("tokenizer_config.json",)
_NO_OBJECTS: Mapping[str, str | bytes] = {
    "empty": "",
    "list": "[1]",
    "number": "7",
    "null": "null",
    "not-utf8": b'{"a": "\xff\xfe"}',
    "deep": "[" * _DEEP + "]" * _DEEP,
    "digits": '{"max_position_embeddings": ' + "9" * 9999 + "}",
}
_NO_FILES: Mapping[str, Callable[[str], Break]] = {
    "folder": _folder_as,
    "loop": lambda file: _link(file, file),
    "dangling": lambda file: _link(file, "nowhere"),
    "missing": lambda file: _removed(file),
}


CASES: Mapping[str, Break] = {
    **_grid("config.json", _CONFIGS, _changed),
    **_grid("generation_config.json", _GENERATION, _changed),
    **_grid(
        "tokenizer_config.json",
        {k: v for k, v in _TOKENIZER.items() if k != "chat_template"},
        _changed,
    ),
    **_grid(
        "tokenizer_config.json",
        {"chat_template": _TOKENIZER["chat_template"]},
        _no_template,
    ),
    **{
        f"{file.partition('.')[0]}-{name}": _written(file, data)
        for file in _JSON_FILES
        for name, data in _NO_OBJECTS.items()
    },
    **{
        f"{Path(file).stem}-{name}": make(file)
        for file in ("config.json", "tokenizer.json", "model.safetensors")
        for name, make in _NO_FILES.items()
    },
    "config-bom": _marked("config.json"),
    "config-large": _large("config.json"),
    "tokenizer-large": _large("tokenizer.json"),
    "generation_config-large": _large("generation_config.json"),
    "config-no-model-type": _without("config.json", "model_type"),
    "config-no-sizes": _without("config.json", "hidden_size", "num_hidden_layers"),
    "tokenizer-half": _cut("tokenizer.json", 0.5),
    "tokenizer-type": _changed("tokenizer.json", model={"type": "nonesuch"}),
    "tokenizer-no-model": _without("tokenizer.json", "model"),
    "tokenizer-no-vocabulary": _edited(
        "tokenizer.json", lambda v: v["model"].update(vocab={}, merges=[])
    ),
    "tokenizer-no-merges": _edited(
        "tokenizer.json", lambda v: v["model"].update(merges=[])
    ),
    "tokenizer-merges-of-nothing": _edited(
        "tokenizer.json", lambda v: v["model"].update(merges=[["zzzz", "yyyy"]])
    ),
    "tokenizer-negative-id": _vocab(lambda vocab: vocab.update(a=-1)),
    "tokenizer-huge-id": _vocab(lambda vocab: vocab.update(a=2**32 - 2)),
    "tokenizer-id-beyond": _vocab(lambda vocab: vocab.update(a=9_000_000)),
    "tokenizer-same-ids": _vocab(lambda vocab: vocab.update(a=5, b=5, c=5)),
    "tokenizer-text-id": _vocab(lambda vocab: vocab.update(a="x")),
    "tokenizer-added-twice": _added(content="<|endoftext|>"),
    "tokenizer-added-empty": _added(content=""),
    "tokenizer-added-huge-id": _added(id=2**32 - 2),
    "tokenizer-added-space": _added(content=" "),
    "tokenizer-split-catastrophic": _edited("tokenizer.json", _split("(a+)+$|(.+)+x")),
    "tokenizer-split-invalid": _edited("tokenizer.json", _split("(((")),
    "tokenizer-split-deep": _edited("tokenizer.json", _split("(" * 9999 + ")" * 9999)),
    "tokenizer-split-empty": _edited("tokenizer.json", _split("")),
    "tokenizer-no-byte-level": _without("tokenizer.json", "pre_tokenizer", "decoder"),
    "weights-half": _cut("model.safetensors", 0.5),
    "weights-empty": _written("model.safetensors", b""),
    "weights-long-header": _header(b"{}", 2**63),
    "weights-negative-header": _header(b"{}", 2**64 - 1),
    "weights-no-header": _header(b"nothing"),
    "weights-none": _header(b"{}"),
    "weights-deep-header": _header(b"[" * _DEEP + b"]" * _DEEP),
    "weights-beyond": _header(
        b'{"lm_head.weight": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}'
    ),
    "weights-huge-shape": _header(
        b'{"a": {"dtype": "F32", "shape": [999999999, 999999999, 999999999],'
        b' "data_offsets": [0, 4]}}'
    ),
    "weights-negative-shape": _header(
        b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}'
    ),
    "weights-unknown-type": _header(
        b'{"a": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}}'
    ),
    "weights-nan": _weights(lambda w: _set(w, "", lambda a: a * float("nan"))),
    "weights-other-shapes": _weights(lambda w: _set(w, "mlp", lambda a: a[:7])),
    "weights-missing": _weights(lambda w: _drop(w, "layers.1.")),
    "weights-integers": _weights(
        lambda w: _set(w, "embed", lambda a: a.astype(mx.int32))
    ),
    "weights-mixed-types": _weights(
        lambda w: _set(w, "q_proj", lambda a: a.astype(mx.float16))
    ),
    "weights-index-outside": _written(
        "model.safetensors.index.json",
        '{"weight_map": {"lm_head.weight": "../../../../etc/passwd"}}',
    ),
    "weights-outside": _link("model.safetensors", "/etc/passwd"),
    "template-not-utf8": _written("chat_template.jinja", b"\xff\xfe{{ messages }}"),
    "template-empty": _written("chat_template.jinja", ""),
    "template-zero": _written("chat_template.jinja", "{{ 1 // 0 }}"),
    "template-nothing": _written("chat_template.jinja", "{# #}"),
    "template-loop": _written(
        "chat_template.jinja",
        "{% for i in range(99999) %}" * 4 + "{% endfor %}" * 4,
    ),
    "template-recursion": _written(
        "chat_template.jinja", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"
    ),
    "template-gigabytes": _written("chat_template.jinja", "{{ 'a' * 10**10 }}"),
    "template-system": _written(
        "chat_template.jinja",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ messages[0].content }}>",
    ),
    "template-include": _written("chat_template.jinja", "{% include '/etc/passwd' %}"),
    "generation_config-deep-eos": _changed(
        "generation_config.json", eos_token_id=[[[[1]]]]
    ),
}
