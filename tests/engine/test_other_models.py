"""Any folder in mlx-lm's format works in the bundled model's place."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import llama, qwen3

from mlxlab.errors import ModelError
from mlxlab.models import find_model
from mlxlab.replay import compare
from mlxlab.server.server import serve
from tests.replay.traffic import small_trace

SHARED = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "intermediate_size": 64,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-6,
    "vocab_size": 8704,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "max_position_embeddings": 4096,
}
#: Bytes of keys and values a token: 3 layers x 2 x 2 heads x 8, by the item's size.
HALVES = 3 * 2 * 2 * 8 * 2


def save_model(folder: Path, kind: str, dtype: mx.Dtype, **more: Any) -> Path:
    """A random model of another shape, with the bundled tokenizer."""
    tiny = find_model().path
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny / name, folder / name)
    name = str(dtype).rpartition(".")[2]
    config = {**SHARED, "model_type": kind, "torch_dtype": name, **more}
    (folder / "config.json").write_text(json.dumps(config))
    module = {"llama": llama, "qwen3": qwen3}[kind]
    mx.random.seed(0)
    model = module.Model(module.ModelArgs.from_dict(config))
    model.set_dtype(dtype)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    return folder


@pytest.mark.parametrize(
    ("kind", "dtype", "token_bytes"),
    [("llama", mx.float16, HALVES), ("qwen3", mx.float32, 2 * HALVES)],
    ids=["llama", "qwen3"],
)
def test_replays_a_model_of_another_shape(
    kind: str, dtype: mx.Dtype, token_bytes: int, tmp_path: Path
) -> None:
    folder = save_model(tmp_path, kind, dtype)
    assert find_model(str(folder)).token_bytes == token_bytes
    specs = "static-prefix,paged:block=16,mlx-lm,suffix:block=16,run=32"
    live, simulated = (
        compare(
            small_trace(),
            model=str(folder),
            strategies=specs,
            simulate=simulate,
            progress=False,
        )
        for simulate in (False, True)
    )
    counted = ["strategy", "request", "reused_tokens", "stored_bytes", "evicted"]
    assert live[counted].equals(simulated[counted])
    assert live.reused_tokens.sum() > 0


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}


def test_what_a_model_cannot_serve_is_refused_before_any_work(tmp_path: Path) -> None:
    folder = save_model(tmp_path, "llama", mx.float32, rope_scaling=YARN)
    trace = small_trace()
    # Would be found out while rendering, which comes later.
    unrenderable = replace(trace, exchanges=())
    with pytest.raises(ModelError, match=r"cannot be moved .*YarnRoPE"):
        compare(unrenderable, model=str(folder), strategies="paged,suffix")
    rows = compare(trace, model=str(folder), strategies="suffix", simulate=True)
    assert rows.reused_tokens.sum() > 0


def test_the_server_keeps_what_it_had(tmp_path: Path) -> None:
    folder = save_model(tmp_path, "llama", mx.float32, rope_scaling=YARN)
    with serve(model=str(folder), strategy="paged") as server:
        with pytest.raises(ModelError, match="YarnRoPE"):
            server.configure(strategy="suffix")
        assert server.aliases.default.strategy == "paged"
