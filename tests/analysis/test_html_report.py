from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from mlxlab.analysis.html_report import report
from mlxlab.errors import MlxlabError
from mlxlab.traces import Trace
from tests.support.exchanges import small_trace

SECRET = "xoxb-0123456789"
_ADDRESSES = {"src", "href", "srcset", "xlink:href"}


class Addresses(HTMLParser):
    """Everything that a browser would load, and open tags that were not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [v or "" for k, v in attrs if k in _ADDRESSES]


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


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    report(leaking(), path, memory=1 << 20, progress=False)
    return path.read_text()


def test_it_loads_nothing(page: str) -> None:
    parser = Addresses()
    parser.feed(page)
    assert page.count("<svg") >= 5
    assert all(found.startswith("#") for found in parser.found)
    assert not re.search(r"<script|@import|url\((?!#)", page)


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


def test_secrets_are_left_out_unless_asked_for(page: str, tmp_path: Path) -> None:
    assert SECRET not in page
    assert "redacte" in page
    asked = tmp_path / "full.html"
    report(leaking(), asked, memory=1 << 20, text="full", progress=False)
    assert SECRET in asked.read_text()


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(MlxlabError, match="give a file to write"):
        report(small_trace(), tmp_path, memory=1 << 20, progress=False)
