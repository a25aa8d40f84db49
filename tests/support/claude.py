"""The real Claude Code on a server of ours, and the evidence that it leaves.

Scenarios are up to the tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from data.record import TOOLS
from mlxlab.analysis.compare import compare
from mlxlab.models.folder import BUNDLED, find_model
from mlxlab.prompt import common_prefix
from mlxlab.rendering.renderer import Renderer
from mlxlab.replay.requests import RenderedRequest, render_trace
from mlxlab.server.server import Server
from mlxlab.traces import Exchange, Trace, read_trace

__all__ = ["Evidence", "Workplace", "simulated"]

CLIENT_S = 120
#: The client logs this for any model that is not its publisher's.
REMARK = "[claude-code:unrecognized_model]"


@dataclass(frozen=True, slots=True)
class Workplace:
    """An empty home and a project, in which the client does its tasks."""

    client: Path
    home: Path
    project: Path

    def ask(self, server: Server, prompt: str, *arguments: str) -> str:
        """Start the client as a user does; return its last message."""
        command = [sys.executable, "-m", "mlxlab", "claude", "--url", server.url]
        flags = ["--output-format", "json", "--allowedTools", TOOLS]
        done = subprocess.run(
            [*command, "--", "-p", prompt, *arguments, *flags],
            cwd=self.project,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CLIENT_S,
            check=False,
        )
        complaints = [x for x in done.stderr.splitlines() if not x.startswith(REMARK)]
        assert (done.returncode, complaints) == (0, []), done.stdout
        said = json.loads(done.stdout)
        assert not said["is_error"], said
        assert said["permission_denials"] == []
        return str(said["result"])

    @property
    def environment(self) -> dict[str, str]:
        """The user's environment; the launcher adds its own variables."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "MLXLAB_CLAUDE": str(self.client),
            "PYTHONDONTWRITEBYTECODE": "1",
            "CLAUDE_CODE_TMPDIR": str(self.home),
            "IS_SANDBOX": "1",
        }


@dataclass(frozen=True, slots=True)
class Evidence:
    """A server's records and counts.

    Attributes:
        rendered: the trace's inference requests, rendered.
        requests: the server's requests, in order of arrival.
    """

    trace: Trace
    rendered: list[RenderedRequest]
    requests: pd.DataFrame

    @classmethod
    def of(cls, path: Path, server: Server) -> Evidence:
        """Read the records of a stopped server, whose trace is complete."""
        trace = read_trace(path)
        model = find_model(server.aliases.default.model)
        rendered = render_trace(trace, Renderer(model))
        return cls(trace, rendered, server.requests.sort_values("t"))

    @property
    def failures(self) -> list[tuple[str, int | None]]:
        """Return path and status of each request without a complete answer."""
        return [
            (exchange.path, exchange.response.status if exchange.response else None)
            for exchange in self.trace
            if not _is_answered(exchange)
        ]

    @property
    def repeated(self) -> list[str]:
        """Return sessions and agents that sent a prompt more than once, in any form."""
        sent = Counter((s.session, s.prompt.tokens.tobytes()) for s in self.rendered)
        return [session for (session, _), times in sent.items() if times > 1]

    @property
    def diversions(self) -> list[tuple[int, int]]:
        """Return pairs of successive requests that do not extend each other id for id.

        The second request should continue the first and its answer.
        """
        latest: dict[str, RenderedRequest] = {}
        found = []
        for request in self.rendered:
            before = latest.get(request.session)
            if before and not _extends(request, before):
                found.append((before.id, request.id))
            latest[request.session] = request
        return found

    @property
    def prompt_lengths(self) -> list[int]:
        """Recount the prompt tokens of each request."""
        return [len(request.prompt) for request in self.rendered]

    @property
    def prompts(self) -> list[int]:
        """Return each request's prompt tokens as reported: the sum of its usage."""
        kinds = ("input", "cache_creation_input", "cache_read_input")
        return [sum(u[f"{kind}_tokens"] for kind in kinds) for u in self._usage()]

    @property
    def reused(self) -> list[int]:
        """Return each request's reused tokens as reported to the client."""
        return [usage["cache_read_input_tokens"] for usage in self._usage()]

    def _usage(self) -> Iterator[dict[str, Any]]:
        for exchange in self.trace.inference:
            assert exchange.response
            assert exchange.response.message
            yield exchange.response.message["usage"]


def simulated(
    trace: Trace,
    strategy: str,
    exchanges: Sequence[Exchange] | None = None,
    model: str = BUNDLED,
) -> list[int]:
    """Simulate the reused tokens of each request, of some exchanges or of all."""
    part = trace if exchanges is None else replace(trace, exchanges=tuple(exchanges))
    rows = compare(
        part, model=model, strategies=strategy, simulate=True, progress=False
    )
    return [int(n) for n in rows.requests.reused_tokens]


def _is_answered(exchange: Exchange) -> bool:
    response = exchange.response
    if response is None or response.status != 200 or response.message is None:
        return False
    return not exchange.is_inference or bool(response.message.get("stop_reason"))


def _extends(later: RenderedRequest, earlier: RenderedRequest) -> bool:
    whole = earlier.prompt.extended(earlier.answer).tokens
    return common_prefix(whole, later.prompt.tokens) == len(whole)
