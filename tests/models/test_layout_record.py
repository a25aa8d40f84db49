"""Layouts of folders: measured once and elsewhere, kept, and refused as by serve."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlxlab.analysis.compare import compare
from mlxlab.analysis.misses.run import misses
from mlxlab.analysis.sweep import sweep
from mlxlab.analysis.tune import tune
from mlxlab.engine import Engine, Loader, load_model, loading
from mlxlab.errors import ModelError
from mlxlab.models.folder import find_model
from mlxlab.models.layout import CacheKind, CacheLayout, LayerCache
from mlxlab.prompt import Prompt
from tests.support.architectures import configurations, save_architecture
from tests.support.exchanges import small_trace
from tests.support.models import save_model

#: Two layers of keys and values of 64 numbers each.
LAYOUT = CacheLayout((LayerCache(2, CacheKind.TOKENS, 2 * 64 * 2, keys=64, values=64),))


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the layouts of a test are kept; there are none yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/mlxlab/layouts"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model", dtype=mx.float16)


def refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("measured again")


def test_a_layout_is_measured_once(
    kept: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_model(str(folder)).layout == LAYOUT
    (file,) = kept.iterdir()
    assert file.stat().st_mode & 0o077 == 0
    monkeypatch.setattr(subprocess, "run", refuse)
    assert find_model(str(folder)).layout == LAYOUT


def test_weights_decide_and_not_the_configuration(kept: Path, folder: Path) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text()) | {"dtype": "float32"}
    file.write_text(json.dumps(config))
    assert find_model(str(folder)).layout == LAYOUT


def test_without_weights_the_configuration_decides(kept: Path, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert find_model(str(folder)).layout == LAYOUT


@pytest.mark.parametrize("spoil", ["broken", "foreign", "open", "older"])
def test_kept_files_that_do_not_fit_are_measured_again(
    kept: Path, folder: Path, spoil: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert find_model(str(folder)).layout == LAYOUT
    (file,) = kept.iterdir()
    record = json.loads(file.read_text())
    record["layout"]["layers"][0]["size"] = 1
    match spoil:
        case "broken":
            file.write_text("{")
        case "foreign":
            file.write_text(json.dumps(record | {"more": 1}))
        case "open":
            file.write_text(json.dumps(record))
            file.chmod(0o666)
        case "older":
            file.write_text(json.dumps(record | {"engine": "mlx-lm 0.1"}))
    with caplog.at_level(logging.WARNING):
        assert find_model(str(folder)).layout == LAYOUT
    assert len(caplog.records) == (spoil != "older")
    assert json.loads(file.read_text())["layout"]["layers"][0]["size"] > 1


def test_a_folder_that_takes_no_files_is_no_failure(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert find_model(str(folder)).layout == LAYOUT


def test_a_failed_measurement_is_not_kept(
    kept: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(ModelError, match="its cache layout cannot be measured: no"):
        _ = find_model(str(folder)).layout
    assert not kept.exists()


BROKEN = {"unknown": {"model_type": "nope"}, "of olmo": {"model_type": "olmo"}}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_a_simulation_refuses_what_serve_refuses(
    kept: Path, folder: Path, change: dict[str, Any]
) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ModelError) as served:
        load_model(find_model(str(folder)))
    model = find_model(str(folder))
    for _ in range(2):  # measured, then kept
        for verb in (compare, tune, sweep, misses):
            simulated: dict[str, Any] = {"simulate": True} if verb is compare else {}
            with pytest.raises(ModelError) as caught:
                verb(small_trace(), model=model, progress=False, **simulated)
            assert str(caught.value) == str(served.value)
    # Counting tokens needs a tokenizer only; a recommendation needs a model that runs.
    given: dict[str, Any] = {"layout": "1KiB", "progress": False}
    assert misses(small_trace(), model=model, **given).requests.size
    with pytest.raises(ModelError):
        tune(small_trace(), model=model, **given)


def test_loading_keeps_what_it_finds(
    kept: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", refuse)
    load_model(find_model(str(folder)))
    assert find_model(str(folder)).layout == LAYOUT


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The trials of a test, as they are made."""
    made: list[str] = []
    for name in ("try_out", "try_batch"):
        run = getattr(loading, name)

        def counted(model: Any, name: str = name, run: Any = run) -> Any:
            made.append(name)
            return run(model)

        monkeypatch.setattr(loading, name, counted)
    return made


def test_a_model_is_tried_out_once(kept: Path, folder: Path, trials: list[str]) -> None:
    first = Loader().load(find_model(str(folder)))
    assert trials == ["try_out", "try_batch"]
    (file,) = kept.iterdir()
    written = file.stat().st_mtime_ns, file.stat().st_ino
    second = Loader().load(find_model(str(folder)))
    assert len(trials) == 2
    assert (second.layout, second.batched) == (first.layout, first.batched)
    assert first.batched
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == written


