"""Models of all kinds of caches are served exactly, and simulated as served."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.models import examine
from mlxlab.engine import BoundedThinking, Engine, Forced
from mlxlab.engine.layer_caches import StateCache, WindowCache
from mlxlab.engine.layout import measure_layout
from mlxlab.engine.trial import try_out
from mlxlab.errors import ModelError
from mlxlab.models.folder import find_model
from mlxlab.models.layout import Windows
from mlxlab.prompt import Prompt
from mlxlab.rendering.renderer import Renderer
from mlxlab.strategies import Plan, make_strategy
from tests.support.architectures import NOT_HERE, configurations, save_architecture
from tests.support.ledger import Request
from tests.support.traffic import traffic
from tests.support.turns import turns

CONFIGURATIONS = configurations()

#: Refused, with a part of the reason.
REFUSED = {
    "phi3small": "depend on the size of the chunks",
    "plamo3": "depend on the size of the chunks",
    "deepseek_v41": "keeps a LayerCache",
}

#: Those that the quick tests serve: rows, latents, windows, lists, states, mixtures.
QUICK = (
    "gemma2",
    "glm4_moe_lite",
    "gpt_oss",
    "gemma3",
    "llama4",
    "deepseek_v32",
    "qwen3_next",
    "qwen3_5",
    "kimi_linear",
    "nemotron_h",
    "lfm2",
    "mamba",
    "falcon_h1",
)

#: Of the quick families, those whose answers and cancellations are tried quickly too,
#: and that every strategy is examined on quickly.
ANSWERED = ("gpt_oss", "llama4", "deepseek_v32", "qwen3_5", "kimi_linear", "mamba")

pytestmark = pytest.mark.skipif(
    not CONFIGURATIONS, reason="shared/models/configs.json is not beside the checkout"
)


@cache
def built(name: str) -> Any:
    """Build a model once for all tests."""
    with TemporaryDirectory() as folder:
        return save_architecture(Path(folder), CONFIGURATIONS[name])


def engine(
    model: Any, name: str = "paged", chunk: int = 2048, **parameters: Any
) -> Engine:
    layout = measure_layout(model)
    return Engine(model, make_strategy(name, layout=layout, **parameters), chunk=chunk)


@pytest.mark.parametrize(
    "name",
    [
        *ANSWERED,
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in CONFIGURATIONS
            if name not in {*ANSWERED, *NOT_HERE, *REFUSED}
        ),
    ],
)
def test_every_strategy_is_exact_live_and_simulated(name: str) -> None:
    found = examine(name, CONFIGURATIONS[name])
    assert found.refusal == ""
    assert found.faults == []
    reused = {own.spec: own.reused for own in found.replays}
    assert reused.pop("none") == 0
    assert min(reused.values()) > 0


@pytest.mark.parametrize(("name", "reason"), REFUSED.items())
def test_what_cannot_be_exact_is_refused(name: str, reason: str) -> None:
    assert reason in examine(name, CONFIGURATIONS[name]).refusal


@pytest.mark.slow
@pytest.mark.parametrize("name", NOT_HERE)
def test_what_cannot_run_here_is_refused(name: str) -> None:
    assert examine(name, CONFIGURATIONS[name]).refusal


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "nemotron_h", "lfm2"])
def test_rounding_is_no_reason_to_refuse(name: str, tmp_path: Path) -> None:
    try_out(save_architecture(tmp_path, CONFIGURATIONS[name], mx.bfloat16))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("qwen3_5", StateCache), ("gpt_oss", WindowCache), ("llama4", WindowCache)],
)
def test_wrong_restoring_is_refused(
    name: str, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = built(name)
    try_out(model)
    right = kind.restore

    def wrong(self: Any, snapshot: Any, *position: int) -> None:
        """Put one array back as it was half a percent smaller."""
        first, *rest = snapshot
        right(self, (0.995 * first, *rest), *position)

    monkeypatch.setattr(kind, "restore", wrong)
    with pytest.raises(ModelError, match="caches cannot be restored"):
        try_out(model)


WAYS = [
    *((name, Windows.CHECKPOINTS) for name in ANSWERED),
    *((name, Windows.TOKENS) for name in ("gpt_oss", "llama4")),
    *(
        pytest.param(name, windows, marks=pytest.mark.slow)
        for name, windows in (
            *((own, Windows.CHECKPOINTS) for own in QUICK if own not in ANSWERED),
            ("gemma3", Windows.TOKENS),
        )
    ),
]
every_way = pytest.mark.parametrize(("name", "windows"), WAYS)


def live(name: str, windows: Windows, chunk: int = 64) -> Engine:
    model = built(name)
    by_token = not measure_layout(model).checkpoint_bytes(windows)
    given: dict[str, Any] = {"block": 1} if by_token else {}
    if windows is Windows.TOKENS:
        given["windows"] = windows
    return engine(model, chunk=chunk, **given)


@cache
def asked() -> tuple[Prompt, Prompt]:
    """A prompt that is longer than the windows, and another session's."""
    (first, _), _, (other, _), *_ = turns(Renderer(find_model()))
    return first, other


