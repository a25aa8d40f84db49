from __future__ import annotations

import re
import sys
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import mlxlab as ml
from mlxlab.analysis import html_report
from mlxlab.analysis.doctor.evidence import Evidence
from mlxlab.analysis.doctor.result import Diagnosis
from mlxlab.analysis.html_report import find_worst, report
from mlxlab.analysis.misses.causes import CauseKind
from mlxlab.analysis.plots import plot_gain
from mlxlab.cli import doctor as command
from mlxlab.errors import MlxlabError
from mlxlab.models.folder import BUNDLED
from mlxlab.traces import Trace
from mlxlab.traces.schema import Configuration
from tests.support.exchanges import small_trace

SECRET = "xoxb-0123456789"
BAD = "</pre></title><script>alert(1)</script>\x1b[31m\u202e"
_ADDRESSES = {"src", "href", "srcset", "xlink:href"}


class Addresses(HTMLParser):
    """Everything that a browser would load, and the text of elements."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

        self.words: dict[str, list[str]] = {}
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [v or "" for k, v in attrs if k in _ADDRESSES]
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.words.setdefault(tag, []).append(data)

    def text(self, tag: str) -> str:
        """All text in elements of a tag."""
        return "".join(self.words[tag])


def leaking() -> Trace:
    """On the way a session's system text comes to name a key."""
    trace = small_trace()
    exchanges: list[Any] = []
    for exchange in trace.exchanges:
        if exchange.id in {4, 8} and exchange.body is not None:
            system = [dict(block) for block in exchange.body["system"]]
            system[1]["text"] = f"Use the key {SECRET} for all. " + system[1]["text"]
            exchange = replace(exchange, body={**exchange.body, "system": system})
        exchanges.append(exchange)
    return replace(trace, exchanges=tuple(exchanges))


SETTING: Mapping[str, Any] = {"model": BUNDLED, "memory": 1 << 20}


@pytest.fixture(scope="module")
def found() -> Diagnosis:
    return ml.doctor(leaking(), **SETTING, progress=False)


