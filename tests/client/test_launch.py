import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mlxlab.cli import app
from mlxlab.client.discovery import Endpoint
from mlxlab.client.launch import (
    client_environment,
    environment_lines,
    find_client,
    launch,
)
from mlxlab.errors import ServerError
from mlxlab.server.agents import write_agents
from mlxlab.server.aliases import Aliases

TOKEN = "tok'very $secret"
CLIENT_S = 60


def endpoint(url: str = "http://127.0.0.1:8080", window: int = 65536) -> Endpoint:
    aliases = Aliases.load()
    aliases = replace(aliases, tiers={"haiku": "fast"})
    return aliases.endpoint(url=url, token=TOKEN, window=window)


def test_the_client_is_pointed_at_the_endpoint() -> None:
    environment = client_environment(endpoint(), {})
    assert environment == {
        "ANTHROPIC_BASE_URL": "http://127.0.0.1:8080",
        "ANTHROPIC_AUTH_TOKEN": TOKEN,
        "ANTHROPIC_MODEL": "default",
        "ANTHROPIC_DEFAULT_OPUS_MODEL": "default",
        "ANTHROPIC_DEFAULT_SONNET_MODEL": "default",
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": "fast",
        "ANTHROPIC_DEFAULT_FABLE_MODEL": "default",
        "CLAUDE_CODE_MAX_CONTEXT_TOKENS": "65536",
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": "8192",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
        "CLAUDE_CODE_ENABLE_TOKEN_USAGE_ATTACHMENT": "0",
        "CLAUDE_CODE_TOTAL_TOKENS_REMINDER": "off",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


def test_other_providers_and_credentials_are_left_out() -> None:
    base = {
        "PATH": "/bin",
        "AWS_PROFILE": "work",
        "NO_PROXY": "example.org",
        "ANTHROPIC_API_KEY": "sk-real",
        "ANTHROPIC_MODEL": "claude-opus-4-5",
        "ANTHROPIC_AUTH_TOKEN": "other",
        "ANTHROPIC_SMALL_FAST_MODEL": "claude-haiku-4-5",
        "CLAUDE_CODE_OAUTH_TOKEN": "other",
        "CLAUDE_CODE_USE_BEDROCK": "1",
        "CLAUDE_CODE_USE_VERTEX": "1",
        "CLAUDE_CODE_SUBAGENT_MODEL": "claude-haiku-4-5",
        "MLXLAB_TOKEN": "of-a-server",
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": "77",
    }
    before = dict(base)
    environment = client_environment(endpoint(), base)
    assert base == before
    assert environment == client_environment(endpoint(), {}) | {
        "PATH": "/bin",
        "AWS_PROFILE": "work",
        "NO_PROXY": "127.0.0.1,example.org",
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": "77",
    }


def test_what_the_client_changes_is_off_unless_told_otherwise() -> None:
    steady = {"CLAUDE_CODE_ATTRIBUTION_HEADER", "CLAUDE_CODE_TOTAL_TOKENS_REMINDER"}
    assert steady <= client_environment(endpoint(), {}).keys()
    assert not steady & client_environment(endpoint(), {}, steady=False).keys()
    own = {"CLAUDE_CODE_TOTAL_TOKENS_REMINDER": "countdown"}
    assert own.items() <= client_environment(endpoint(), own).items()


@pytest.mark.parametrize(("flags", "steady"), [([], True), (["--as-is"], False)])
def test_the_command_takes_a_flag_for_it(
    monkeypatch: pytest.MonkeyPatch, flags: list[str], steady: bool
) -> None:
    asked: list[object] = []
    running = endpoint()
    monkeypatch.setattr("mlxlab.client.discovery.find", lambda url: running)
    monkeypatch.setattr(
        "mlxlab.client.launch.launch", lambda *args, **more: asked.append((args, more))
    )
    done = CliRunner().invoke(app, ["claude", *flags, "-p", "Hello"])
    assert done.exit_code == 0, done.output
    assert asked == [((running, ["-p", "Hello"]), {"steady": steady})]


def test_a_large_window_leaves_answers_as_long_as_usual() -> None:
    environment = client_environment(endpoint(window=2**20), {})
    assert "CLAUDE_CODE_MAX_OUTPUT_TOKENS" not in environment


def test_lines_give_a_shell_the_same_environment() -> None:
    lines = environment_lines(endpoint())
    assert all(line.startswith("export ") for line in lines)
    script = "\n".join([*lines, "env -0"])
    for base in ({}, {"NO_PROXY": "example.org,b", "no_proxy": "c"}):
        done = subprocess.run(
            ["/bin/sh", "-c", script], env=base, capture_output=True, check=True
        )
        shell = dict(
            item.split("=", 1) for item in done.stdout.decode().split("\0") if item
        )
        expected = client_environment(endpoint(), base)
        assert {key: shell.get(key) for key in expected} == expected


def program(path: Path, code: str = "") -> Path:
    """Stands for the client."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable}\nimport json, os, sys, time, signal\n{code}\n")
    path.chmod(0o755)
    return path


def test_the_client_is_looked_for_in_order(tmp_path: Path) -> None:
    base = {"HOME": str(tmp_path), "PATH": str(tmp_path / "bin")}
    assert find_client(base) is None
    assert find_client({}) is None
    for place in (
        ".cache/mlxlab/client/node_modules/.bin/claude",
        ".claude/local/claude",
        ".local/bin/claude",
        "bin/claude",
    ):
        path = program(tmp_path / place)
        assert find_client(base) == path
    chosen = program(tmp_path / "mine")
    assert find_client(base | {"MLXLAB_CLAUDE": str(chosen)}) == chosen
    chosen.chmod(0o644)
    with pytest.raises(ServerError, match=r"MLXLAB_CLAUDE: .*mine cannot be run"):
        find_client(base | {"MLXLAB_CLAUDE": str(chosen)})


def test_a_client_that_others_may_have_written_is_not_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = {"HOME": str(tmp_path), "PATH": str(tmp_path / "bin")}
    real = program(tmp_path / ".cache/mlxlab/client/node_modules/claude/cli.js")
    client = tmp_path / ".cache/mlxlab/client/node_modules/.bin/claude"
    client.parent.mkdir()
    client.symlink_to("../claude/cli.js")  # as npm does
    assert find_client(base) == client
    assert not caplog.messages
    for path in (real, real.parent, tmp_path / ".cache"):
        before = path.stat().st_mode
        path.chmod(0o777)
        assert find_client(base) is None
        (line,) = caplog.messages
        assert line.startswith(f"{client}: others may write ")
        assert "MLXLAB_CLAUDE" in line
        assert "\n" not in line
        caplog.clear()
        # What the user has named is run.
        assert find_client(base | {"MLXLAB_CLAUDE": str(client)}) == client
        path.chmod(before)
    assert find_client(base) == client


def test_without_a_client_the_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="npm install"):
        launch(endpoint(), [], {"HOME": str(tmp_path), "PATH": str(tmp_path)})
    broken = tmp_path / "claude"
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(0o755)
    with pytest.raises(ServerError, match=r"claude: No such file"):
        launch(endpoint(), [], {"MLXLAB_CLAUDE": str(broken)})


def test_arguments_and_exit_code_pass_through(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = f"json.dump([sys.argv[1:], dict(os.environ)], open({str(out)!r}, 'w'))"
    client = program(tmp_path / "claude", f"{code}; sys.exit(7)")
    base = {"MLXLAB_CLAUDE": str(client), "ANTHROPIC_API_KEY": "sk-real"}
    assert launch(endpoint(), ["-p", "a b"], base) == 7
    (flag, settings, *arguments), environment = json.loads(out.read_text())
    assert arguments == ["-p", "a b"]
    assert environment["ANTHROPIC_AUTH_TOKEN"] == TOKEN
    assert "ANTHROPIC_API_KEY" not in environment
    assert flag == "--settings"
    assert TOKEN not in settings
    assert json.loads(settings)["env"]["ANTHROPIC_API_KEY"] == ""
    assert json.loads(settings)["env"]["ANTHROPIC_BASE_URL"] == endpoint().url


LAUNCHER = """
import os, sys
from mlxlab.client.discovery import Endpoint
from mlxlab.client.launch import launch
endpoint = Endpoint("http://127.0.0.1:1", "t", 1, ())
sys.exit(launch(endpoint, []))
"""
WAITING = """
caught = []
signal.signal(signal.SIGINT, lambda *_: caught.append("INT"))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(caught.count("INT") + 20))
print("ready", flush=True)
while not caught:
    time.sleep(0.01)
