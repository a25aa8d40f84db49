"""Known layouts are those that mlx-lm's own caches have, and names are forgiving."""

import json

import pytest

from data.geometries.make import CONFIGS, measure
from mlxlab.errors import ConfigError, ModelError
from mlxlab.models.folder import BUNDLED, find_model
from mlxlab.models.geometry import known_layout, known_layouts, read_layout
from mlxlab.models.layout import CacheLayout

KIB, MIB = 1 << 10, 1 << 20


def test_the_file_is_what_its_script_makes() -> None:
    assert known_layouts() == measure()
    assert set(known_layouts()) == {BUNDLED, *json.loads(CONFIGS.read_text())}


@pytest.mark.parametrize(
    ("name", "token", "checkpoint"),
    [
        ("Qwen3-Coder-30B-A3B", 96 * KIB, 0),
        # States of 32 x 128 x 128 singles, and 3 inputs of 8,192 halves, 36 times.
        ("Qwen3-Coder-Next", 24 * KIB, 36 * (2 * MIB + 48 * KIB)),
        ("gpt-oss-20b", 24 * KIB, 12 * 128 * 2 * KIB),
        ("gemma-3-27b", 80 * KIB, 52 * 1024 * 8 * KIB),
        ("GLM-4.7-Flash", 47 * 576 * 2, 0),
        ("DeepSeek-V3.1", 61 * 576 * 2, 0),
    ],
)
def test_sizes_are_those_by_hand(name: str, token: int, checkpoint: int) -> None:
    layout = known_layout(name)
    assert layout.token_bytes() == token
    assert layout.checkpoint_bytes() == checkpoint


def test_names_are_forgiving() -> None:
    assert known_layout("qwen3-coder-next") is known_layout("Qwen3-Coder-Next")
    with pytest.raises(ModelError, match=r"'Qwen3.5-27'; did you mean 'Qwen3.5-27B'\?"):
        known_layout("Qwen3.5-27")


def test_the_bundled_model_needs_no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxlab.models.layout_record.subprocess.run", None)
    assert find_model().layout == known_layout(BUNDLED)


def test_sizes_make_a_layout() -> None:
    assert read_layout("96KiB", "layout") == CacheLayout.plain(96 * KIB)
    both = CacheLayout.plain(24 * KIB, 74 * MIB)
    assert read_layout("24KiB+74MiB", "layout") == both
    assert read_layout(both, "layout") is both


@pytest.mark.parametrize(
    "text", ["", "96", "96KiB+", "1KiB+2KiB+3KiB", "0KiB", "+1KiB"]
)
def test_what_is_no_layout_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="give a known model, bytes a token such as"):
        read_layout(text, "layout")
