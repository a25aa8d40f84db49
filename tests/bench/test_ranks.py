"""What a part of a model holds and sends, against its configuration."""

from __future__ import annotations

import json

import pytest

from bench.ranks import divide, table
from data.geometries.make import CONFIGS
from mlxlab.models.geometry import known_layout

NAME = "Qwen3-Coder-30B-A3B"
CONFIG = json.loads(CONFIGS.read_text())[NAME]["config"]


@pytest.mark.parametrize("machines", [2, 4])
def test_a_part_holds_a_share_and_sends_each_sum(machines: int) -> None:
    whole, part = divide(CONFIG, 1), divide(CONFIG, machines)
    assert whole.token == known_layout(NAME).token_bytes()
    assert part.token == whole.token // machines
    assert (whole.exchanges, whole.prefilled, whole.decoded) == (0, 0, 0)
    # Attention and feed-forward part of each layer end in a sum of the hidden size.
    assert part.exchanges == 2 * CONFIG["num_hidden_layers"]
    once = part.exchanges * CONFIG["hidden_size"] * 2
    assert part.prefilled == part.decoded == 2 * (machines - 1) * once // machines
    assert whole.weights // machines < part.weights < 1.1 * whole.weights / machines


def test_models_that_cannot_be_divided_are_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = list(table(["gemma-3-27b"], [1, 2]))
    assert [line.split(" | ")[:2] for line in lines[2:]] == [["| gemma-3-27b", "1"]]
    assert "gemma-3-27b: mlx-lm cannot divide" in capsys.readouterr().err
