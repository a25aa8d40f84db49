"""Placements of other projects: where each puts checkpoints, and that they work."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given

from mlxlab.errors import StrategyError
from mlxlab.models.layout import CacheLayout
from mlxlab.prompt import Prompt, Role, Segment
from mlxlab.strategies import parse_strategy
from mlxlab.strategies.placements import PLACEMENTS, parse_placement
from mlxlab.strategies.placements.presets import Preset
from tests.support.ledger import Ledger, Request
from tests.support.traffic import DETERMINISTIC, traffic

PEERS = (
    *("omlx", "llama.cpp", "ollama", "lm-studio"),
    *("rapid-mlx", "vllm", "sglang", "mlx-lm"),
)

#: System text, a question, a tool's result, another question, the generation prompt.
LENGTHS = (3000, 100, 9000, 200, 5)
ROLES = (Role.SYSTEM, Role.USER, Role.TOOL_RESULT, Role.USER, Role.GENERATION)
LABELS = ("system[0]", *(f"messages[{n}].text[0]" for n in range(3)), "template")


def conversation(count: int = 5) -> Prompt:
    segments, start = [], 0
    for label, role, length in zip(LABELS, ROLES, LENGTHS[:count], strict=False):
        segments.append(Segment(label, role, start, start + length))
        start += length
    return Prompt(Prompt.of(range(start)).tokens, tuple(segments))


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("omlx", [2048, 4096, 6144, 8192, 10240, 12288]),
        ("llama.cpp", [3000, 12_305 - 516, 12_100, 12_301]),
        ("ollama", [5000, 8192, 12_301]),
        ("lm-studio", [2048, 4096, 6144, 8192, 10240, 12288]),
        ("rapid-mlx", [4096, 8192, 10240, 12_100, 12288]),
        ("vllm", [7920, 12144]),
        ("sglang", [5000, 12_288]),
        ("mlx-lm", [3000, 12_300, 12_304]),
    ],
)
def test_checkpoints_stand_where_the_project_puts_them(
    name: str, places: list[int]
) -> None:
    prompt = conversation()
    assert len(prompt) == 12_305
    assert parse_placement(name).places(prompt, 5000) == places


def test_the_ends_of_answers_and_the_limits_are_those_of_the_projects() -> None:
    read = {name: parse_placement(name) for name in PEERS}
    without = {name for name, placement in read.items() if not placement.answer}
    assert without == {"omlx", "llama.cpp", "vllm"}
    assert {n: p.most for n, p in read.items() if p.most} == {"llama.cpp": 32}


def test_mlx_lm_keeps_only_the_last_token_open_within_a_tool_loop() -> None:
    prompt = conversation(3)
    assert parse_placement("mlx-lm").places(prompt, 5000) == [len(prompt) - 1]


def test_llama_cpp_keeps_the_last_user_message_however_near_another_is() -> None:
    near = (
        Segment("messages[0]", Role.USER, 0, 3000),
        Segment("messages[1]", Role.USER, 3000, 4000),
        Segment("messages[2]", Role.USER, 4000, 5000),
    )
    prompt = Prompt(Prompt.of(range(5000)).tokens, near)
    assert parse_placement("turns8192").places(prompt, 0) == []
    assert parse_placement("turns2000").places(prompt, 0) == [3000]
    assert parse_placement("llama.cpp").places(prompt, 0) == [4000, 4484, 4996]


def test_four_stay_spread_over_a_long_prompt() -> None:
    places = parse_placement("rapid-mlx").places(Prompt.of(range(100 * 2048 + 1)), 0)
    assert len(places) == 4
    assert places[-1] == 100 * 2048
    assert min(b - a for a, b in pairwise([0, *places])) >= 2 * 2048


def test_every_preset_says_where_it_is_from_and_is_a_word_of_the_grammar() -> None:
    for name in PEERS:
        assert PLACEMENTS[name].source
        assert PLACEMENTS[name].summary
        strategy = parse_strategy(
            f"paged:checkpoints={name}+tools", layout=CacheLayout.plain(1, 40)
        )
        assert strategy.parameters["checkpoints"] == f"{name}+tools"
    words = {n: p.words for n, p in PLACEMENTS.items() if issubclass(p, Preset)}
    for name, text in words.items():
        prompt = conversation()
        same = parse_placement(text).places(prompt, 5000)
        assert parse_placement(name).places(prompt, 5000) == same


def test_tokens_are_counted_where_ids_stand_for_several() -> None:
    coarse = Prompt.of(range(200))
    grid = [32, 64, 96, 128, 160, 192]
    assert parse_placement("omlx", unit=64).places(coarse, 0) == grid
    assert parse_placement("llama.cpp", unit=64).places(coarse, 0) == [191, 199]
    assert parse_placement("rapid-mlx", unit=64).places(coarse, 0) == [
        64,
        128,
        160,
        192,
    ]


@pytest.mark.parametrize("name", PEERS)
def test_plans_and_commits_agree_with_a_store(name: str) -> None:
    @DETERMINISTIC
    @given(requests=traffic())
    def check(requests: list[Request]) -> None:
        layout = CacheLayout.plain(2, 6)
        strategy = parse_strategy(
            f"paged:checkpoints={name},capacity=90", layout=layout
        )
        ledger = Ledger(lambda store: store.tokens * 2 <= 90)
        for request in requests:
            ledger.exchange(strategy, request)
            strategy.check_integrity()

    check()


@pytest.mark.parametrize("word", ["every0", "last0", "tail0"])
def test_a_number_of_none_is_refused(word: str) -> None:
    with pytest.raises(StrategyError, match="give a number of tokens, as in"):
        parse_placement(word)


@pytest.mark.parametrize("word", ["omlx2048", "llama.cpp32"])
def test_a_preset_takes_no_number(word: str) -> None:
    with pytest.raises(StrategyError, match="takes no number"):
        parse_placement(word)


def test_a_preset_means_nothing_where_every_token_can_be_resumed() -> None:
    with pytest.raises(StrategyError, match="can be cut at any token") as caught:
        parse_strategy("paged:checkpoints=omlx")
    assert "\n" not in str(caught.value)
