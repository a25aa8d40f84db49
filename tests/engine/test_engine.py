"""The engine under every exact strategy: same logits, same tokens as uncached."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import stream_generate
from mlx_lm.models.cache import KVCache
from mlx_lm.sample_utils import make_sampler
from mlx_lm.utils import load

from mlxlab.engine import Engine, PrefillProgress, Worker, load_model
from mlxlab.engine.working_cache import WorkingCache
from mlxlab.errors import ModelError
from mlxlab.models.folder import ModelFolder, find_model
from mlxlab.prompt import Prompt, Tokens
from mlxlab.rendering.renderer import Renderer
from mlxlab.strategies import (
    STRATEGIES,
    Commit,
    Plan,
    Put,
    Span,
    Strategy,
    make_strategy,
)
from tests.support import wire

EXACT = [name for name, strategy in STRATEGIES.items() if strategy.exact]
#: Small enough that a short session hits, is cut into blocks, and evicts.
PARAMETERS: dict[str, dict[str, Any]] = {
    "block-hash": {"block": 32, "minimum": 64},
    "paged": {"block": 16},
}


@pytest.fixture(scope="module")
def tiny() -> ModelFolder:
    return find_model()


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as worker:
        yield worker


@pytest.fixture(scope="module")
def model(tiny: ModelFolder, worker: Worker) -> Any:
    return worker.call(load_model, tiny)


@pytest.fixture(scope="module")
def steps(tiny: ModelFolder) -> list[tuple[Prompt, Tokens]]:
    """Two sessions that take turns, then the first one's second turn again."""
    renderer = Renderer(tiny)
    a = wire.session(4)
    b = wire.session(3, ask="Add a test.", suffix="9ff")
    order = [a[0], b[0], a[1], b[1], a[2], a[3], b[2], a[1]]
    return [renderer.render_exchange(body, reply) for body, reply in order]


def make_engine(model: Any, name: str, **options: Any) -> Engine:
    return Engine(model, make_strategy(name, **PARAMETERS.get(name, {})), **options)


def ids_of(stream: Iterable[Plan | PrefillProgress | int]) -> list[int]:
    return [item for item in stream if isinstance(item, int)]


def first_logits(worker: Worker, engine: Engine, steps: Any) -> list[np.ndarray]:
    return [worker.call(engine.replay, *step).logits for step in steps]


@pytest.fixture(scope="module")
def uncached(worker: Worker, model: Any, steps: Any) -> list[np.ndarray]:
    return first_logits(worker, make_engine(model, "none"), steps)


@pytest.fixture(scope="module")
def noise(worker: Worker, model: Any, steps: Any, uncached: Any) -> float:
    """Return the largest change of a logit under other chunk sizes, uncached."""
    floor = 0.0
    for chunk in (16, 64, 100):
        others = first_logits(worker, make_engine(model, "none", chunk=chunk), steps)
        for a, b in zip(uncached, others, strict=True):
            floor = max(floor, float(np.abs(a - b).max()))
    return floor


@pytest.mark.parametrize("name", EXACT)
def test_first_logits_agree_with_an_uncached_prefill(
    name: str, worker: Worker, model: Any, steps: Any, uncached: Any, noise: float
) -> None:
    engine = make_engine(model, name)
    token_bytes = find_model().layout.token_bytes()
    reused = 0
    for (prompt, answer), expected in zip(steps, uncached, strict=True):
        done = worker.call(engine.replay, prompt, answer)
        reused += done.plan.reused
        assert np.abs(done.logits - expected).max() <= noise
        assert engine.store.nbytes == engine.strategy.stored_tokens * token_bytes
        engine.strategy.check_integrity()
    assert (reused > 0) == (name != "none")
    assert 0 < noise < 1e-3


