"""Exports recorded traces as hashed ones, which show repetition and hold no text."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm.auto import tqdm

from mlxlab.models.folder import BUNDLED, ModelFolder, find_model
from mlxlab.rendering.renderer import Renderer
from mlxlab.rendering.rules import parse_rules
from mlxlab.replay.requests import RenderedRequest, render_trace
from mlxlab.traces import Trace
from mlxlab.traces.hashed.file import HashedFile, Hasher, write_hashed
from mlxlab.traces.hashed.trace import HashedRequest, HashedTrace
from mlxlab.traces.open import open_one
from mlxlab.traces.redaction import redacted_trace

__all__ = ["export_trace"]

#: Tokens that one hash stands for.
UNIT = 64
SALT_BYTES = 32


def export_trace(
    trace: Trace | str | Path,
    out: str | Path,
    *,
    model: str | ModelFolder = BUNDLED,
    rules: str = "all",
    salt: str | None = None,
    progress: bool = True,
) -> HashedTrace:
    """Write a trace as hashes of 64 tokens each, by prefix and by content.

    Secrets are replaced first, because users with the salt could test guessed texts.
    Sessions, agents and tools called are numbered. Times are counted from the first
    request.

    Args:
        trace: a recorded trace, its file, or the name of a bundled trace.
        out: the file to write; it is packed if its name ends in ``.gz``.
        model: the model whose tokenizer and template render the trace.
        rules: see :func:`mlxlab.rendering.rules.parse_rules`.
        salt: key of the hashes; files with equal salts can be compared. By default a
            random key that is thrown away.
        progress: whether to show a bar.

    Returns:
        The hashed trace in ``out``.

    Raises:
        MlxlabError: the trace cannot be read or rendered, or ``out`` not be written.
    """
    folder = find_model(model) if isinstance(model, str) else model
    renderer = Renderer(folder, parse_rules(rules))
    trace = open_one(trace)
    key = salt.encode() if salt else secrets.token_bytes(SALT_BYTES)
    hasher = Hasher(UNIT, key)
    trace = redacted_trace(trace)
    with tqdm(
        total=len(trace.inference), desc="rendering", disable=not progress
    ) as bar:
        requests = render_trace(trace, renderer, bar.update)
    notes = {
        "tokenizer": folder.tokenizer_digest,
        "rules": list(renderer.rules),
        "salted": True,
    }
    write_hashed(Path(out), hasher, _requests(trace, requests, hasher), notes)
    return HashedFile().open(Path(out))


def _requests(
    trace: Trace, requests: Sequence[RenderedRequest], hasher: Hasher
) -> Iterator[HashedRequest]:
    sessions: dict[str, str] = {}
    agents: dict[str, str] = {}
    tools: dict[str, str] = {}
    begun = trace.inference[0].t
    for exchange, request in zip(trace.inference, requests, strict=True):
        agent, use = exchange.agent, request.use.shifted(-begun)
        yield hasher.request(
            exchange.t - begun,
            request.prompt.tokens,
            request.answer,
            request.prompt.segments,
            session=sessions.setdefault(exchange.session, str(len(sessions) + 1)),
            agent=agents.setdefault(agent, str(len(agents) + 1)) if agent else "",
            ended=use.ended,
            stop=use.stop,
            tools=tuple(
                tools.setdefault(tool, str(len(tools) + 1)) for tool in use.tools
            ),
            side=use.side,
        )
