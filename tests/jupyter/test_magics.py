"""``%serve`` in a shell: start, change, record, stop; and in a real kernel."""

from __future__ import annotations

import json
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import nbformat
import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient

from mlxlab.client.discovery import running
from mlxlab.server.server import Server, Status
from mlxlab.traces import load_trace
from tests.support.endpoint import copy_tiny

TOKEN = "token-for-tests"
PATIENCE_S = 60.0


def serve(shell: Any, line: str = "") -> Any:
    return shell.run_line_magic("serve", line)


def ask(server: Server, **changes: Any) -> httpx.Response:
    body = {"model": "claude-x", "max_tokens": 2} | changes
    body.setdefault("messages", [{"role": "user", "content": "Hello there"}])
    return httpx.post(
        f"{server.url}/v1/messages",
        json=body,
        headers={"x-api-key": server.token},
        timeout=PATIENCE_S,
    )


def test_a_server_is_started_shown_and_stopped(shell: Any) -> None:
    server = serve(shell, f"--token {TOKEN}")
    assert isinstance(server, Server)
    assert repr(server) == "Server(tiny, paged)"
    assert TOKEN not in server._repr_html_()
    assert ask(server).status_code == 200
    assert [endpoint.url for endpoint in running()] == [server.url]
    assert serve(shell) is server
    assert serve(shell, f"--token {TOKEN}") is server
    status = serve(shell, "--status")
    assert isinstance(status, Status)
    assert ": 1 requests, 0.0% of" in repr(status)
    assert "ttft_s" in status._repr_html_()
    assert serve(shell, "--stop") is None
    assert serve(shell, "--stop") is None
    assert not server.is_running
    assert running() == []
    with pytest.raises(httpx.ConnectError):
        ask(server)


def test_aliases_are_added_to_those_there_are(shell: Any) -> None:
    line = "--alias qwen3-coder-30b=tiny --alias fast=tiny"
    server = serve(shell, line)
    assert server.aliases.names()[-1] == "qwen3-coder-30b"
    assert ask(server, model="qwen3-coder-30b").status_code == 200
    assert ask(server, model="qwen").status_code == 404
    assert serve(shell, line) is server
    with pytest.raises(UsageError, match="--alias cannot change while"):
        serve(shell, "--alias qwen=tiny")


