"""Any folder in mlx-lm's format works in the bundled model's place."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlxlab.analysis.compare import compare
from mlxlab.errors import ModelError
from mlxlab.models.folder import find_model
from mlxlab.server.server import serve
from tests.support.architectures import configurations, save_architecture
from tests.support.exchanges import small_trace
from tests.support.models import save_model

CONFIGURATIONS = configurations()

SHAPE: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "intermediate_size": 64,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rope_theta": 10000.0,
    "max_position_embeddings": 4096,
}
#: Bytes of keys and values a token: 3 layers x 2 x 2 heads x 8, by the item's size.
HALVES = 3 * 2 * 2 * 8 * 2


@pytest.mark.parametrize(
    ("kind", "dtype", "token_bytes"),
    [("llama", mx.float16, HALVES), ("qwen3", mx.float32, 2 * HALVES)],
    ids=["llama", "qwen3"],
)
def test_replays_a_model_of_another_shape(
    kind: str, dtype: mx.Dtype, token_bytes: int, tmp_path: Path
) -> None:
    folder = save_model(tmp_path, kind, dtype, **SHAPE)
    assert find_model(str(folder)).layout.token_bytes() == token_bytes
    specs = "static-prefix,paged:block=16,mlx-lm,suffix:block=16,run=32"
    live, simulated = (
        compare(
            small_trace(),
            model=str(folder),
            strategies=specs,
            simulate=simulate,
            progress=False,
        ).requests
        for simulate in (False, True)
    )
    counted = ["strategy", "request", "reused_tokens", "stored_bytes", "evicted"]
    assert live[counted].equals(simulated[counted])
    assert live.reused_tokens.sum() > 0


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}


def test_what_a_model_cannot_serve_is_refused_before_any_work(tmp_path: Path) -> None:
    folder = save_model(tmp_path, "llama", **SHAPE, rope_scaling=YARN)
    trace = small_trace()
    # Only rendering would raise for this trace, and rendering comes later.
    unrenderable = replace(trace, exchanges=())
    with pytest.raises(ModelError, match=r"cannot be moved .*YarnRoPE"):
        compare(unrenderable, model=str(folder), strategies="paged,suffix")
    rows = compare(trace, model=str(folder), strategies="suffix", simulate=True)
    assert rows.requests.reused_tokens.sum() > 0


def test_the_server_keeps_what_it_had(tmp_path: Path) -> None:
    folder = save_model(tmp_path, "llama", **SHAPE, rope_scaling=YARN)
    with serve(model=str(folder), strategy="paged") as server:
        with pytest.raises(ModelError, match="YarnRoPE"):
            server.configure(strategy="suffix")
        assert server.aliases.default.strategy == "paged"


@pytest.mark.skipif(not CONFIGURATIONS, reason="no shared/models/configs.json")
@pytest.mark.parametrize("name", ["glm4_moe_lite", "gpt2", "nemotron-nas+linear"])
def test_sizes_are_the_same_live_and_simulated(name: str, tmp_path: Path) -> None:
    save_architecture(tmp_path, CONFIGURATIONS[name])
    layout = find_model(str(tmp_path)).layout
    live, simulated = (
        compare(
            small_trace(),
            model=str(tmp_path),
            strategies="paged:block=16",
            capacity=600 * layout.token_bytes(),
            simulate=simulate,
            progress=False,
        )
        for simulate in (False, True)
    )
    counted = ["request", "reused_tokens", "stored_bytes", "evicted"]
    assert live.requests[counted].equals(simulated.requests[counted])
    assert live.manifest["model"] == simulated.manifest["model"]
    assert live.requests.evicted.sum() > 0
    assert live.requests.stored_bytes.max() % layout.token_bytes() == 0