@pytest.fixture(scope="module")
def reference(tiny: ModelFolder, steps: Any) -> list[list[int]]:
    """64 greedy tokens for every prompt, by mlx-lm alone."""
    with Worker() as worker:
        model, tokenizer = worker.call(load, str(tiny.path))[:2]

        def generate(prompt: Prompt) -> list[int]:
            answers = stream_generate(
                model, tokenizer, prompt.tokens.tolist(), max_tokens=64
            )
            return [answer.token for answer in answers]

        return [worker.call(generate, prompt) for prompt, _ in steps]


@pytest.mark.parametrize("name", EXACT)
def test_greedy_tokens_are_those_of_mlx_lm(
    name: str, worker: Worker, model: Any, steps: Any, reference: Any, tiny: ModelFolder
) -> None:
    engine = make_engine(model, name)
    stop = {tiny.tokenizer.eos_token_id}
    for (prompt, _), expected in zip(steps, reference, strict=True):
        answer = worker.stream(engine.stream, prompt, max_tokens=64, stop=stop)
        assert ids_of(answer) == expected
    assert all(reference)


class WithHoles(Strategy):
    """Reuses two parts of the one sequence it keeps, and leaves a gap between."""

    name = "with-holes"
    summary = "for tests"
    stored_tokens = 0

    def _match(self, prompt: Prompt) -> Plan:
        if not self.stored_tokens:
            return Plan(len(prompt))
        return Plan(len(prompt), (Span(1, 0, 0, 40), Span(1, 90, 90, 60)), 150)

    def _store(self, prompt: Prompt, plan: Plan) -> Commit:
        if self.stored_tokens:
            return Commit()
        self.stored_tokens = len(prompt)
        return Commit(put=(Put(1, 0, len(prompt)),))

    def _check_stored(self) -> None:
        """Nothing to recount."""


def test_gaps_between_spans_are_computed_at_their_place(
    worker: Worker, model: Any, steps: Any, uncached: Any, noise: float
) -> None:
    engine = Engine(model, WithHoles(), chunk=32)
    worker.call(engine.replay, *steps[0])
    done = worker.call(engine.replay, *steps[0])
    assert done.plan.reused == 100
    assert list(done.plan.gaps) == [(40, 90), (150, len(steps[0][0]))]
    assert np.abs(done.logits - uncached[0]).max() <= noise


def test_generated_tokens_are_cached(worker: Worker, model: Any, steps: Any) -> None:
    engine = make_engine(model, "prefix")
    prompt = steps[0][0]
    answer = ids_of(worker.stream(engine.stream, prompt, max_tokens=8))
    longer = Prompt.of([*prompt.tokens.tolist(), *answer, 5, 6])
    assert worker.call(engine.prefill, longer).plan.reused == len(prompt) + 7


def test_an_abandoned_answer_keeps_what_was_computed(
    worker: Worker, model: Any, steps: Any
) -> None:
    engine = make_engine(model, "prefix")
    prompt = steps[0][0]
    stream = worker.stream(engine.stream, prompt, max_tokens=500)
    next(item for item in stream if isinstance(item, int))
    stream.close()
    assert worker.call(engine.prefill, prompt).plan.reused == len(prompt) - 1


@pytest.mark.parametrize("name", EXACT)
def test_an_abandoned_prefill_keeps_what_was_computed(
    name: str, worker: Worker, model: Any, steps: Any, uncached: Any, noise: float
) -> None:
    engine = make_engine(model, name, chunk=64)

    def abandon_after(chunks: int, prompt: Prompt) -> None:
        stream = engine.stream(prompt)
        taken = (item for item in stream if isinstance(item, PrefillProgress))
        for _ in range(chunks):
            next(taken)
        stream.close()

    prompt, answer = steps[0]
    worker.call(abandon_after, 0, prompt)
    worker.call(abandon_after, 3, prompt)
    done = worker.call(engine.replay, prompt, answer)
    assert done.plan.reused == (0 if name == "none" else 192)
    assert np.abs(done.logits - uncached[0]).max() <= noise
    engine.strategy.check_integrity()


