"""Starts Claude Code on an endpoint, through its environment and one argument.

No settings file is written, because the redirection must end with the client.
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

#: Paths below the home folder where installers put the client when not on PATH.
_PLACES = (
    ".local/bin/claude",
    ".claude/local/claude",
    ".cache/mlxlab/client/node_modules/.bin/claude",
)
#: Variables that name another provider, another credential, or foreign models.
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
#: Switches off what the client would add to prompts and change from session to session:
#: the billing header, and reminders of the tokens left.
_STEADY = {
    "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
    "CLAUDE_CODE_ENABLE_TOKEN_USAGE_ATTACHMENT": "0",
    "CLAUDE_CODE_TOTAL_TOKENS_REMINDER": "off",
}
#: Most tokens that the client asks for by default.
_USUAL_OUTPUT = 32_000


class Environment(dict[str, str]):
    """Environment variables, shown without the token: notebooks save their output."""

    def __repr__(self) -> str:
        return repr({**self, _TOKEN: "…"})


def client_environment(
    endpoint: Endpoint, base: Mapping[str, str], *, steady: bool = True
) -> Environment:
    """Return a process environment in which Claude Code talks to an endpoint.

    Args:
        endpoint: receives the requests.
        base: the environment to start from. Variables that would send requests or
            credentials elsewhere are left out.
        steady: whether to switch off what the client changes from session to session,
            as far as ``base`` does not say.
    """
    host = _host(endpoint)
    # The token has the server's name in ``base``, and the client's name in the result.
    left_out = {*_FOREIGN, TOKEN_VARIABLE}
    kept = {key: base[key] for key in base if key not in left_out}
    direct = {key: ",".join(filter(None, [host, base.get(key)])) for key in _NO_PROXY}
    ours = _variables(endpoint) | {_TOKEN: endpoint.token}
    return Environment(_proposals(endpoint, steady=steady) | kept | ours | direct)


def environment_lines(endpoint: Endpoint, *, token: bool = True) -> list[str]:
    """Return shell lines that export an endpoint's variables and leave all others.

    Args:
        endpoint: receives the requests.
        token: whether to export the token too.
    """
    ours = _variables(endpoint) | ({_TOKEN: endpoint.token} if token else {})
    variables = ours | _proposals(endpoint)
    host = _host(endpoint)
    return [
        *(f"export {key}={shlex.quote(value)}" for key, value in variables.items()),
        *(f'export {key}="{host}${{{key}:+,${key}}}"' for key in _NO_PROXY),
    ]


def find_client(base: Mapping[str, str] = os.environ) -> Path | None:
    """Return the path of Claude Code; None if it is not installed.

    Args:
        base: environment variables. ``MLXLAB_CLAUDE`` names the client. Without it,
            the client is looked for on ``PATH``, then where installers put it. The
            latter counts only if other users cannot have written it.

    Raises:
        ServerError: ``MLXLAB_CLAUDE`` names a file that cannot be run.
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
    """Return whether a client that the user did not name may be run."""
    try:
        require_own(client)
    except OSError as error:
        log.warning("%s; not run; name it in MLXLAB_CLAUDE if it is yours", error)
        return False
    return True


def launch(
    endpoint: Endpoint,
    args: Sequence[str],
    base: Mapping[str, str] = os.environ,
    *,
    steady: bool = True,
) -> int:
    """Run Claude Code in this terminal until it ends; from the main thread only.

    Args:
        endpoint: receives the client's requests.
        args: arguments of the client.
        base: environment variables to start from.
        steady: see :func:`client_environment`.

    Returns:
        The client's exit code, or 128 plus the number of the signal that ended it.

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
        environment = client_environment(endpoint, base, steady=steady)
        process = subprocess.Popen(command, env=environment)
    except OSError as error:
        raise ServerError(f"{client}: {error.strerror}; install it again") from None
    with _signals_for(process):
        code = process.wait()
    return code if code >= 0 else 128 - code


def _variables(endpoint: Endpoint) -> dict[str, str]:
    """Return the variables that mlxlab sets, without the token."""
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


def _proposals(endpoint: Endpoint, *, steady: bool = True) -> dict[str, str]:
    """Return the variables that mlxlab sets unless the user has.

    The client reserves room for its longest answer. In a small window too little would
    be left, and the client would compact without end.
    """
    output = max(endpoint.window // 8, 1)
    small = output < _USUAL_OUTPUT
    return {
        **({"CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(output)} if small else {}),
        **(_STEADY if steady else {}),
    }


def _settings(endpoint: Endpoint) -> str:
    """Return the variables as a command-line argument, which beats settings files.

    The token is left out, because other users can read arguments.
    """
    variables = dict.fromkeys(_FOREIGN, "") | _variables(endpoint)
    return json.dumps({"env": variables, "apiKeyHelper": ""})


def _host(endpoint: Endpoint) -> str:
    return urlsplit(endpoint.url).hostname or ""


@contextmanager
def _signals_for(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Forward signals to the client, which decides when it ends."""

    def leave(number: int, frame: FrameType | None) -> None:
        """Ignore Ctrl-C; the terminal sends it to the client as well."""

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
