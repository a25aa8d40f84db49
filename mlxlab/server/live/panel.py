"""The live view in a notebook: a widget over the comm of the kernel, without a port."""

from __future__ import annotations

import time
from secrets import token_hex
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any

import anywidget
from IPython.display import display
from traitlets import Unicode

from mlxlab.errors import MlxlabError
from mlxlab.server.live.change import Change
from mlxlab.server.live.page import FOLDER
from mlxlab.server.live.view import INTERVAL_S

if TYPE_CHECKING:
    from mlxlab.server.server import Server

__all__ = ["Panel"]

#: Seconds between two states that a saved notebook would keep.
_KEEP_S = 2.0
#: Seconds of silence after which a view hears that the kernel is there.
_HERE_S = 10.0
_WIDGET = "application/vnd.jupyter.widget-view+json"
#: Where a notebook is opened again, there is no widget; JupyterLab would say so.
_STYLE = (
    "<style>"
    ".jp-OutputArea-child:has([data-mlxlab='{place}']) + .jp-OutputArea-child"
    ":not(:has(.mlxlab-panel)) {{ display: none }}</style>"
)


class Panel(anywidget.AnyWidget):
    """Shows a server and takes changes of its settings.

    The output is the last state as HTML, which a saved notebook keeps, and behind it
    the widget, which hides that HTML while it lives. Both are sent only while a
    notebook shows them: at most four messages a second, by a thread of their own, so
    that a cell that runs does not hold them up.

    Args:
        server: to show; it may have stopped.
    """

    _esm = FOLDER / "panel.js"
    _css = FOLDER / "panel.css"
    place = Unicode().tag(sync=True)

    def __init__(self, server: Server) -> None:
        super().__init__(place=f"mlxlab-{token_hex(8)}")
        self._server = server
        self._version = 0
        self._kept = ""
        self._guard = Lock()
        self._is_watched = False
        self._over = Event()
        self.on_msg(self._hear)

    def show(self) -> None:
        """Show the panel as an output of the current cell."""
        display(self._still(), raw=True, display_id=self.place)
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        display({_WIDGET: view}, raw=True)

    def close(self) -> None:
        """End the widget; its HTML stays."""
        self._over.set()
        super().close()

    def _hear(self, _widget: object, content: Any, _buffers: object) -> None:
        match content:
            case {"watch": True}:
                self._watch()
            case {"change": dict(change)}:
                # Changes may load models, and the kernel's loop must not wait.
                Thread(target=self._change, args=(change,), daemon=True).start()

    def _watch(self) -> None:
        """Send a snapshot to a view that begins, then what changes."""
        with self._guard:
            self._version = 0
            if not self._is_watched:
                self._is_watched = True
                Thread(target=self._send_changes, daemon=True).start()

    def _send_changes(self) -> None:
        kept_at = sent_at = time.monotonic()
        while not self._over.wait(INTERVAL_S):
            is_running = self._server.is_running
            if time.monotonic() - kept_at > _KEEP_S:
                kept_at = time.monotonic()
                self._keep()
            elif self._send_change():
                sent_at = time.monotonic()
            elif not is_running:
                break
            elif time.monotonic() - sent_at > _HERE_S:
                sent_at = time.monotonic()
                self.send({"here": True})
        self._keep()
        with self._guard:
            self._is_watched = False

    def _send_change(self) -> bool:
        with self._guard:
            changed = self._server.view.since(self._version)
            if changed:
                self._version = changed["version"]
        if changed:
            self.send(changed)
        return bool(changed)

    def _change(self, change: dict[str, Any]) -> None:
        try:
            Change.read(change).apply(self._server)
        except MlxlabError as error:
            self.send({"error": str(error)})
        else:
            self.send({"done": True})

    def _still(self) -> dict[str, str]:
        html = f"<div data-mlxlab='{self.place}'>{self._server._repr_html_()}</div>"
        style = _STYLE.format(place=self.place)
        return {"text/plain": repr(self._server), "text/html": style + html}

    def _keep(self) -> None:
        """Put the current state in place of the HTML, if it has changed."""
        still = self._still()
        if still["text/html"] != self._kept:
            self._kept = still["text/html"]
            display(still, raw=True, display_id=self.place, update=True)