def test_a_token_comes_from_a_file_or_the_environment(
    shell: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.touch(0o600)
    file.write_text("from-the-file\n")
    monkeypatch.setenv("MLXLAB_TOKEN", "from-the-environment")
    server = serve(shell)
    assert server.token == "from-the-environment"
    assert ask(server).status_code == 200
    assert serve(shell) is server
    with pytest.raises(UsageError, match="--token cannot change while"):
        serve(shell, f"--token-file {file}")
    serve(shell, "--stop")
    server = serve(shell, f"--token-file {file}")
    assert server.token == "from-the-file"
    assert serve(shell, f"--token-file {file}") is server
    serve(shell, "--stop")
    assert serve(shell, "--token sk-1").token == "sk-1"


def test_what_is_given_again_is_no_change(shell: Any, tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    script.write_text(
        '{"conversations": [], "otherwise": [{"type": "text", "text": "."}]}'
    )
    server = serve(shell, f"--script {script} --memory 512MiB")
    port = server.endpoint.port
    again = f"--script {script} --memory 512MiB --port {port} --token {server.token}"
    assert serve(shell, again) is server
    assert ask(server).json()["content"] == [{"type": "text", "text": "."}]
    assert serve(shell, "--port 0") is server


def test_a_server_that_was_stopped_is_replaced(shell: Any) -> None:
    first = serve(shell)
    port = first.endpoint.port
    first.stop()
    assert serve(shell, "--status").server.endswith("stopped)")
    second = serve(shell, f"--port {port}")
    assert second is not first
    assert second.endpoint.port == port
    assert ask(second).status_code == 200


def restarted(shell: Any) -> Any:
    """Another shell, as after a restart of the kernel."""
    shell.run_line_magic("unload_ext", "mlxlab")
    InteractiveShell.clear_instance()
    fresh = InteractiveShell.instance()
    fresh.run_line_magic("load_ext", "mlxlab")
    return fresh


def test_port_and_token_outlive_the_kernel(
    shell: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = serve(shell).endpoint
    shell = restarted(shell)
    after = serve(shell).endpoint
    assert (after.url, after.token) == (before.url, before.token)
    serve(shell, "--stop")
    assert serve(shell).endpoint.url == before.url
    assert capsys.readouterr() == ("", "")
    (file,) = tmp_path.glob(".cache/mlxlab/addresses/*")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_what_is_given_wins_and_is_kept(shell: Any) -> None:
    first = serve(shell).endpoint
    serve(shell, "--stop")
    second = serve(shell, f"--token {TOKEN}").endpoint
    assert (second.port, second.token) == (first.port, TOKEN)
    serve(shell, "--stop")
    with socket.socket() as held:
        held.bind(("127.0.0.1", first.port))
        third = serve(shell, "--port 0").endpoint
    assert (third.port != first.port, third.token) == (True, TOKEN)
    serve(shell, "--stop")
    assert serve(shell).endpoint.port == third.port


def test_a_notebook_does_not_take_what_another_serves(
    shell: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    before = serve(shell).endpoint
    serve(shell, "--stop")
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", before.port))
        other.listen()
        with pytest.raises(UsageError, match="give a free port"):
            serve(shell, f"--port {before.port}")
        assert capsys.readouterr().out == ""
        moved = serve(shell).endpoint
        line = f"port {before.port} is in use; a free one is taken this time\n"
        assert capsys.readouterr().out == line
        assert moved.port != before.port
        assert moved.token == before.token
    serve(shell, "--stop")
    assert serve(shell).endpoint.url == before.url


def test_each_notebook_has_its_own_address(
    shell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = serve(shell).endpoint
    monkeypatch.setenv("JPY_SESSION_NAME", "/home/me/other.ipynb")
    shell = restarted(shell)
    second = serve(shell).endpoint
    assert second.token != first.token
    monkeypatch.delenv("JPY_SESSION_NAME")
    shell = restarted(shell)
    assert serve(shell).endpoint.url == first.url


def test_an_address_that_others_may_know_is_replaced(
    shell: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = serve(shell).endpoint
    serve(shell, "--stop")
    (file,) = tmp_path.glob(".cache/mlxlab/addresses/*")
    file.chmod(0o644)
    after = serve(shell).endpoint
    assert after.token != before.token
    assert "others may read or write it; a new port" in capsys.readouterr().out
    serve(shell, "--stop")
    assert serve(shell).endpoint.url == after.url
    serve(shell, "--stop")
    file.write_text('{"port": 99999999}')
    assert serve(shell).endpoint.token != after.token
    assert "no address; a new port" in capsys.readouterr().out


def test_an_address_that_cannot_be_kept_is_served(
    shell: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".cache/mlxlab").mkdir(parents=True)
    (tmp_path / ".cache/mlxlab/addresses").touch()
    assert ask(serve(shell)).status_code == 200
    assert "the next start has a new address" in capsys.readouterr().out


def test_the_model_changes_under_a_client(shell: Any, tmp_path: Path) -> None:
    name = copy_tiny(tmp_path / "other model")
    server = serve(shell)
    assert serve(shell, f'--model "{name}"') is server
    assert ask(server).status_code == 200
    assert server.requests.model.tolist() == [name]


def test_a_line_is_read_as_a_shell_reads_it(shell: Any, tmp_path: Path) -> None:
    server = serve(
        shell, '--record "~/a b.jsonl" --rules -plain-content  # that\'s all'
    )
    assert server.trace == tmp_path / "a b.jsonl"
    assert server.aliases.default.rules == "-plain-content"
    assert serve(shell, "# nothing") is server


def test_strategy_and_rules_change_under_a_client(shell: Any) -> None:
    server = serve(shell)
    url = server.url
    assert serve(shell, "--strategy prefix --rules none") is server
    assert (server.url, repr(server)) == (url, "Server(tiny, prefix)")
    assert ask(server).status_code == 200
    assert server.requests.strategy.tolist() == ["prefix"]


@pytest.mark.usefixtures("measured")
def test_what_was_measured_for_an_approximate_strategy_is_printed(
    shell: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Printed, as a cell need not end with the handle."""
    command = "mlxlab fidelity TRACE --model tiny --strategies suffix"
    server = serve(shell, "--strategy paged")
    assert capsys.readouterr().out == ""
    serve(shell, "--strategy suffix")
    assert capsys.readouterr().out.splitlines() == server.notices
    assert server.notices[-1] == command
    assert command in server._repr_html_()
    serve(shell)
    assert capsys.readouterr().out == ""
    serve(shell, "--strategy prefix")
    serve(shell, "--stop")
    assert capsys.readouterr().out == ""
    serve(shell, "--strategy suffix")
    assert command in capsys.readouterr().out


def test_what_clients_send_is_recorded(shell: Any, tmp_path: Path) -> None:
    file = tmp_path / "live.jsonl"
    server = serve(shell)
    ask(server)
    serve(shell, f"--record {file}")
    serve(shell, f"--record {file}")
    ask(server)
    assert server.trace == file
    serve(shell, "--no-record")
    ask(server)
    assert server.trace is None
    assert len(load_trace(file).inference) == 1


def test_a_relative_path_is_meant_where_it_was_given(
    shell: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server = serve(shell, "--record live.jsonl")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    serve(shell, "--record live.jsonl")
    assert server.trace == tmp_path / "below/live.jsonl"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--strategy nope", "no strategy 'nope'; choose from none, prefix"),
        ("--model /nowhere", "unknown model '/nowhere'"),
        ("--rules nope", "unknown rule 'nope'"),
        ("--token kürzer", "token: give at least 8"),
        ("--token-file /nowhere", "/nowhere: No such file"),
        ("--token a --token-file b", "--token and --token-file exclude each other"),
        ("--status", "nothing is served; start with %serve"),
        ("--nope", "unrecognized arguments: --nope"),
        ("--port x", "argument --port: invalid int value: 'x'"),
        ("--port 99999", "give a free port"),
        (
            "--memory nan",
            "argument --memory: 'nan': give a size with its unit, such as 16GiB",
        ),
        ("--memory 0", "argument --memory: '0': give a size with its unit"),
        ("--memory inf", "argument --memory: 'inf': give a size with its unit"),
        ("--script /nowhere.json", "/nowhere.json: No such file"),
        ("--aliases /nowhere.json", "/nowhere.json: No such file"),
        ("--record /nowhere/x.jsonl", "/nowhere/x.jsonl: No such file"),
        ("--record 'a b", "No closing quotation: --record 'a b"),
        ("--alias fast", "--alias 'fast': give NAME=MODEL"),
        ("--alias a/b=tiny", "alias 'a/b': give a name of letters"),
        ("--stop --status", "--stop takes no other option"),
        ("--status --strategy paged", "--status takes no other option"),
    ],
)
def test_bad_input_is_one_line(shell: Any, line: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        serve(shell, line)
    assert message in str(error.value)
    assert "\n" not in str(error.value).strip()
    assert running() == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--strategy nope", "no strategy 'nope'"),
        ("--port 1", "--port cannot change while"),
        ("--token another-token", "--token cannot change while"),
        ("--record /nowhere/x.jsonl", "/nowhere/x.jsonl: No such file"),
    ],
)
def test_what_cannot_change_leaves_the_server_as_it_was(
    shell: Any, line: str, message: str
) -> None:
    server = serve(shell)
    with pytest.raises(UsageError, match=message):
        serve(shell, line)
    assert repr(server) == "Server(tiny, paged)"
    assert ask(server).status_code == 200


def test_help_explains(shell: Any, capsys: pytest.CaptureFixture[str]) -> None:
    shell.run_cell("%serve?")
    said = capsys.readouterr().out
    assert "Serve the Messages API from this notebook" in said
    assert "\n  --strategy SPEC  name[:key=value,...]" in said
    assert all(len(line) <= 88 for line in said.splitlines() if "File:" not in line)


def test_reloading_stops_the_server(shell: Any) -> None:
    server = serve(shell)
    shell.run_line_magic("reload_ext", "mlxlab")
    assert not server.is_running
    assert serve(shell) is not server


def test_after_unloading_there_is_no_magic(shell: Any) -> None:
    server = serve(shell)
    shell.run_line_magic("unload_ext", "mlxlab")
    assert not server.is_running
    with pytest.raises(UsageError, match="`%serve` not found"):
        serve(shell)
    shell.run_line_magic("load_ext", "mlxlab")
    assert serve(shell).is_running


# In a kernel


class Kernel:
    """A kernel of its own, and what its cells print."""

    def __init__(self, home: Path) -> None:
        environment = {"HOME": str(home), "PATH": "/usr/bin"}
        self.manager, self.client = start_new_kernel(env=environment)

    def run(self, code: str) -> str:
        """Execute a cell; what it wrote, an error's name included."""
        said: list[str] = []

        def hear(message: dict[str, Any]) -> None:
            content = message["content"]
            said.append(content.get("text") or content.get("ename") or "")

        self.client.execute_interactive(code, timeout=PATIENCE_S, output_hook=hear)
        return "".join(said)

    def end(self) -> float:
        """Shut it down as a user does; the seconds until the process has gone."""
        begun = time.monotonic()
        self.client.shutdown()
        while self.manager.is_alive() and time.monotonic() - begun < PATIENCE_S:
            time.sleep(0.02)
        return time.monotonic() - begun


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    kernel = Kernel(tmp_path)
    try:
        yield kernel
    finally:
        kernel.client.stop_channels()
        kernel.manager.shutdown_kernel(now=True)


@contextmanager
def answering(url: str, token: str) -> Iterator[None]:
    """While a client hears an answer that takes long to end."""
    body = {
        "model": "default",
        "max_tokens": 100_000,
        "stream": True,
        "messages": [{"role": "user", "content": "Count."}],
    }
    headers = {"x-api-key": token}
    with httpx.stream(
        "POST", f"{url}/v1/messages", json=body, headers=headers, timeout=PATIENCE_S
    ) as answer:
        lines = answer.iter_lines()  # dropping it would hang up
        assert any("text_delta" in line for line in lines)
        yield


def test_cells_stay_usable_and_the_kernel_ends(kernel: Kernel, tmp_path: Path) -> None:
    numbers = {"type": "text", "text": " ".join(map(str, range(10_000)))}
    script = tmp_path / "script.json"
    script.write_text(json.dumps({"conversations": [], "otherwise": [numbers]}))
    assert kernel.run("%load_ext mlxlab") == ""
    assert kernel.run(f"server = %serve --script {script}") == ""
    url, token = kernel.run("print(server.url, server.token)").split()
    with answering(url, token):
        # Not a line of the server's own among what the cell prints.
        assert kernel.run("print(6 * 7, len(server.requests))") == "42 0\n"
        assert kernel.run("%serve --strategy prefix\nprint(server)") == (
            "Server(tiny, prefix)\n"
        )
        assert kernel.end() < 5
    assert not list(tmp_path.glob(".cache/mlxlab/endpoints/*"))


CELLS = """%load_ext mlxlab
---
%serve
---
server = %serve --strategy prefix
print(server, server.url, server.endpoint, server.aliases, server.requests)
server
---
%serve --status
---
server.environment
---
server.endpoint
---
server.status()
---
%serve --port 1
---
%serve --token short
---
with open("address", "w") as file:
    print(server.url, server.token, file=file)"""


def run_notebook(folder: Path) -> tuple[str, str, str]:
    """The notebook after a run, and the URL and token that it served at."""
    cells = [nbformat.v4.new_code_cell(cell) for cell in CELLS.split("\n---\n")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, resources=resources, allow_errors=True)
    client.execute()
    url, token = (folder / "address").read_text().split()
    return nbformat.writes(notebook), url, token


def test_no_token_stands_in_a_saved_notebook_that_keeps_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    saved, url, token = run_notebook(tmp_path)
    assert len(token) > 20
    assert token not in saved
    assert url in saved
    assert "ANTHROPIC_BASE_URL" in saved
    assert "cannot change while" in saved
    (tmp_path / "address").unlink()
    again, *address = run_notebook(tmp_path)
    assert address == [url, token]
    assert token not in again


def test_an_interrupt_ends_the_cell_and_not_the_server(kernel: Kernel) -> None:
    kernel.run("%load_ext mlxlab\nserver = %serve")
    # Ctrl-C as the user's button sends it, while a cell runs.
    interrupt = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
    waiting = f"{interrupt}\nimport time\ntime.sleep(60)"
    assert "KeyboardInterrupt" in kernel.run(waiting)
    assert kernel.run("print(server.is_running)") == "True\n"
    assert kernel.run("%serve --stop\nprint(server)") == (
        "Server(tiny, paged, stopped)\n"
    )