@pytest.fixture(scope="module")
def page(found: Diagnosis, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    report(leaking(), path, found=found, **SETTING, progress=False)
    return path.read_text()


def test_it_loads_nothing(page: str) -> None:
    parser = Addresses()
    parser.feed(page)
    assert page.count("<svg") >= 5
    assert all(found.startswith("#") for found in parser.found)
    assert not re.search(r"<script(?!>)|@import|url\((?!#)", page)


def test_the_policy_admits_its_own_script_and_no_other(page: str) -> None:
    (script,) = re.findall("<script>(.*?)</script>", page, re.DOTALL)
    digest = b64encode(sha256(script.encode()).digest()).decode()
    (policy,) = re.findall('http-equiv="Content-Security-Policy" content="(.*?)"', page)
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert not re.search(r"<[^>]* on\w+=", page)


def test_the_verdict_leads_and_details_are_folded(found: Diagnosis, page: str) -> None:
    parser = Addresses()
    parser.feed(page)
    assert parser.text("h1") == found.verdict
    assert parser.text("code").startswith(found.serve_line)
    assert f"{found.shares[1]:.0%} of prompt tokens reused" in page
    head, *folded = re.split(r"<details", page)
    order = ["<h1>", "as strips", "Before and after", 'class="command"']
    places = [head.index(said) for said in [*order, "How sure", "Assumed"]]
    assert places == sorted(places)
    assert not any(part.startswith(" open") for part in folded)
    for title in ("Causes today", "Causes as recommended", "Reuse by strategy"):
        assert title in "".join(folded)
        assert title not in head
    best = str(found.tuning.best.strategy)
    assert {found.strategy, best} <= set(re.findall(">([^<]+)</td>", page))


def test_it_tells_what_was_reused_why_not_more_and_what_to_set(page: str) -> None:
    for said in (
        "%serve --model tiny --strategy",
        ">static-prefix</td>",
        "prefix@none",
        "new session",
        "of unlimited",
        "manifest",
        "&#34;digest&#34;",
    ):
        assert said in page


def test_secrets_are_left_out_unless_asked_for(page: str) -> None:
    assert SECRET not in page
    assert "redacte" in page


def test_text_of_others_is_shown_and_not_obeyed_and_warnings_lead(
    tmp_path: Path,
) -> None:
    trace = leaking()
    exchanges = []
    for exchange in trace.exchanges:
        if exchange.id == 8 and exchange.body is not None:
            system = [dict(block) for block in exchange.body["system"]]
            system[1]["text"] = f"{BAD} {system[1]['text']}"
            exchange = replace(exchange, body={**exchange.body, "system": system})
        if exchange.response is not None:
            used = Configuration(strategy="block-hash", rules="none")
            answer = replace(exchange.response, configuration=used)
            exchange = replace(exchange, response=answer)
        exchanges.append(exchange)
    bad = replace(trace, name=f"{BAD}\udcff", exchanges=tuple(exchanges))
    out = tmp_path / "full.html"
    report(bad, out, **SETTING, text="full", progress=False)
    page = out.read_text()
    assert SECRET in page
    assert page.count("<script") == 1
    assert page.index("as served in the recording: strategy") < page.index("<h1>")
    assert "Causes today: block-hash@none" in page
    # In the name of the trace, and in a block that changed.
    title, changed = page.split("Causes today", 1)
    assert "&lt;script&gt;alert(1)" in title
    assert "&lt;script&gt;alert(1)" in changed
    assert not re.search("[\x1b\u202e]", page)


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(MlxlabError, match="give a file to write"):
        report(small_trace(), tmp_path, **SETTING, progress=False)


def test_the_offer_of_the_doctor_diagnoses_once(
    found: Diagnosis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("diagnosed twice")

    opened: list[str] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(html_report, "doctor", refuse)
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr("typer.prompt", lambda *_, **__: "r")
    monkeypatch.setattr("webbrowser.open", opened.append)
    command._offer(found, Evidence([leaking()], "here"), dict(SETTING))
    assert opened == [(tmp_path / "report.html").as_uri()]
    assert found.verdict in (tmp_path / "report.html").read_text()


def test_the_costliest_session_leads_with_its_costliest_requests() -> None:
    """Session b loses most, in its requests 15 to 24."""
    names = ["a"] * 5 + ["b", "b/agent"] * 15
    lost = [30.0] * 5 + [100.0 if 10 <= i < 20 else 1.0 for i in range(30)]
    requests = pd.DataFrame({"session": names, "request": range(35)})
    causes = requests.assign(seconds=lost, kind=str(CauseKind.CAPACITY))
    fresh = requests.assign(seconds=1e6, kind=str(CauseKind.COMPULSORY)).head(5)
    diagnosis = Diagnosis(
        requests, requests, {}, pd.concat([causes, fresh]), requests, requests
    )
    worst = find_worst(diagnosis)
    assert (worst.name, worst.requests) == ("b", 30)
    assert worst.share == pytest.approx(1020 / 1170)
    shown = worst.misses.requests.request.tolist()
    assert len(shown) == 12
    assert set(range(15, 25)) <= set(shown)
    assert worst.misses.parts.request.tolist() == shown
    # A session that lost nothing is shown too: its prompts had to be computed.
    assert find_worst(replace(diagnosis, causes=fresh)).share == 0


def test_the_picture_of_the_gain_shows_both_numbers(found: Diagnosis) -> None:
    upper, lower = plot_gain(found).axes
    for axes, values in ((upper, found.shares), (lower, found.seconds)):
        widths = [
            bar.get_path().get_extents(bar.get_patch_transform()).width
            for bar in axes.patches
        ]
        assert widths == pytest.approx(values)
    (error,) = upper.collections[0].get_segments()  # type: ignore[attr-defined]
    assert error[:, 0].max() <= 1
    assert "±" in upper.texts[1].get_text()
    assert "±" not in lower.texts[1].get_text()  # not measured
