"""Models whose keys cannot be moved are refused with a reason, whatever they raise."""

from contextlib import suppress
from pathlib import Path

import pytest

from mlxlab.engine.rope import Rope
from mlxlab.errors import ModelError
from tests.support.architectures import NOT_HERE, configurations, save_architecture

CONFIGURATIONS = configurations()

pytestmark = pytest.mark.skipif(
    not CONFIGURATIONS, reason="shared/models/configs.json is not beside the checkout"
)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("deepseek_v2", "ValueError: .*freqs must be one dimensional"),
        ("internlm2+dynamic", "ValueError: .*Only length-1 arrays"),
        ("nanbeige", "it has 6 caches for 3 layers"),
        ("afm7", "it has 2 caches for 4 layers"),
        ("gpt_oss", "its layers keep RotatingKVCache"),
        ("qwen3+yarn", "its rotary embedding does not compose"),
    ],
)
def test_the_reason_is_given(name: str, reason: str, tmp_path: Path) -> None:
    model = save_architecture(tmp_path, CONFIGURATIONS[name])
    with pytest.raises(ModelError, match=f"cannot be moved in this model: {reason}"):
        Rope(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in CONFIGURATIONS if n not in NOT_HERE])
def test_no_model_raises_anything_else(name: str, tmp_path: Path) -> None:
    model = save_architecture(tmp_path, CONFIGURATIONS[name])
    with suppress(ModelError):
        Rope(model)
