"""``%serve`` in a shell: start, change, record, stop; and in a real kernel."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from jupyter_client.manager import start_new_kernel

from mlxlab.server.endpoint import running
from mlxlab.server.server import Server, Status

TOKEN = "token-for-tests"


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()
    shell.run_line_magic("load_ext", "mlxlab")
    yield shell
    shell.run_line_magic("unload_ext", "mlxlab")
    InteractiveShell.clear_instance()


def serve(shell: Any, line: str = "") -> Any:
    return shell.run_line_magic("serve", line)


def ask(server: Server, **changes: Any) -> httpx.Response:
    body = {"model": "claude-x", "max_tokens": 2} | changes
    body.setdefault("messages", [{"role": "user", "content": "Hello there"}])
    return httpx.post(
        f"{server.url}/v1/messages",
        json=body,
        headers={"x-api-key": server.token},
        timeout=60,
    )


def test_a_server_is_started_shown_and_stopped(shell: Any) -> None:
    server = serve(shell, f"--token {TOKEN}")
    assert isinstance(server, Server)
    assert repr(server) == "Server(tiny, paged)"
    assert TOKEN in server._repr_html_()
    assert ask(server).status_code == 200
    assert [endpoint.url for endpoint in running()] == [server.url]
    assert serve(shell) is server
    assert serve(shell, f"--token {TOKEN}") is server
    status = serve(shell, "--status")
    assert isinstance(status, Status)
    assert ": 1 requests, 0.0% of" in repr(status)
    assert "max_tokens" in status._repr_html_()
    assert serve(shell, "--stop") is None
    assert serve(shell, "--stop") is None
    assert not server.is_running
    assert running() == []
    with pytest.raises(httpx.ConnectError):
        ask(server)


def test_strategy_and_rules_change_under_a_client(shell: Any) -> None:
    server = serve(shell)
    url = server.url
    assert serve(shell, "--strategy prefix --rules none") is server
    assert (server.url, repr(server)) == (url, "Server(tiny, prefix)")
    assert ask(server).status_code == 200
    assert server.requests.strategy.tolist() == ["prefix"]


def test_what_clients_send_is_recorded(shell: Any, tmp_path: Path) -> None:
    file = tmp_path / "live.jsonl"
    server = serve(shell)
    ask(server)
    serve(shell, f"--record {file}")
    serve(shell, f"--record {file}")
    ask(server)
    assert server.trace == file
    serve(shell, "--stop")
    from mlxlab import load_trace

    assert len(load_trace(file).inference) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--strategy nope", "no strategy 'nope'; choose from none, prefix"),
        ("--model /nowhere", "unknown model '/nowhere'"),
        ("--rules nope", "unknown rule 'nope'"),
        ("--token short", "token: give at least 8"),
        ("--status", "nothing is served; start with %serve"),
        ("--nope", "unrecognized arguments: --nope"),
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
    assert "--strategy" in said


def test_reloading_stops_the_server(shell: Any) -> None:
    server = serve(shell)
    shell.run_line_magic("reload_ext", "mlxlab")
    assert not server.is_running
    assert serve(shell) is not server


def test_cells_stay_usable_and_the_kernel_ends(tmp_path: Path) -> None:
    kernel: Any = start_new_kernel(env={"HOME": str(tmp_path), "PATH": "/usr/bin"})
    manager, client = kernel
    run = partial(client.execute_interactive, timeout=60)
    try:
        run("%load_ext mlxlab\nserver = %serve")
        run(
            "import threading, httpx\n"
            "body = {'model': 'default', 'max_tokens': 1500,\n"
            "        'messages': [{'role': 'user', 'content': 'Hello'}]}\n"
            "thread = threading.Thread(target=lambda: httpx.post(\n"
            "    server.url + '/v1/messages', json=body, timeout=60,\n"
            "    headers={'x-api-key': server.token}), daemon=True)\n"
            "thread.start()"
        )
        said: list[str] = []
        client.execute_interactive(
            "print(thread.is_alive(), 6 * 7)",
            timeout=10,
            output_hook=lambda m: said.append(m["content"].get("text", "")),
        )
        assert "True 42" in "".join(said)
        begun = time.monotonic()
        client.shutdown()
        while manager.is_alive() and time.monotonic() - begun < 10:
            time.sleep(0.05)
        assert not manager.is_alive()
        assert time.monotonic() - begun < 5
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
