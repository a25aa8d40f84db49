"""Exports recorded traces as hashes, which show what recurs and hold no text."""

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
from mlxlab.traces.open import open_one

__all__ = ["export_trace"]

UNIT = 64
SALT_BYTES = 32


def export_trace(
    trace: str | Path | Trace,
    path: str | Path,
    *,
    model: str | ModelFolder = BUNDLED,
    rules: str = "all",
    salt: str | None = None,
    progress: bool = True,
) -> HashedTrace:
    """Write a trace as hashes of 64 tokens each, by prefix and by content.

    Names of sessions and agents become numbers. Times count from the first request.

    Args:
        trace: a recorded trace: its name, its path, or the opened trace.
        path: file to write; gzipped if the name ends in ``.gz``.
        model: its tokenizer and template render the trace.
        rules: see :func:`mlxlab.rendering.rules.parse_rules`.
        salt: key of the hashes, so that files can be compared; None for a random key
            that is not kept.
        progress: whether to show a bar.

    Raises:
        MlxlabError: the trace cannot be read or rendered, or the file cannot be
            written.
    """
    folder = find_model(model) if isinstance(model, str) else model
    renderer = Renderer(folder, parse_rules(rules))
    trace = open_one(trace)
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
