"""A history says how much of its prompts is there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlxlab.traces import Response, Trace, load_trace, read_trace, write_trace
from mlxlab.traces.anonymize.anonymizer import anonymize
from mlxlab.traces.completeness import REBUILT, Completeness
from mlxlab.traces.importers.claude_code.importer import ClaudeCode
from mlxlab.traces.prompt_size import find_scale, measure_prompts, text_size
from mlxlab.traces.schema import HeaderLine
from tests.support.bare_histories import import_bare
from tests.support.exchanges import exchange
from tests.support.histories import SessionLog

#: Bytes of a request's text: a message of one user.
ASKED = {"model": "m", "messages": [{"role": "user", "content": "x" * 371}]}
SYSTEM = [{"type": "text", "text": "y" * 1000}]


def history(*pairs: tuple[dict[str, Any], Any]) -> Trace:
    """A trace of requests with these bodies and usages, one of them rebuilt."""
    exchanges = [
        replace(
            exchange(i, body, None, session=f"s{i}"),
            response=Response(i + 0.5, 200, 0.0, {"content": [], "usage": usage}),
        )
        for i, (body, usage) in enumerate(pairs)
    ]
    return Trace("h", tuple(exchanges), HeaderLine(skipped={REBUILT: 1}))


def measured(trace: Trace) -> Completeness:
    assert trace.completeness is not None
    return trace.completeness


def test_tokens_are_counted_against_all_parts_of_the_usage() -> None:
    assert text_size(ASKED["messages"]) == 402
    usage = {
        "input_tokens": 3,
        "cache_creation_input_tokens": 300,
        "cache_read_input_tokens": 697,
        "output_tokens": 5000,
    }
    found = measured(history((ASKED, usage), (ASKED, {"input_tokens": 100})))
    # A message is 400 bytes, 100 tokens of four.
    assert (found.stated, found.here, found.requests, found.of) == (1100, 200, 2, 2)
    assert found.line.startswith(
        "history without system text and tools in 2 of 2 requests: "
        "about 200 of 1,100 prompt tokens (18%) are here; --fill "
    )
    assert found.is_mostly_absent


def test_complete_requests_are_here_and_measure_a_token() -> None:
    whole = {**ASKED, "system": SYSTEM}
    size = measure_prompts(history((whole, {})).inference)[0].size
    trace = history(
        (whole, {"input_tokens": size // 2}), (ASKED, {"input_tokens": 400})
    )
    found = measured(trace)
    assert find_scale(measure_prompts(trace.inference)).token_bytes == pytest.approx(
        2, rel=0.01
    )
    assert found.here == size // 2 + 200
    assert (found.requests, found.of) == (1, 2)
    assert "about" not in found.line
    assert not found.is_mostly_absent


def test_turns_measure_a_token_where_no_request_is_complete(tmp_path: Path) -> None:
    trace = load_trace("loop")
    doubled = [  # twice the tokens for the same text: half the bytes
        replace(e, response=replace(e.response, message=_doubled(e.response.message)))
        for e in trace
        if e.response
    ]
    scales = [
        find_scale(measure_prompts(import_bare(own, tmp_path / str(i)).inference))
        for i, own in enumerate((trace, replace(trace, exchanges=tuple(doubled))))
    ]
    assert scales[1].token_bytes == pytest.approx(scales[0].token_bytes / 2)
    assert 3 < scales[0].token_bytes < 5
    assert not scales[0].is_measured


def _doubled(message: Any) -> Any:
    tokens = message["usage"]["input_tokens"] * 2
    return {**message, "usage": {"input_tokens": tokens}}


@pytest.mark.parametrize(
    "usage",
    [
        None,
        [],
        {},
        {"input_tokens": 0},
        {"input_tokens": -5, "cache_read_input_tokens": True},
        {"input_tokens": "900", "cache_creation_input_tokens": 1.5},
        {"input_tokens": 10**30},
    ],
)
def test_without_usage_nothing_is_claimed(usage: Any) -> None:
    found = measured(history((ASKED, usage)))
    assert (found.stated, found.unstated) == (0, 1)
    assert "how much is missing is not known" in found.line
    assert found.is_mostly_absent


@pytest.mark.parametrize("messages", [[], None, "hello", ["x"], {}])
def test_bodies_of_another_form_are_no_requests_to_complete(messages: Any) -> None:
    body = {"model": "m", "messages": messages}
    found = measured(history((body, {"input_tokens": 9})))
    assert found.requests == 0
    assert not found.is_mostly_absent


def test_images_and_signatures_are_no_text() -> None:
    image = {"type": "image", "source": {"type": "base64", "data": "A" * 90_000}}
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "B" * 9000}
    assert text_size([image, thought]) < 200


def test_recordings_and_newer_histories_lack_nothing(tmp_path: Path) -> None:
    assert load_trace("sessions").completeness is None
    log = SessionLog(tmp_path / "s.jsonl")
    log.shape()
    log.request("r1", log.blob({"role": "user", "content": "Fix it."}))
    log.answer("a1", {"type": "text", "text": "Done."}, request="r1")
    assert ClaudeCode().read(log.path, progress=False).completeness is None


def test_the_line_comes_first_and_survives_writing_and_sharing(tmp_path: Path) -> None:
    trace = import_bare(load_trace("thinking"), tmp_path / "p")
    line = measured(trace).line
    assert repr(trace).split("\n")[0] == line
    assert trace._repr_html_().startswith(f"<p>{line}</p>")
    write_trace(trace, tmp_path / "t.jsonl", progress=False)
    again = read_trace(tmp_path / "t.jsonl")
    assert measured(again) == measured(trace)
    shared = measured(anonymize(again, progress=False))
    assert (shared.stated, shared.requests) == (measured(trace).stated, 7)
    assert shared.here == pytest.approx(measured(trace).here, rel=0.3)