print("caught", flush=True)
time.sleep(60)
"""


def test_signals_are_the_clients_business(tmp_path: Path) -> None:
    client = program(tmp_path / "claude", WAITING)
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER],
        env=os.environ | {"MLXLAB_CLAUDE": str(client)},
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert process.stdout.readline() == "caught\n"
        assert process.poll() is None
        process.terminate()
        assert process.wait(10) == 21


def test_a_client_ended_by_a_signal(tmp_path: Path) -> None:
    kill = "os.kill(os.getpid(), signal.SIGKILL)"
    client = program(tmp_path / "claude", kill)
    before = signal.getsignal(signal.SIGINT)
    assert launch(endpoint(), [], {"MLXLAB_CLAUDE": str(client)}) == 137
    assert signal.getsignal(signal.SIGINT) is before


@dataclass
class Probe:
    """An endpoint that notes what it gets, and may have the main agent delegate."""

    url: str
    delegate: str | None = None
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def answer(self, headers: dict[str, str], body: dict[str, Any]) -> bytes:
        self.headers.append(headers)
        self.bodies.append(body)
        is_main = "x-claude-code-agent-id" not in headers
        if self.delegate and is_main and len(body["messages"]) <= 2:
            given = {
                "description": "Look around",
                "prompt": "Look around.",
                "subagent_type": self.delegate,
            }
            return stream(body["model"], "Agent", given)
        return stream(body["model"])


def stream(model: str, tool: str | None = None, given: object = None) -> bytes:
    """A streamed message: a call of ``tool``, or a word."""
    usage = {"input_tokens": 9, "output_tokens": 1}
    message: dict[str, Any] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": model,
    }
    message |= {"content": [], "stop_reason": None, "usage": usage}
    block: dict[str, Any] = {"type": "text", "text": ""}
    delta = {"type": "text_delta", "text": "Done."}
    if tool:
        block = {"type": "tool_use", "id": "toolu_1", "name": tool, "input": {}}
        delta = {"type": "input_json_delta", "partial_json": json.dumps(given)}
    stop = {"stop_reason": "tool_use" if tool else "end_turn"}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": stop, "usage": usage},
        {"type": "message_stop"},
    ]
    frames = (f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in events)
    return "".join(frames).encode()


@pytest.fixture
def probe() -> Iterator[Probe]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.reply(b"")

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if "count_tokens" in self.path:
                self.reply(b'{"input_tokens": 9}', "application/json")
                return
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.reply(made.answer(headers, body), "text/event-stream")

        def reply(self, data: bytes, kind: str = "text/plain") -> None:
            self.send_response(200)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made = Probe(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


def run_client(
    client: Path, probe: Probe, home: Path, *args: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """The real client in an empty home, started as `mlxlab claude` starts it."""
    start = (
        "import sys; from mlxlab.client.discovery import Endpoint;"
        "from mlxlab.client.launch import launch;"
        "from mlxlab.server.aliases import Aliases;"
        f"endpoint = Aliases.load().endpoint(url={probe.url!r}, token='tok-12345',"
        "window=50000); sys.exit(launch(endpoint, sys.argv[1:]))"
    )
    project = home / "project"
    project.mkdir(exist_ok=True)
    base = {"PATH": "/usr/bin:/bin", "HOME": str(home), "MLXLAB_CLAUDE": str(client)}
    base |= {"IS_SANDBOX": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        [sys.executable, "-c", start, *args],
        cwd=project,
        env=base | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=CLIENT_S,
        check=False,
    )


def test_the_real_client_comes_here_whatever_is_set_elsewhere(
    client: Path, probe: Probe, tmp_path: Path
) -> None:
    elsewhere = {"ANTHROPIC_BASE_URL": "http://127.0.0.1:9", "ANTHROPIC_MODEL": "other"}
    elsewhere |= {"ANTHROPIC_API_KEY": "sk-real", "CLAUDE_CODE_USE_BEDROCK": "1"}
    settings = tmp_path / ".claude/settings.json"
    settings.parent.mkdir()
    settings.write_text(
        json.dumps({"env": elsewhere, "model": "opus", "apiKeyHelper": "echo sk-real"})
    )
    proxy = "http://127.0.0.1:9"
    done = run_client(
        client,
        probe,
        tmp_path,
        "-p",
        "Hello",
        **elsewhere,
        HTTP_PROXY=proxy,
        http_proxy=proxy,
    )
    assert done.stdout == "Done.\n", done.stderr
    (body,), (headers,) = probe.bodies, probe.headers
    assert body["model"] == "default"
    assert body["max_tokens"] == 50000 // 8
    assert headers["authorization"] == "Bearer tok-12345"
    assert "x-api-key" not in headers
    assert "sk-real" not in json.dumps(headers)
    assert "billing-header" not in json.dumps(body["system"])


def test_the_real_client_believes_the_window(
    client: Path, probe: Probe, tmp_path: Path
) -> None:
    done = run_client(client, probe, tmp_path, "-p", "/context")
    assert "/ 50k" in done.stdout, done.stderr


@pytest.mark.parametrize("name", ["fast", "default"])
def test_the_real_client_runs_our_agents_under_their_alias(
    client: Path, probe: Probe, tmp_path: Path, name: str
) -> None:
    (tmp_path / "project").mkdir()
    write_agents(tmp_path / "project", Aliases.load())
    probe.delegate = name
    main = "think"
    done = run_client(
        client, probe, tmp_path, "-p", "Go", "--model", main, "--allowedTools", "Agent"
    )
    assert done.returncode == 0, done.stderr
    models = {
        "x-claude-code-agent-id" in headers: body["model"]
        for headers, body in zip(probe.headers, probe.bodies, strict=True)
    }
    assert models == {False: main, True: name}