def longer(prompt: Prompt, answer: Sequence[int]) -> Prompt:
    """What a next turn adds to an answer."""
    return prompt.extended(np.array([*answer, *range(300, 320)], np.int32))


def ids_of(engine: Engine, prompt: Prompt, n: int, **options: Any) -> list[int]:
    items = engine.stream(prompt, max_tokens=n, **options)
    return [item for item in items if isinstance(item, int)]


def require_reuse(engine: Engine, prompt: Prompt, reused: int) -> None:
    """Replay a prompt: the tokens are reused, the logits are an uncached run's."""
    done = engine.replay(prompt, prompt.tokens[:0], greedy=2)
    assert done.plan.reused == reused
    whole = Engine(engine.model, make_strategy("none"))
    expected = whole.replay(prompt, prompt.tokens[:0]).logits
    np.testing.assert_allclose(
        done.logits, expected, atol=1e-4 * np.abs(expected).max(), rtol=0
    )
    engine.strategy.check_integrity()
    assert engine.store.nbytes == engine.strategy.stored_bytes


@every_way
def test_the_next_turn_goes_on_behind_the_answer(name: str, windows: Windows) -> None:
    served = live(name, windows)
    prompt, other = asked()
    answer = ids_of(served, prompt, 6)
    whole = Engine(served.model, make_strategy("none"))
    assert answer == ids_of(whole, prompt, 6)
    require_reuse(served, longer(prompt, answer), len(prompt) + 5)
    # Nothing that decoding writes in place reaches what is stored.
    ids_of(served, longer(prompt, answer), 3)
    require_reuse(served, longer(prompt, answer[:4]), shared(served, prompt, 4))
    stop = {ids_of(whole, other, 3)[-1]}
    stopped = ids_of(served, other, 6, stop=stop)
    assert stopped == ids_of(whole, other, 6, stop=stop)
    require_reuse(served, longer(other, stopped), len(other) + len(stopped) - 1)


def shared(engine: Engine, prompt: Prompt, answered: int) -> int:
    """Return what is reused of a prompt whose answer was edited."""
    if not engine.strategy.checkpoint_bytes:
        return len(prompt) + answered
    return prompt.segments[-1].start  # in front of the generation prompt


@every_way
def test_a_cancelled_prefill_is_gone_on_with(name: str, windows: Windows) -> None:
    served, (prompt, _) = live(name, windows), asked()
    stream = served.stream(prompt)
    assert isinstance(next(stream), Plan)
    done = 0
    while done < 100:
        done += next(stream).tokens  # type: ignore[union-attr]
    stream.close()
    require_reuse(served, prompt, done)


@every_way
def test_a_cancelled_answer_is_gone_on_with(name: str, windows: Windows) -> None:
    served, (prompt, _) = live(name, windows), asked()
    stream = served.stream(prompt, max_tokens=50)
    answer: list[int] = []
    while len(answer) < 4:
        item = next(stream)
        answer += [item] if isinstance(item, int) else []
    stream.close()
    require_reuse(served, longer(prompt, answer), len(prompt) + 3)