def test_chunks_take_no_longer_than_they_may(
    worker: Worker, model: Any, steps: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the first one of the next prompt; a token takes a millisecond here."""
    now = 0.0
    monkeypatch.setattr("mlxlab.engine.engine.perf_counter", lambda: now)
    engine = make_engine(model, "none", chunk=1024, chunk_s=0.3)
    compute = WorkingCache.compute

    def slow(self: WorkingCache, model: Any, tokens: Tokens) -> Any:
        nonlocal now
        now += len(tokens) / 1000
        return compute(self, model, tokens)

    monkeypatch.setattr(WorkingCache, "compute", slow)

    def taken() -> list[int]:
        items = engine.stream(Prompt.of(range(1800)), max_tokens=0)
        return [item.tokens for item in items if isinstance(item, PrefillProgress)]

    assert worker.call(taken) == [1024, 256, 256, 256, 7]
    assert worker.call(taken) == [256] * 7 + [7]
    engine.chunk_s = 2.0
    assert worker.call(taken) == [256, 1024, 519]


def test_a_slow_device_computes_small_chunks(
    worker: Worker, model: Any, steps: Any
) -> None:
    engine = make_engine(model, "none", chunk=1024, chunk_s=0.0)

    def taken() -> list[int]:
        items = engine.stream(Prompt.of(range(1200)), max_tokens=0)
        return [item.tokens for item in items if isinstance(item, PrefillProgress)]

    assert worker.call(taken) == [1024, 64, 64, 47]


def test_an_answer_of_no_tokens_fills_the_cache(
    worker: Worker, model: Any, steps: Any
) -> None:
    engine = make_engine(model, "prefix")
    prompt = steps[0][0]
    items = list(worker.stream(engine.stream, prompt, max_tokens=0))
    taken = sum(item.tokens for item in items if isinstance(item, PrefillProgress))
    assert (items[0], taken) == (Plan(len(prompt)), len(prompt) - 1)
    assert ids_of(items) == []
    assert worker.call(engine.prefill, prompt).plan.reused == len(prompt) - 1


def test_sampling_is_the_samplers(worker: Worker, model: Any, steps: Any) -> None:
    def sampled(seed: int) -> list[int]:
        mx.random.seed(seed)
        engine = make_engine(model, "none")
        sampler = make_sampler(temp=1.0)
        return ids_of(engine.stream(steps[0][0], max_tokens=12, sampler=sampler))

    a, b, c = (worker.call(sampled, seed) for seed in (1, 1, 2))
    assert a == b != c


def test_progress_adds_up_to_the_prompt(worker: Worker, model: Any, steps: Any) -> None:
    engine = make_engine(model, "prefix", chunk=50)
    for prompt, answer in steps[:3]:
        done: list[int] = []
        worker.call(engine.replay, prompt, answer, done.append)
        assert sum(done) == len(prompt)


def test_a_prompt_beyond_the_window_is_refused(
    worker: Worker, model: Any, steps: Any
) -> None:
    engine = make_engine(model, "prefix", window=100)
    with pytest.raises(ModelError, match=r"prompt is too long: \d+ tokens > 100 max"):
        worker.call(engine.prefill, steps[0][0])


def test_a_model_that_cannot_be_cut_is_refused(
    tiny: ModelFolder, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OwnCache(KVCache):
        pass

    mixed = [KVCache(), OwnCache()]  # type: ignore[no-untyped-call]
    monkeypatch.setattr(
        "mlxlab.engine.working_cache.make_prompt_cache", lambda model: mixed
    )
    with pytest.raises(ModelError, match="keeps a OwnCache, which mlxlab cannot"):
        worker.call(load_model, tiny)


def test_a_folder_without_weights_is_refused(tmp_path: Path, worker: Worker) -> None:
    config = find_model().path / "config.json"
    (tmp_path / "config.json").write_bytes(config.read_bytes())
    with pytest.raises(ModelError, match="cannot be loaded"):
        worker.call(load_model, find_model(str(tmp_path)))
