"""From recorded traces to hashed ones, which tell what recurs and not what was said."""

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
from mlxlab.traces.hashed.file import Hasher, open_hashed, write_hashed
from mlxlab.traces.hashed.trace import HashedRequest, HashedTrace

__all__ = ["export_trace"]

UNIT = 64
SALT_BYTES = 32


def export_trace(
    trace: Trace,
    path: str | Path,
    *,
    model: str | ModelFolder = BUNDLED,
    rules: str = "all",
    salt: str | None = None,
    progress: bool = True,
) -> HashedTrace:
    """Write a trace as hashes of 64 tokens each, chained and by content.

    Names of sessions and agents become numbers; times stay, counted from the first.

    Args:
        trace: a recorded one.
        path: file to write; packed if it ends in ``.gz``.
        model: whose tokenizer and template render it.
        rules: see :func:`mlxlab.rendering.rules.parse_rules`.
        salt: what hashes are keyed with, so that files can be compared; a secret that
            is thrown away if left out.
        progress: whether to show a bar.

    Raises:
        MlxlabError: the trace cannot be rendered, or the file not be written.
    """
    folder = find_model(model) if isinstance(model, str) else model
    renderer = Renderer(folder, parse_rules(rules))
    key = salt.encode() if salt else secrets.token_bytes(SALT_BYTES)
    hasher = Hasher(UNIT, key)
    with tqdm(
        total=len(trace.inference), desc="rendering", disable=not progress
    ) as bar:
        requests = render_trace(trace, renderer, bar.update)
    notes = {
        "tokenizer": folder.tokenizer_digest,
        "rules": list(renderer.rules),
        "salted": True,
    }
    write_hashed(Path(path), hasher, _requests(trace, requests, hasher), notes)
    return open_hashed(Path(path))


def _requests(
    trace: Trace, requests: Sequence[RenderedRequest], hasher: Hasher
) -> Iterator[HashedRequest]:
    sessions: dict[str, str] = {}
    agents: dict[str, str] = {}
    begun = trace.inference[0].t
    for exchange, request in zip(trace.inference, requests, strict=True):
        agent = exchange.agent
        yield hasher.request(
            exchange.t - begun,
            request.prompt.tokens,
            request.answer,
            request.prompt.segments,
            session=sessions.setdefault(exchange.session, str(len(sessions) + 1)),
            agent=agents.setdefault(agent, str(len(agents) + 1)) if agent else "",
        )
