"""The panel in a notebook, without a browser: what is sent, when, and from where."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from IPython.core import getipython

from mlxlab.server.live import panel as module
from mlxlab.server.live.page import FOLDER
from mlxlab.server.live.panel import Panel
from mlxlab.server.server import Server
from tests.support.endpoint import Client, ask, served, until


class Watched(Panel):
    """A panel whose messages and outputs are kept."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.sent: list[dict[str, Any]] = []
        self.threads: set[str] = set()

    def send(self, content: Any, buffers: Any = None) -> None:
        self.sent.append(content)
        self.threads.add(threading.current_thread().name)

    def hear(self, **content: Any) -> None:
        self._handle_custom_msg(content, [])


@pytest.fixture
def outputs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Outputs of cells: bundles, and whether they replace an earlier one."""
    shown: list[dict[str, Any]] = []

    def display(bundle: dict[str, Any], *, raw: bool, **options: Any) -> None:
        assert raw
        shown.append({**bundle, **options})

    monkeypatch.setattr(module, "display", display)
    return shown


def test_a_panel_sends_while_it_is_watched(
    outputs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with served() as server, Client(server.url) as client:
        panel = Watched(server)
        panel.show()
        client.ask(ask(max_tokens=1))
        time.sleep(0.6)
        assert panel.sent == []  # it is not watched

        panel.hear(watch=True)
        until(lambda: len(panel.sent) == 1)
        assert panel.sent[0]["whole"]
        assert len(panel.sent[0]["rows"]) == 1
        begun = time.monotonic()
        for _ in range(20):
            client.ask(ask(max_tokens=1))
        until(lambda: panel.sent[-1].get("totals", {}).get("requests") == 21)
        assert len(panel.sent) <= 2 + 4 * (time.monotonic() - begun)
        # A page that is loaded again gets all of it.
        panel.hear(watch=True)
        until(lambda: panel.sent[-1]["whole"])
        assert len(panel.sent[-1]["rows"]) == 21

        panel.hear(change={"strategy": "prefix"})
        until(lambda: {"done": True} in panel.sent)
        assert server.aliases.default.strategy == "prefix"
        panel.hear(change={"strategy": "nope"})
        until(lambda: "no strategy 'nope'" in str(panel.sent[-1].get("error")))
        monkeypatch.setattr(module, "_HERE_S", 0.5)
        until(lambda: {"here": True} in panel.sent)
        panel.hear(change={"selected": [21]})
        until(lambda: server.selected.requests.request.tolist() == [21])
        until(lambda: any("#21 main" in str(o["text/html"]) for o in outputs[2:]))
    until(lambda: not panel._is_watched)  # it ends with the server
    states = [m["server"]["is_running"] for m in panel.sent if "server" in m]
    assert states[-1] is False
    # What serves and what computes never touch the kernel.
    assert not [name for name in panel.threads if "mlxlab-server" in name]


def test_the_output_is_html_that_is_kept_and_a_widget(
    outputs: list[dict[str, Any]],
) -> None:
    with served() as server:
        panel = Watched(server)
        panel.show()
    still, view = outputs
    assert still["text/plain"] == "Server(tiny, paged)"
    assert f"data-mlxlab='{panel.place}'" in still["text/html"]
    assert still["display_id"] == panel.place
    assert server.token not in str(outputs)
    [(kind, content)] = view.items()
    assert kind == "application/vnd.jupyter.widget-view+json"
    assert content["model_id"] == panel.model_id


def test_notebook_and_browser_show_the_same_files() -> None:
    with served() as server:
        panel = Watched(server)
        page = {name: (FOLDER / f"panel.{name}").read_text() for name in ("js", "css")}
        assert str(panel._esm) == page["js"]
        assert str(panel._css) == page["css"]


def test_elsewhere_than_in_a_kernel_it_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    with served() as server:
        with pytest.raises(NotImplementedError):
            server._ipython_display_()
        monkeypatch.setattr(
            getipython, "get_ipython", lambda: SimpleNamespace(kernel=1)
        )
        monkeypatch.setitem(sys.modules, "mlxlab.server.live.panel", None)
        with pytest.raises(NotImplementedError):  # anywidget is not installed
            server._ipython_display_()
        assert "paged" in server._repr_html_()


def test_serving_loads_no_widgets() -> None:
    script = """
import sys
import mlxlab.server.server, mlxlab.cli
found = {"anywidget", "ipywidgets", "IPython"} & set(sys.modules)
sys.exit(f"loaded {sorted(found)}" if found else 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