@every_way
def test_forced_and_bounded_answers_are_gone_on_with(
    name: str, windows: Windows
) -> None:
    served, (prompt, _) = live(name, windows), asked()
    seen: list[int] = []

    def record(ids: mx.array, logits: mx.array) -> mx.array:
        seen.append(len(ids))
        return logits

    start, closing = 8001, (8002, 40)
    sampler = BoundedThinking(
        Forced([start, 5, 6, 7], lambda logprobs: mx.argmax(logprobs, axis=-1)),
        start=start,
        closing=closing,
        stop=[8003],
        budget=2,
        opened=False,
    )
    answer = ids_of(served, prompt, 8, sampler=sampler, processors=[record])
    assert answer[:5] == [start, 5, 6, *closing]
    assert seen[:3] == [1, 2, 3]
    require_reuse(served, longer(prompt, answer), len(prompt) + 7)


def test_a_checkpoint_holds_no_activations() -> None:
    prompt = Prompt(np.random.default_rng(0).integers(256, 8000, 3000, dtype=np.int32))
    for name, windows in (
        ("qwen3_5", Windows.CHECKPOINTS),
        ("nemotron_h", Windows.CHECKPOINTS),
        ("gpt_oss", Windows.CHECKPOINTS),
        ("gpt_oss", Windows.TOKENS),
        ("llama4", Windows.CHECKPOINTS),
    ):
        served = live(name, windows, chunk=2048)
        before = mx.get_active_memory()
        served.replay(prompt, prompt.tokens[:0])
        held = mx.get_active_memory() - before
        assert held <= 1.02 * served.store.nbytes + (64 << 10), name


#: Small enough that windows of 8 rotate, and that short sequences are evicted.
SMALL = ("gpt_oss", "qwen3_5", "recurrent_gemma", "mamba")


@cache
def small(name: str) -> Any:
    """Build a model with two layers where it has a choice, and windows of 8."""
    config = dict(CONFIGURATIONS[name])
    changes = {"sliding_window": 8, "attention_window_size": 8}
    config |= {key: value for key, value in changes.items() if key in config}
    with TemporaryDirectory() as folder:
        return save_architecture(Path(folder), config)


@cache
def expected(name: str, ids: tuple[int, ...]) -> np.ndarray[Any, Any]:
    model = small(name)
    prompt = Prompt.of(ids)
    return Engine(model, make_strategy("none")).replay(prompt, prompt.tokens[:0]).logits


@pytest.mark.parametrize(
    "name",
    [
        *SMALL[:2],
        *(pytest.param(name, marks=pytest.mark.slow) for name in SMALL[2:]),
    ],
)
@pytest.mark.parametrize("policy", ["prefix", "paged", "mlx-lm"])
def test_random_traffic_gives_the_logits_of_uncached_runs(
    name: str, policy: str
) -> None:
    model = small(name)
    layout = measure_layout(model)
    room = 5 * layout.checkpoint_bytes() + 60 * layout.token_bytes()
    limits: dict[str, Any] = {"capacity": room}
    if policy == "mlx-lm":
        limits["max_size"] = 3
    else:
        limits["checkpoints"] = "every5+branches+prompt+answer"
    seen = {"reused": 0, "evicted": 0}

    @settings(max_examples=8)
    @given(requests=traffic(8), cuts=st.lists(st.none() | st.integers(0, 5)))
    def check(requests: list[Request], cuts: list[int | None]) -> None:
        served = engine(model, policy, chunk=7, **limits)
        for i, request in enumerate(requests):
            cut = cuts[i] if i < len(cuts) else None
            if cut is None:
                done = served.replay(request.prompt, Prompt.of(request.answer).tokens)
                whole = expected(name, tuple(request.ids))
                scale = np.abs(whole).max()
                np.testing.assert_allclose(done.logits, whole, atol=1e-4 * scale)
                seen["reused"] += done.plan.reused
                seen["evicted"] += len(done.commit.drop + done.commit.forget)
            else:
                abandon(served, request.prompt, cut)
            served.strategy.check_integrity()
            assert served.store.nbytes == served.strategy.stored_bytes

    check()
    assert min(seen.values()) > 0


def abandon(engine: Engine, prompt: Prompt, after: int) -> None:
    """Close a stream after some items: in its prefill, or in its answer."""
    stream = engine.stream(prompt, max_tokens=4)
    for _, _ in zip(range(after), stream, strict=False):
        pass
    stream.close()
