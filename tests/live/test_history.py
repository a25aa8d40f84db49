"""What the real Claude Code keeps of its requests is what it sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mlxlab as ml
from data.record import SCENARIOS, copied, environment, take
from mlxlab.traces import Exchange, Trace, read_trace
from mlxlab.traces.filling.fill import fill_history
from mlxlab.traces.importers import import_trace
from mlxlab.traces.recording.recorder import recording

#: Keys of a request that its history does not keep.
UNKEPT = {"metadata", "stream"}

#: How often ``sessions`` starts the client.
CLIENTS = len(json.loads((SCENARIOS / "sessions" / "steps.json").read_text()))


def worked(scenario: str, client: Path, folder: Path, **more: str) -> Trace:
    """What the client sent in a scenario; its home and telemetry are in the folder."""
    home = folder / "home"
    home.mkdir()
    project = copied(SCENARIOS / scenario, folder)
    steps = json.loads((SCENARIOS / scenario / "steps.json").read_text())
    script = SCENARIOS / scenario / "script.json"
    with recording(folder / "wire.jsonl", script=script) as recorder:
        for step in steps:
            take(step, client, project, environment(recorder.url, home) | more)
    return read_trace(folder / "wire.jsonl")


def kept(exchange: Exchange) -> dict[str, Any]:
    """A request on the wire, less what a history does not keep."""
    body = {k: v for k, v in (exchange.body or {}).items() if k not in UNKEPT}
    assert body["system"][0]["text"].startswith("x-anthropic-billing-header")
    return body | {"system": body["system"][1:]}


def identified(exchange: Exchange, body: dict[str, Any] | None) -> tuple[str, ...]:
    betas = exchange.headers["anthropic-beta"]
    return exchange.session, exchange.agent, betas, json.dumps(body, sort_keys=True)


def answered(exchange: Exchange) -> list[Any]:
    """Texts and calls of an answer; the client fills in defaults of their inputs."""
    assert exchange.response is not None
    assert exchange.response.message is not None
    said = exchange.response.message
    blocks = [
        block.get("text") or block.get("thinking") or block["id"]
        for block in said["content"]
    ]
    return [said["id"], said["stop_reason"], said["usage"]["output_tokens"], *blocks]


# `compact` also asks for a summary, which is the one request that is not kept.
@pytest.mark.parametrize(
    ("scenario", "unkept"),
    [
        ("sessions", 0),
        pytest.param("subagents", 0, marks=pytest.mark.slow),
        ("resume", 0),
        ("compact", 1),
        ("thinking", 0),
    ],
)
def test_a_history_rebuilds_every_request(
    scenario: str, unkept: int, client: Path, tmp_path: Path
) -> None:
    wire = worked(scenario, client, tmp_path).inference
    trace = import_trace(tmp_path / "home/.claude/projects", progress=False)
    assert trace.skipped == {}
    sent = {identified(e, kept(e)): e for e in wire}
    rebuilt = {identified(e, e.body): e for e in trace}
    assert len(rebuilt) == len(trace) == len(wire) - unkept
    assert rebuilt.keys() <= sent.keys()
    for key, exchange in rebuilt.items():
        assert answered(exchange) == answered(sent[key])
        assert abs(exchange.t - sent[key].t) < 1


def test_telemetry_has_every_request(client: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bodies"
    wire = worked(
        "sessions",
        client,
        tmp_path,
        CLAUDE_CODE_ENABLE_TELEMETRY="1",
        DISABLE_TELEMETRY="",
        OTEL_LOGS_EXPORTER="console",
        OTEL_LOG_RAW_API_BODIES=f"file:{folder}",
    ).inference
    trace = import_trace(folder, progress=False)
    sent = {identified(e, e.body): e for e in wire}
    found = {identified(e, e.body): e for e in trace}
    assert found.keys() == sent.keys()
    whole = {key: e for key, e in found.items() if e.response is not None}
    for key, exchange in whole.items():
        assert answered(exchange) == answered(sent[key])
    # A client that ends may leave the body of its last answer half written.
    assert sum(trace.skipped.values()) == len(found) - len(whole) <= CLIENTS


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["sessions", "loop", "resume", "subagents"])
def test_an_older_history_is_filled_to_what_the_wire_shows(
    scenario: str, older_client: Path, tmp_path: Path
) -> None:
    wire = worked(scenario, older_client, tmp_path)
    bare = import_trace(tmp_path / "home/.claude/projects", progress=False)
    assert len(bare) == len(wire.inference)
    assert bare.completeness is not None
    assert bare.completeness.is_mostly_absent
    filled = fill_history(bare)
    for strategy in ("prefix@none", "paged"):
        for found, sent in zip(
            shares(filled, strategy), shares(wire, strategy), strict=True
        ):
            assert found == pytest.approx(sent, abs=0.05)


def shares(trace: Trace, strategy: str) -> tuple[float, float]:
    """Return the computed share of prompts, and the avoidable share of that."""
    rows = ml.misses(trace, strategy, progress=False).requests
    missed = rows.missed_tokens.sum()
    return missed / rows.prompt_tokens.sum(), rows.lost_tokens.sum() / missed
