"""The disk tier with a real model: restarts, damage, kills and a full disk."""

from __future__ import annotations

import errno
import logging
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlxlab.engine import DiskFolder, Engine, load_model
from mlxlab.errors import DiskError
from mlxlab.files import replaced
from mlxlab.models.folder import ModelFolder, find_model
from mlxlab.prompt import Prompt
from mlxlab.strategies import Disk, make_strategy
from tests.support.architectures import save_architecture
from tests.support.hybrids import HYBRIDS

MIB = 1 << 20


class Served:
    """An engine on a folder of the disk."""

    def __init__(
        self,
        path: Path,
        model: tuple[ModelFolder, Any],
        *,
        name: str = "paged",
        size: int = 64 * MIB,
        owner: str = "a",
        backlog: int = 1 << 30,
        **given: Any,
    ) -> None:
        self.folder = DiskFolder(path, size, backlog=backlog)
        self.model = model
        self.engine = self.open(name, size, owner, **given)

    def open(self, name: str, size: int, owner: str, **given: Any) -> Engine:
        found, model = self.model
        strategy = make_strategy(name, layout=found.layout, **given)
        tier = Disk(size, strategy.token_bytes, strategy.checkpoint_bytes)
        store = self.folder.open(f"{found.digest} {owner}", tier)
        strategy.tier = store.disk
        return Engine(model, strategy, chunk=128, disk=store)

    def ask(self, prompt: Prompt, n: int = 8, engine: Engine | None = None) -> Answer:
        return ask(engine or self.engine, prompt, n)

    def close(self) -> None:
        self.engine.strategy.check_integrity()
        self.folder.close()

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Answer:
    """The ids of an answer, and what its plan reused."""

    def __init__(self, ids: list[int], reused: int, loaded: int) -> None:
        self.ids = ids
        self.reused = reused
        self.loaded = loaded


def ask(engine: Engine, prompt: Prompt, n: int = 8) -> Answer:
    plan, *items = engine.stream(prompt, max_tokens=n)
    ids = [item for item in items if isinstance(item, int)]
    return Answer(ids, plan.reused, plan.disk_tokens)  # type: ignore[union-attr]


def prompt(seed: int, length: int, head: Sequence[int] = ()) -> Prompt:
    ids = np.random.default_rng(seed).integers(10, 3000, length).tolist()
    return Prompt.of([*head, *ids])


HEAD = prompt(0, 300).tokens.tolist()
PROMPTS = [prompt(i, n, HEAD) for i, n in enumerate((50, 200, 7, 300), 1)]


@pytest.fixture(scope="module")
def model() -> tuple[ModelFolder, Any]:
    found = find_model()
    return found, load_model(found)


@pytest.fixture(scope="module")
def expected(model: tuple[ModelFolder, Any]) -> list[list[int]]:
    """The answers of a model that reuses nothing."""
    layout = model[0].layout
    plain = Engine(model[1], make_strategy("none", layout=layout), chunk=128)
    return [ask(plain, own).ids for own in PROMPTS]


def files(path: Path) -> list[Path]:
    return [own for own in path.rglob("*") if own.is_file()]


def data_files(path: Path) -> list[Path]:
    return sorted(path.rglob("*.safetensors"))


def size_of(path: Path) -> int:
    total = 0
    for file in files(path):
        try:
            total += file.stat().st_size
        except FileNotFoundError:
            continue
    return total


def fill(path: Path, model: tuple[ModelFolder, Any], **given: Any) -> list[Answer]:
    with Served(path, model, **given) as served:
        return [served.ask(own) for own in PROMPTS]


def test_a_restart_finds_everything(
    tmp_path: Path, model: tuple[ModelFolder, Any], expected: list[list[int]]
) -> None:
    with Served(tmp_path, model) as served:
        first = [served.ask(own) for own in PROMPTS]
        before = [served.ask(own).reused for own in PROMPTS]
    assert [answer.ids for answer in first] == expected
    with Served(tmp_path, model) as served:
        after = [served.ask(own) for own in PROMPTS]
    assert [answer.ids for answer in after] == expected
    reused = [answer.reused for answer in after]
    assert all(now >= then for now, then in zip(reused, before, strict=True))
    assert after[0].loaded == after[0].reused == len(PROMPTS[0]) - 1


