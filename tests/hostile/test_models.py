"""Hostile model folders: served or refused in one line, never worse.

All of them are served and simulated in a process with limited memory; that is slow.
Most are tried here too, as far as a simulation goes without measuring their caches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlxlab.cli import main
from mlxlab.engine import Loader
from mlxlab.errors import ModelError
from mlxlab.models.folder import ModelFolder, find_model
from mlxlab.rendering.renderer import Renderer
from tests.support.endpoint import ask
from tests.support.hostile_models import CASES, MARKER, make_folder
from tests.support.model_visitor import SERVED, ModelVisitor

#: Refused by mlx only, which a simulation asks in another process; or after seconds.
SLOW = ("weights-", "template-loop", "template-gigabytes")
QUICK = [name for name in CASES if not name.startswith(SLOW)]
#: These are refused before anything is loaded.
EARLY: tuple[str, ...] = (
    "generation_config-",
    "config-max_position_embeddings-",
    "template-",
)
EARLY += ("config-num_hidden_layers-million", "config-dtype-number", "config-deep")
EARLY += ("tokenizer-dangling", "tokenizer-large", "tokenizer-half", "tokenizer-deep")
EARLY += ("tokenizer_config-eos_token-list", "tokenizer_config-chat_template")
#: These are loaded.
LOADED: tuple[str, ...] = (
    "weights-half",
    "weights-long-header",
    "weights-nan",
    "weights-other-shapes",
)
LOADED += ("weights-outside", "config-model_file-code", "config-model_type-path")

#: Cases that are harmless, and have to be served.
HARMLESS = {
    "config-max_position_embeddings-huge",
    "config-auto_map-code",
    "generation_config-temperature-null",
    "generation_config-eos_token_id-negative",
    "generation_config-min_p-true",
    "generation_config-do_sample-text",
    "tokenizer_config-auto_map-code",
    "tokenizer-id-beyond",
    "tokenizer-huge-id",
    "weights-index-outside",
}


@pytest.mark.parametrize("name", QUICK)
def test_a_hostile_folder_is_refused_in_one_line_or_harmless(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = make_folder(name, tmp_path)
    try:
        assert Renderer(find_model(str(folder))).render(ask())
        assert name in HARMLESS or not name.startswith(EARLY)
    except ModelError as error:
        assert name not in HARMLESS
        check_line(str(error))
    assert not (tmp_path / MARKER).exists()


@pytest.mark.parametrize("name", LOADED)
def test_a_hostile_model_is_refused_while_it_loads(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = find_model(str(make_folder(name, tmp_path)))
    with pytest.raises(ModelError) as caught:
        Loader().load(folder)
    check_line(str(caught.value))
    assert not (tmp_path / MARKER).exists()


@pytest.mark.parametrize("command", ["serve --port 0", "compare --simulate thinking"])
@pytest.mark.parametrize(
    "name", ["template-nothing", "generation_config-temperature-text", "tokenizer-half"]
)
def test_a_command_refuses_a_hostile_folder_in_one_line(
    command: str,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    # Measuring the layout takes a process and seconds.
    monkeypatch.setattr(ModelFolder, "layout", find_model().layout)
    folder = str(make_folder(name, tmp_path))
    monkeypatch.setattr("sys.argv", ["mlxlab", *command.split(), "--model", folder])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mlxlab: model ")


@pytest.fixture(scope="module")
def table() -> Iterator[Counter[str]]:
    table: Counter[str] = Counter()
    yield table
    print("\nhostile models:", dict(table))


@pytest.fixture(scope="module")
def visitor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelVisitor]:
    visitor = ModelVisitor(tmp_path_factory.mktemp("home"))
    yield visitor
    visitor.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_hostile_folder_harms_nothing(
    name: str, visitor: ModelVisitor, table: Counter[str], tmp_path: Path
) -> None:
    outcomes = visitor.visit(make_folder(name, tmp_path))
    table["cases"] += 1
    for outcome in outcomes:
        table[outcome if outcome == SERVED else outcome.split()[0]] += 1
        assert not outcome.startswith(("!", "5")), outcome
        if outcome != SERVED:
            assert name not in HARMLESS, outcome
            check_line(outcome)
    assert not (visitor.home / MARKER).exists()


def check_line(text: str) -> None:
    assert "\n" not in text
    assert len(text) < 1000
