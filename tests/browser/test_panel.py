"""The panel in JupyterLab: the whole way from a cell to a saved notebook."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import nbformat
import psutil
import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import shoot
from tests.support.endpoint import TOKEN, Client, ask, until, words

ROOT = Path(__file__).parents[2]

SERVE = """
import mlxlab as ml
from mlxlab.server.server import Options
server = ml.serve(options=Options(token="{token}", port={port}, chunk=32))
server
"""
CHOSEN = "print('chosen', server.selected.requests.request.tolist())"


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def notebook(tmp_path: Path, port: int) -> Path:
    cells = [SERVE.format(token=TOKEN, port=port).strip(), CHOSEN]
    book = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell) for cell in cells],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    )
    folder = tmp_path / "notebooks"
    folder.mkdir()
    nbformat.write(book, folder / "live.ipynb")
    return folder / "live.ipynb"


@pytest.fixture
def lab(tmp_path: Path, notebook: Path) -> Iterator[str]:
    """Address of a JupyterLab with its own settings."""
    port = free_port()
    own = {
        "HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "OPENBLAS_NUM_THREADS": "1",
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
        "JUPYTER_DATA_DIR": str(tmp_path / "data"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
    }
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root"]
    command += [f"--ServerApp.root_dir={notebook.parent}", f"--ServerApp.port={port}"]
    command += ["--IdentityProvider.token=", "--LabApp.expose_app_in_browser=True"]
    command += ["--ServerApp.port_retries=0", "--ServerApp.disable_check_xsrf=True"]
    with (tmp_path / "lab.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=os.environ | own, stdout=log, stderr=log
        )
        try:
            until(lambda: is_open(port))
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(60)


def is_open(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def run_command(page: Page, name: str, **arguments: object) -> None:
    page.evaluate(
        "([name, given]) => window.jupyterapp.commands.execute(name, given)",
        [name, arguments],
    )


def open_notebook(page: Page, lab: str, notebook: Path) -> None:
    page.goto(f"{lab}/lab/tree/{notebook.name}")
    expect(page.locator(".jp-Notebook .jp-CodeCell")).to_have_count(2)


def saved_html(notebook: Path) -> str:
    cell = json.loads(notebook.read_text())["cells"][0]
    return "".join(
        "".join(output["data"].get("text/html", "")) for output in cell["outputs"]
    )


def start_server(page: Page, lab: str, notebook: Path) -> Locator:
    """Run the first cell and return the panel that it shows."""
    open_notebook(page, lab, notebook)
    expect(page.get_by_text("| Idle")).to_be_visible()
    page.locator(".jp-CodeCell").first.click()
    run_command(page, "notebook:run-cell")
    panel = page.locator(".mlxlab-panel")
    expect(panel.locator(".empty")).to_be_visible()
    expect(panel).to_have_count(1)
    return panel


@pytest.mark.slow
def test_requests_are_seen_chosen_and_kept(
    page: Page, lab: str, notebook: Path, port: int
) -> None:
    panel = start_server(page, lab, notebook)

    with Client(f"http://127.0.0.1:{port}") as client:
        bodies = [ask(words(3000, n), max_tokens=2) for n in range(3)]
        bodies += [ask(words(40), max_tokens=2)] * 2
        threads = [Thread(target=client.ask, args=(body,)) for body in bodies]
        for thread in threads:
            thread.start()
        # A row is there while its prompt is computed.
        expect(panel.get_by_text("% done").first).to_be_visible()
        assert any(thread.is_alive() for thread in threads)
        for thread in threads:
            thread.join()
        rows = panel.locator(".row")
        expect(rows).to_have_count(5)
        expect(panel.locator(".row.open")).to_have_count(0)

        for strategy in ("prefix", "paged"):
            panel.get_by_label("strategy").select_option(strategy)
            expect(panel.locator("header")).not_to_have_attribute("aria-busy", "true")
            assert f"(tiny, {strategy})" in client.get("/v1/models").text
            expect(panel.get_by_label("strategy")).to_have_value(strategy)
    rows.nth(1).click()
    expect(panel.locator(".detail")).to_contain_text("prefill")
    rows.nth(4).focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press(" ")
    expect(panel.get_by_text("1 selected")).to_be_visible()
    shoot(page, "lab-light")

    page.locator(".jp-CodeCell").nth(1).click()
    run_command(page, "notebook:run-cell")
    expect(page.locator(".jp-OutputArea").nth(1)).to_contain_text("chosen [4]")
    light = panel.evaluate("element => getComputedStyle(element).color")
    run_command(page, "apputils:change-theme", theme="JupyterLab Dark")
    expect(page.locator("body")).to_have_attribute("data-jp-theme-light", "false")
    assert panel.evaluate("element => getComputedStyle(element).color") != light
    expect(page.locator("#jupyterlab-splash")).to_be_hidden()
    shoot(page, "lab-dark")

    def is_kept() -> bool:
        run_command(page, "docmanager:save")
        return "#5 main" in saved_html(notebook)

    until(is_kept)
    assert TOKEN not in saved_html(notebook)
    run_command(page, "kernelmenu:shutdown")
    # A kernel that ends stops its server, and the panel may still hear of that.
    stopped = panel.get_by_role("img", name="stopped")
    gone = panel.get_by_text("Not connected: no kernel")
    expect(stopped.or_(gone).first).to_be_visible()
    page.context.clear_cookies()
    run_command(page, "docmanager:save")
    page.reload()
    expect(page.locator(".jp-CodeCell")).to_have_count(2)
    kept = page.locator(".jp-OutputArea").first
    expect(kept.get_by_text("#5 main")).to_be_visible()
    expect(page.get_by_text("| Idle")).to_be_visible()
    for text in ("Loading widget", "Error displaying widget"):
        expect(kept.get_by_text(text)).to_be_hidden()
    shoot(page, "lab-reopened")
    expect(page.locator(".mlxlab-panel")).to_have_count(0)


@pytest.mark.slow
def test_a_panel_says_that_its_kernel_was_killed(
    page: Page, lab: str, notebook: Path, tmp_path: Path
) -> None:
    panel = start_server(page, lab, notebook)
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or ())
        if "ipykernel_launcher" in command and str(tmp_path) in command:
            process.kill()
    expect(panel.get_by_text("Not connected: no kernel")).to_be_visible()
    expect(panel.locator("header")).to_contain_text("tiny")