def test_what_waits_to_be_written_can_be_loaded(
    tmp_path: Path,
    model: tuple[ModelFolder, Any],
    expected: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:

    def late(path: Path) -> Any:
        time.sleep(0.5)
        return replaced(path)

    monkeypatch.setattr("mlxlab.engine.disk_store.replaced", late)
    with Served(tmp_path, model, name="none") as served:
        assert served.ask(PROMPTS[0]).loaded == 0
        assert not data_files(tmp_path)
        answer = served.ask(PROMPTS[0])
        assert answer.loaded == len(PROMPTS[0]) - 1
        assert answer.ids == expected[0]


@pytest.mark.parametrize("kind", list(HYBRIDS))
def test_models_with_checkpoints_come_back(kind: str, tmp_path: Path) -> None:
    save_architecture(tmp_path / "model", HYBRIDS[kind])
    found = find_model(str(tmp_path / "model"))
    hybrid = found, load_model(found)
    plain = Engine(hybrid[1], make_strategy("none", layout=found.layout), chunk=128)
    longer = [
        Prompt.of([*own.tokens.tolist(), *prompt(9, 20).tokens.tolist()])
        for own in PROMPTS
    ]
    expected = [ask(plain, own).ids for own in longer]
    with Served(tmp_path / "disk", hybrid) as served:
        for own in PROMPTS:
            served.ask(own, 1)
        before = [served.engine.strategy.preview(own).reused for own in longer]
    assert min(before) >= 300
    with Served(tmp_path / "disk", hybrid) as served:
        after = [served.ask(own) for own in longer]
        reused = [answer.reused for answer in after]
        assert all(now >= then for now, then in zip(reused, before, strict=True))
        assert after[0].loaded > 0
        assert [answer.ids for answer in after] == expected
        # What was loaded is in memory from then on.
        plan = served.engine.strategy.preview(longer[0])
        assert plan.reused >= after[0].reused
        assert plan.disk_tokens == 0


@pytest.mark.parametrize("kind", ["qwen3_5", "gpt_oss"])
def test_a_checkpoint_is_loaded_where_memory_holds_none(
    kind: str, tmp_path: Path
) -> None:
    save_architecture(tmp_path / "model", HYBRIDS[kind])
    found = find_model(str(tmp_path / "model"))
    hybrid = found, load_model(found)
    plain = Engine(hybrid[1], make_strategy("none", layout=found.layout), chunk=128)
    with Served(tmp_path / "disk", hybrid, name="none") as served:
        for own in PROMPTS:
            served.ask(own, 1)
        longer = Prompt.of([*PROMPTS[1].tokens.tolist(), *range(20)])
        answer = served.ask(longer)
        assert answer.loaded == len(PROMPTS[1])
        assert answer.ids == ask(plain, longer).ids


def test_files_are_for_this_user_only(
    tmp_path: Path, model: tuple[ModelFolder, Any]
) -> None:
    old = os.umask(0o022)
    try:
        fill(tmp_path / "disk", model)
    finally:
        os.umask(old)
    assert data_files(tmp_path)
    for path in [tmp_path / "disk", *(tmp_path / "disk").rglob("*")]:
        expected = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


def test_credentials_share_nothing(
    tmp_path: Path, model: tuple[ModelFolder, Any]
) -> None:
    with Served(tmp_path, model) as served:
        other = served.open("paged", 64 * MIB, "b")
        served.ask(PROMPTS[0])
        assert served.ask(PROMPTS[0], engine=other).reused == 0
        own = served.open("prefix", 64 * MIB, "a")
        assert served.ask(PROMPTS[0], engine=own).loaded == len(PROMPTS[0]) - 1


def test_a_second_process_runs_without(
    tmp_path: Path, model: tuple[ModelFolder, Any]
) -> None:
    with (
        Served(tmp_path, model),
        pytest.raises(DiskError, match="another process uses it"),
    ):
        DiskFolder(tmp_path, MIB)
    DiskFolder(tmp_path, MIB).close()


def test_a_folder_that_others_may_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(DiskError, match="others may write it"):
        DiskFolder(tmp_path, MIB)


def test_the_size_is_kept_at_every_moment(
    tmp_path: Path, model: tuple[ModelFolder, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 4 * MIB
    largest = [0]

    def sampled(path: Path) -> Any:
        largest[0] = max(largest[0], size_of(tmp_path))
        return replaced(path)

    monkeypatch.setattr("mlxlab.engine.disk_store.replaced", sampled)
    with Served(tmp_path, model, size=size, capacity=2 * MIB) as served:
        other = served.open("paged", size, "b", capacity=2 * MIB)
        for seed in range(30):
            own = prompt(seed, 400)
            served.ask(own, 2, engine=other if seed % 3 == 0 else None)
            largest[0] = max(largest[0], size_of(tmp_path))
        served.folder._writer.flush()
        assert size_of(tmp_path) <= served.folder.nbytes <= size
        assert served.engine.disk is not None
        assert len(data_files(tmp_path)) > 2
    assert size // 4 < largest[0] <= size
    with Served(tmp_path, model, size=2 * MIB) as served:
        assert size_of(tmp_path) <= 2 * MIB
        assert served.ask(prompt(29, 400)).loaded >= 0


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.WARNING, logger="mlxlab")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("kind", ["*.safetensors", "index.sqlite", "index.sqlite-wal"])
def test_flipped_bytes_are_a_miss(
    kind: str,
    tmp_path: Path,
    model: tuple[ModelFolder, Any],
    expected: list[list[int]],
    warnings: Callable[[], list[str]],
) -> None:
    fill(tmp_path, model)
    drawn = random.Random(0)
    for round_ in range(12):
        # A process that is running may see damage too.
        with Served(tmp_path, model, name="none") as served:
            chosen = sorted(tmp_path.rglob(kind))
            for path in chosen if round_ % 2 else chosen[:1]:
                data = bytearray(path.read_bytes())
                if data:
                    for _ in range(drawn.choice([1, 5])):
                        at = drawn.randrange(len(data))
                        data[at] ^= 1 << drawn.randrange(8)
                    path.write_bytes(data)
            for own, ids in zip(PROMPTS, expected, strict=True):
                assert served.ask(own).ids == ids
        if kind == "index.sqlite" and round_ % 2:
            path = next(iter(tmp_path.rglob(kind)))
            data = bytearray(path.read_bytes())
            data[drawn.randrange(len(data))] ^= 0xFF
            path.write_bytes(data)
    with Served(tmp_path, model) as served:
        for own, ids in zip(PROMPTS, expected, strict=True):
            assert served.ask(own).ids == ids
    if kind == "*.safetensors":
        damaged = [line for line in warnings() if "damaged; it is computed" in line]
        assert len(damaged) >= 12


@pytest.mark.slow
def test_a_thousand_flipped_bytes_cost_no_token(
    tmp_path: Path, model: tuple[ModelFolder, Any], expected: list[list[int]]
) -> None:
    drawn, loaded, flipped = random.Random(1), 0, 0
    fill(tmp_path, model)
    while flipped < 1000:
        for path in drawn.choices(files(tmp_path), k=10):
            data = bytearray(path.read_bytes())
            if data:
                data[drawn.randrange(len(data))] ^= 1 << drawn.randrange(8)
                path.write_bytes(data)
                flipped += 1
        with Served(tmp_path, model) as served:
            for own, ids in zip(PROMPTS, expected, strict=True):
                answer = served.ask(own)
                assert answer.ids == ids
                loaded += answer.loaded
    assert loaded > 0


def test_an_index_that_is_no_database_begins_anew(
    tmp_path: Path,
    model: tuple[ModelFolder, Any],
    expected: list[list[int]],
    warnings: Callable[[], list[str]],
) -> None:
    fill(tmp_path, model)
    (index,) = tmp_path.rglob("index.sqlite")
    index.write_bytes(b"no database" * 1000)
    with Served(tmp_path, model) as served:
        assert not data_files(tmp_path)
        assert served.ask(PROMPTS[0]).ids == expected[0]
    (line,) = warnings()
    assert "not a database; the disk begins empty" in line


def test_another_models_files_are_not_used(
    tmp_path: Path, model: tuple[ModelFolder, Any], expected: list[list[int]]
) -> None:
    fill(tmp_path, model)
    with Served(tmp_path, model, owner="other model") as served:
        assert served.ask(PROMPTS[0]).reused == 0
    # Exchanged files are as good as damaged ones.
    some = data_files(next(f for f in tmp_path.iterdir() if len(data_files(f)) > 2))
    contents = [path.read_bytes() for path in some]
    for path, data in zip(some, contents[1:] + contents[:1], strict=True):
        path.write_bytes(data)
    with Served(tmp_path, model) as served:
        for own, ids in zip(PROMPTS, expected, strict=True):
            assert served.ask(own).ids == ids


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_full_disk_is_a_miss(
    after: int,
    tmp_path: Path,
    model: tuple[ModelFolder, Any],
    expected: list[list[int]],
    warnings: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count = iter(range(10**6))

    def full(path: Path) -> Any:
        if next(count) >= after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return replaced(path)

    monkeypatch.setattr("mlxlab.engine.disk_store.replaced", full)
    with Served(tmp_path, model, name="none") as served:
        for _ in range(2):
            for own, ids in zip(PROMPTS, expected, strict=True):
                assert served.ask(own).ids == ids
                served.folder._writer.flush()
        assert len(data_files(tmp_path)) == after
        served.engine.disk.settle()  # type: ignore[union-attr]
        assert len(served.engine.disk.disk.handles) == after  # type: ignore[union-attr]
    (line,) = warnings()
    assert "No space left on device; it is computed again" in line
    monkeypatch.undo()
    with Served(tmp_path, model) as served:
        for own, ids in zip(PROMPTS, expected, strict=True):
            assert served.ask(own).ids == ids


def test_no_more_waits_to_be_written_than_allowed(
    tmp_path: Path,
    model: tuple[ModelFolder, Any],
    expected: list[list[int]],
    warnings: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:

    def slow(path: Path) -> Any:
        time.sleep(0.2)
        return replaced(path)

    monkeypatch.setattr("mlxlab.engine.disk_store.replaced", slow)
    with Served(tmp_path, model, name="none", backlog=1) as served:
        for own, ids in zip(PROMPTS, expected, strict=True):
            assert served.ask(own).ids == ids
            assert len(served.engine.disk._waiting) <= 1  # type: ignore[union-attr]
    assert any("more to write than may wait" in line for line in warnings())


_WRITES = """
import sys
from pathlib import Path
from tests.engine.test_disk_store import PROMPTS, Served, load_model, find_model, prompt
found = find_model()
with Served(Path(sys.argv[1]), (found, load_model(found)), size=6 << 20) as served:
    print("ready", flush=True)
    seed = int(sys.argv[2])
    while True:
        for own in PROMPTS:
            served.ask(own, 2)
        served.ask(prompt(seed, 500), 2)
        seed += 1
"""


def kill_while_writing(folder: Path, seed: int, delay: float) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _WRITES, str(folder), str(seed)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == b"ready\n"
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()


def survives(
    kills: int, folder: Path, model: tuple[ModelFolder, Any], expected: list[list[int]]
) -> Iterator[int]:
    drawn = random.Random(kills)
    for number in range(kills):
        kill_while_writing(folder, 1000 * number, drawn.uniform(0, 1.5))
        assert size_of(folder) <= 6 * MIB
        with Served(folder, model, size=6 * MIB) as served:
            plans = [served.engine.strategy.preview(own) for own in PROMPTS]
            for own, ids in zip(PROMPTS, expected, strict=True):
                assert served.ask(own).ids == ids
            yield sum(plan.disk_tokens for plan in plans)


def test_a_process_may_be_killed_at_any_moment(
    tmp_path: Path, model: tuple[ModelFolder, Any], expected: list[list[int]]
) -> None:
    assert max(survives(3, tmp_path, model, expected)) > 300


@pytest.mark.slow
def test_a_process_may_be_killed_a_hundred_times(
    tmp_path: Path, model: tuple[ModelFolder, Any], expected: list[list[int]]
) -> None:
    assert max(survives(100, tmp_path, model, expected)) > 300
