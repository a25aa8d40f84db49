"""Starts Claude Code on an endpoint, through its environment and one argument.

Writes no settings file: what points a client elsewhere must end with the client. Knows
an endpoint by what it published, not the server behind it.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

from mlxlab.client.discovery import DEFAULT, TOKEN_VARIABLE, Endpoint
from mlxlab.errors import ServerError
from mlxlab.ownership import require_own

__all__ = [
    "Environment",
    "client_environment",
    "environment_lines",
    "find_client",
    "launch",
]

log = logging.getLogger(__name__)

#: Where installers put the client when they do not put it on PATH, below home.
_PLACES = (
    ".local/bin/claude",
    ".claude/local/claude",
    ".cache/mlxlab/client/node_modules/.bin/claude",
)
#: Another provider, another credential, or models that the endpoint may not know.
_FOREIGN = (
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_CUSTOM_HEADERS",
    "ANTHROPIC_DEFAULT_MODEL",
    "ANTHROPIC_SMALL_FAST_MODEL",
    "ANTHROPIC_UNIX_SOCKET",
    "CLAUDE_CODE_API_BASE_URL",
    "CLAUDE_CODE_OAUTH_TOKEN",
    "CLAUDE_CODE_PROVIDER_MANAGED_BY_HOST",
    "CLAUDE_CODE_SUBAGENT_MODEL",
    "CLAUDE_CODE_SUBAGENT_MODEL_FORCE",
    "CLAUDE_CODE_USE_ANTHROPIC_AWS",
    "CLAUDE_CODE_USE_ANTHROPIC_GOOGLE_CLOUD",
    "CLAUDE_CODE_USE_BEDROCK",
    "CLAUDE_CODE_USE_FOUNDRY",
    "CLAUDE_CODE_USE_GATEWAY",
    "CLAUDE_CODE_USE_MANTLE",
    "CLAUDE_CODE_USE_VERTEX",
)
_NO_PROXY = ("NO_PROXY", "no_proxy")
_TOKEN = "ANTHROPIC_AUTH_TOKEN"
#: Tokens that the client asks for by itself, at most.
_USUAL_OUTPUT = 32_000


class Environment(dict[str, str]):
    """Environment variables, shown without the token: notebooks keep what is shown."""

    def __repr__(self) -> str:
        return repr({**self, _TOKEN: "…"})


def client_environment(endpoint: Endpoint, base: Mapping[str, str]) -> Environment:
    """A process environment in which Claude Code talks to an endpoint.

    Args:
        endpoint: where requests are to go.
        base: the environment to start from; what would send requests or credentials
            elsewhere is left out.
    """
    host = _host(endpoint)
    # The server's own variable: the client gets the token under its own name.
    left_out = {*_FOREIGN, TOKEN_VARIABLE}
    kept = {key: base[key] for key in base if key not in left_out}
    direct = {key: ",".join(filter(None, [host, base.get(key)])) for key in _NO_PROXY}
    ours = _variables(endpoint) | {_TOKEN: endpoint.token}
    return Environment(_proposals(endpoint) | kept | ours | direct)


def environment_lines(endpoint: Endpoint, *, token: bool = True) -> list[str]:
    """The same for a shell: lines that export our variables and leave the others.

    Args:
        endpoint: where requests are to go.
        token: whether the token is among them.
    """
    ours = _variables(endpoint) | ({_TOKEN: endpoint.token} if token else {})
    variables = ours | _proposals(endpoint)
    host = _host(endpoint)
    return [
        *(f"export {key}={shlex.quote(value)}" for key, value in variables.items()),
        *(f'export {key}="{host}${{{key}:+,${key}}}"' for key in _NO_PROXY),
    ]


def find_client(base: Mapping[str, str] = os.environ) -> Path | None:
    """Where Claude Code is installed; None if it is not.

    Args:
        base: environment variables: ``MLXLAB_CLAUDE`` names it, else it is looked for
            on ``PATH`` and where installers put it, there only if other users cannot
            have written it.

    Raises:
        ServerError: ``MLXLAB_CLAUDE`` names nothing that can be run.
    """
    named, path = base.get("MLXLAB_CLAUDE"), base.get("PATH", "")
    if named and not shutil.which(named, path=path):
        raise ServerError(f"MLXLAB_CLAUDE: {named} cannot be run; name the client")
    home = Path(base.get("HOME", "/"))
    if found := shutil.which(named or "claude", path=path):
        return Path(found)
    places = (home / place for place in _PLACES)
    return next((p for p in places if shutil.which(p) and _is_trusted(p)), None)


def _is_trusted(client: Path) -> bool:
    """Whether it may be run although the user has named it nowhere."""
    try:
        require_own(client)
    except OSError as error:
        log.warning("%s; not run, name it in MLXLAB_CLAUDE if it is yours", error)
        return False
    return True


def launch(
    endpoint: Endpoint, args: Sequence[str], base: Mapping[str, str] = os.environ
) -> int:
    """Run Claude Code in this terminal until it ends; from the main thread only.

    Args:
        endpoint: where its requests go.
        args: its own arguments.
        base: environment variables to start from.

    Returns:
        Its exit code, 128 and the signal if one ended it.

    Raises:
        ServerError: the client is not installed, or cannot be run.
    """
    client = find_client(base)
    if client is None:
        raise ServerError(
            "Claude Code is not installed; npm install -g @anthropic-ai/claude-code, "
            "or name it in MLXLAB_CLAUDE"
        )
    command = [str(client), "--settings", _settings(endpoint), *args]
    try:
        process = subprocess.Popen(command, env=client_environment(endpoint, base))
    except OSError as error:
        raise ServerError(f"{client}: {error.strerror}; install it again") from None
    with _signals_for(process):
        code = process.wait()
    return code if code >= 0 else 128 - code


def _variables(endpoint: Endpoint) -> dict[str, str]:
    """What we set, less the token."""
    tiers = {
        f"ANTHROPIC_DEFAULT_{tier.upper()}_MODEL": name
        for tier, name in endpoint.tiers.items()
    }
    return {
        "ANTHROPIC_BASE_URL": endpoint.url,
        "ANTHROPIC_MODEL": DEFAULT,
        **tiers,
        "CLAUDE_CODE_MAX_CONTEXT_TOKENS": str(endpoint.window),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }


def _proposals(endpoint: Endpoint) -> dict[str, str]:
    """What we set where the user has not.

    The client keeps room for its longest answer free, which of a small window leaves
    too little: it would compact without end.
    """
    output = max(endpoint.window // 8, 1)
    if output >= _USUAL_OUTPUT:
        return {}
    return {"CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(output)}


def _settings(endpoint: Endpoint) -> str:
    """The same as a command-line argument, because settings files beat environments.

    Without the token: other users can read arguments.
    """
    variables = dict.fromkeys(_FOREIGN, "") | _variables(endpoint)
    return json.dumps({"env": variables, "apiKeyHelper": ""})


def _host(endpoint: Endpoint) -> str:
    return urlsplit(endpoint.url).hostname or ""


@contextmanager
def _signals_for(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Let signals be the client's business: it decides what ends it."""

    def leave(number: int, frame: FrameType | None) -> None:
        """The terminal sends Ctrl-C to the client as well."""

    def forward(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    handlers = {
        signal.SIGINT: leave,
        signal.SIGTERM: forward,
        signal.SIGHUP: forward,
    }
    before = {kind: signal.signal(kind, handlers[kind]) for kind in handlers}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