def test_a_model_that_is_not_tried_out_is_warmed_up(
    kept: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    replay = Engine.replay

    def watched(self: Engine, prompt: Prompt, *arguments: Any, **options: Any) -> Any:
        computed.append(len(prompt))
        return replay(self, prompt, *arguments, **options)

    monkeypatch.setattr(Engine, "replay", watched)
    load_model(find_model(str(folder)))
    assert computed == []
    load_model(find_model(str(folder)))
    assert computed == [16]


def test_the_bundled_model_is_tried_out_once(kept: Path, trials: list[str]) -> None:
    for _ in range(2):
        assert Loader().load(find_model()).layout == find_model().layout
    assert trials == ["try_out", "try_batch"]


def test_one_at_a_time_is_kept(
    kept: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "try_batch", lambda model: False)
    assert not Loader().load(find_model(str(folder))).batched
    monkeypatch.setattr(loading, "try_batch", refuse)
    assert not Loader().load(find_model(str(folder))).batched


CHANGES = {
    "mlx": ("mlxlab.models.layout_record._engine", lambda: "mlx 0.1, mlx-lm 0.1"),
    "device": ("mlxlab.engine.trial.device_name", lambda: "another"),
    "engine": ("mlxlab.engine.trial.__file__", __file__),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_trial_depends_on_is_compared(
    kept: Path,
    folder: Path,
    trials: list[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    load_model(find_model(str(folder)))
    monkeypatch.setattr(*CHANGES[name])
    for _ in range(2):
        load_model(find_model(str(folder)))
    assert len(trials) == 4


def test_another_model_is_tried_out(
    kept: Path, folder: Path, tmp_path: Path, trials: list[str]
) -> None:
    load_model(find_model(str(folder)))
    load_model(find_model(str(save_model(tmp_path / "other", dtype=mx.float32))))
    assert len(trials) == 4


@pytest.mark.parametrize("spoil", ["broken", "open", "refused", "no trial"])
def test_a_model_without_a_kept_trial_is_tried_out(
    kept: Path, folder: Path, trials: list[str], spoil: str
) -> None:
    load_model(find_model(str(folder)))
    (file,) = kept.iterdir()
    record = json.loads(file.read_text())
    match spoil:
        case "broken":
            file.write_text("{")
        case "open":
            file.chmod(0o666)
        case "refused":
            refused = {"layout": None, "trial": None, "refusal": "why"}
            file.write_text(json.dumps(record | refused))
        case "no trial":
            file.write_text(json.dumps(record | {"trial": None}))
    load_model(find_model(str(folder)))
    assert len(trials) == 4
    assert json.loads(file.read_text()) == record
    assert file.stat().st_mode & 0o077 == 0


def test_an_outline_is_not_a_trial(kept: Path, folder: Path, trials: list[str]) -> None:
    assert find_model(str(folder)).layout == LAYOUT
    load_model(find_model(str(folder)))
    assert len(trials) == 2


@pytest.mark.skipif(not configurations(), reason="no shared/models/configs.json")
def test_a_refused_model_is_tried_out_and_refused_again(
    kept: Path, tmp_path: Path, trials: list[str]
) -> None:
    save_architecture(tmp_path / "model", configurations()["plamo3"])
    written = []
    for _ in range(2):
        with pytest.raises(ModelError, match="depend on the size of the chunks"):
            load_model(find_model(str(tmp_path / "model")))
        (file,) = kept.iterdir()
        written.append((file.stat().st_mtime_ns, file.stat().st_ino))
    assert trials == ["try_out", "try_out"]
    assert written[0] == written[1]


@pytest.mark.skipif(not configurations(), reason="no shared/models/configs.json")
def test_a_simulation_refuses_what_loading_tried_in_vain(
    kept: Path, tmp_path: Path
) -> None:
    save_architecture(tmp_path / "model", configurations()["plamo3"])
    model = str(tmp_path / "model")
    assert find_model(model).layout.token_bytes() > 0  # only its answers show it
    with pytest.raises(ModelError, match="depend on the size of the chunks") as served:
        load_model(find_model(model))
    with pytest.raises(ModelError) as simulated:
        tune(small_trace(), model=model, progress=False)
    assert str(simulated.value) == str(served.value)


def test_a_simulation_imports_no_mlx(kept: Path, folder: Path) -> None:
    lines = [
        "import sys",
        "from mlxlab.models.folder import find_model",
        "find_model(sys.argv[1]).layout",
        "sys.exit('mlx.core' in sys.modules)",
    ]
    command = [sys.executable, "-c", "\n".join(lines), str(folder)]
    subprocess.run(command, check=True, env={**os.environ})
    assert len(list(kept.iterdir())) == 1
