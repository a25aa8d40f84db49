"""A start leaves to the first request its own work only, and is not a request."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlxlab.engine import DiskStore, Engine, Loader
from mlxlab.errors import ModelError
from mlxlab.server.auth import name_of
from mlxlab.server.model_pool import EngineKey
from mlxlab.server.server import Server
from tests.support.endpoint import TOKEN, Client, ask, copy_tiny, served

SIZE = 64 << 20


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with served(disk=SIZE, disk_folder=tmp_path / "disk") as server:
        yield server


def engines(server: Server) -> dict[EngineKey, Engine]:
    (loaded,) = server._service.pool._loaded.values()
    return dict(loaded.engines)


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("left to the first request")


def test_the_first_request_finds_all_loaded(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "transformers.AutoTokenizer.from_pretrained",
        "mlxlab.decoding.Grammar.of",
        "mlxlab.models.folder.Encoder",
        "mlx_lm.tokenizer_utils.load",
    ):
        monkeypatch.setattr(name, refuse)
    for owner, method in ((DiskStore, "__init__"), (Loader, "open"), (Loader, "load")):
        monkeypatch.setattr(owner, method, refuse)
    with Client(server.url) as client:
        assert client.ask(ask(max_tokens=2))["usage"]["output_tokens"] > 0
    (engine,) = engines(server).values()
    assert engine.disk is not None
    assert engine.commits == 1


def test_a_start_is_not_a_request(server: Server) -> None:
    ((key, engine),) = engines(server).items()
    assert key == EngineKey("paged:disk=64MiB", name_of(TOKEN.encode()))
    assert (engine.commits, engine.users, engine.store.nbytes) == (0, 0, 0)
    assert engine.strategy.stored_bytes == 0
    assert server.requests.empty
    assert server.status().peak == 0
    metrics = server._service.exposition().decode()
    assert "mlxlab_requests_total{" not in metrics


def test_a_template_may_refuse_a_lone_user(tmp_path: Path) -> None:
    folder = copy_tiny(tmp_path / "model")
    file = Path(folder, "chat_template.jinja")
    strict = "{%- if messages[0].role != 'system' -%}"
    strict += "{{- raise_exception('no system') -}}{%- endif -%}\n"
    file.write_text(strict + file.read_text())
    with served(folder) as server, Client(server.url) as client:
        assert client.refusal(ask())[0] == 400
        assert client.ask(ask(system="You help."))["stop_reason"]


INST = "{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}"


def test_a_template_may_open_the_answer_on_the_line_of_the_message(
    tmp_path: Path,
) -> None:
    folder = copy_tiny(tmp_path / "model")
    Path(folder, "chat_template.jinja").write_text(INST)
    with served(folder) as server, Client(server.url) as client:
        assert client.ask(ask())["stop_reason"]


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ messages[0].content }}", "prints nothing after the last message"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
    ],
)
def test_a_template_that_serves_nothing_is_refused_at_the_start(
    template: str, problem: str, tmp_path: Path
) -> None:
    folder = copy_tiny(tmp_path / "model")
    Path(folder, "chat_template.jinja").write_text(template)
    with pytest.raises(ModelError, match=problem), served(folder):
        pass
