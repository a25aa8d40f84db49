"""Proposals: text that keeps breaking prompts, the rules against it, what they save."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from mlxlab.analysis.compare import compare
from mlxlab.analysis.misses.causes import Cause
from mlxlab.analysis.misses.classify import Change
from mlxlab.analysis.misses.proposals import rules_against
from mlxlab.analysis.misses.result import Misses
from mlxlab.analysis.misses.run import misses
from mlxlab.prompt import Role
from mlxlab.rendering.rules import DEFAULT_RULES, find_rule
from mlxlab.traces import Trace, load_trace
from tests.support.git_status import with_git_status

GIT = "paged@all+git-status-last"


@cache
def under_git() -> Trace:
    return with_git_status(load_trace("sessions"))


@pytest.mark.parametrize(
    ("older", "spec", "least", "most"),
    [
        (True, "paged", 0, 0.54),
        (True, GIT, 0.95, 1),
        (False, GIT, 0.95, 1),
    ],
)
def test_a_new_session_of_a_project_under_git(
    older: bool, spec: str, least: float, most: float
) -> None:
    """Older clients put the status in front of the tools, newer ones do not."""
    trace = under_git() if older else load_trace("sessions")
    found = compare(trace, strategies=spec, simulate=True, progress=False).requests
    firsts = found.drop_duplicates("session").iloc[1:]
    assert len(firsts) == 2
    shares = firsts.reused_tokens / firsts.prompt_tokens
    assert shares.between(least, most).all()


@cache
def found() -> Misses:
    return misses(under_git(), "paged", progress=False)


def test_a_known_rule_is_proposed_with_what_a_replay_reuses() -> None:
    (row,) = found().proposals.to_dict("records")
    assert (row["added"], row["rules"]) == ("git-status-last", "all,git-status-last")
    assert row["requests"] == 2
    assert "[-(clean)-] {+?? note0.txt+}" in row["change"]
    for column, spec in (("reused_before", "paged"), ("reused_after", GIT)):
        rows = compare(under_git(), strategies=spec, simulate=True, progress=False)
        tokens = rows.requests[["reused_tokens", "prompt_tokens"]].sum()
        assert row[column] == pytest.approx(tokens.iloc[0] / tokens.iloc[1], abs=1e-9)
    assert row["reused_after"] > row["reused_before"] + 0.1
    causes = found().causes
    lost = causes[causes.remedy == "rule git-status-last"]
    assert set(lost.cause) == {str(Cause.SYSTEM)}
    assert lost.tokens.sum() == row["tokens"]
    lines = found().lines()
    assert lines[0].startswith("git-status-last: reuses ")
    assert lines[-1].endswith("--rules all,git-status-last")


def test_proposals_survive_a_file(tmp_path: Path) -> None:
    path = tmp_path / "misses.json"
    found().to_json(path)
    assert Misses.read_json(path).lines() == found().lines()
    empty = replace(found(), proposals=found().proposals.iloc[:0])
    empty.to_json(path)
    assert Misses.read_json(path).lines() == []


def test_in_force_it_is_not_proposed_again() -> None:
    again = misses(under_git(), GIT, progress=False)
    assert again.proposals.empty
    assert not again.causes.remedy.str.contains("git-status-last").any()


def with_text(*texts: str) -> Trace:
    """The first requests of three sessions, each with a text of its own in front."""
    trace = load_trace("sessions")
    firsts: dict[str, Any] = {}
    for exchange in trace.inference:
        firsts.setdefault(exchange.session, exchange)
    exchanges = []
    for exchange, text in zip(firsts.values(), texts, strict=True):
        *before, last = exchange.body["system"]
        system = [*before, {**last, "text": f"{text}\n\n{last['text']}"}]
        exchanges.append(replace(exchange, body={**exchange.body, "system": system}))
    return replace(trace, exchanges=tuple(exchanges))


BUILDS = [f"# Build\nBuild number {n} of today\nBe brief." for n in (17, 18, 23)]
LONG = "Be brief.\n" * 9
KEYS = [f"Key {'AKIA' + 'IOSFODNN7EXAMPL' + c} of today" for c in "ABC"]


def test_a_rule_is_written_for_text_that_no_rule_knows() -> None:
    result = misses(with_text(*BUILDS), "prefix", progress=False)
    (row,) = result.proposals.to_dict("records")
    assert row["rules"] == "all,move:Build number"
    assert row["reused_after"] > 0.6 > 0.1 > row["reused_before"]
    assert "'all,move:Build number'" in result.lines()[-1]
    again = misses(with_text(*BUILDS), "prefix", rules=row["rules"], progress=False)
    reused = again.requests.reused_tokens.sum() / again.requests.prompt_tokens.sum()
    assert reused == pytest.approx(row["reused_after"], abs=1e-9)


def test_what_happens_once_is_not_proposed_and_nothing_without_text() -> None:
    once = with_text(BUILDS[0], BUILDS[1], BUILDS[1])
    assert misses(once, "prefix", progress=False).proposals.empty
    hidden = misses(with_text(*BUILDS), "prefix", text="none", progress=False)
    assert hidden.proposals.empty


@pytest.mark.parametrize(
    ("old", "new", "rules"),
    [
        ("A\nToday is Monday.\nB", "A\nToday is Tuesday.\nB", ("move:Today is",)),
        ("A\nStatus:\nnone", "A\nStatus:\n x\n y", ("move:Status:...",)),
        ("One 1\nA\nTwo 1", "One 2\nA\nTwo 2", ("move:One...",)),
        (f"One 1\n{LONG}Two 1", f"One 2\n{LONG}Two 2", ("move:One", "move:Two")),
        ("Mail a@b.c now 1", "Mail a@b.c now 2", ("move:Mail",)),
        ("wholly", "different", ()),
        ("", "Only one side", ()),
        (KEYS[0], KEYS[1], ("move:Key",)),
        (f"{KEYS[0]} at 1", f"{KEYS[0]} at 2", ()),
    ],
)
def test_written_rules_undo_the_change(
    old: str, new: str, rules: tuple[str, ...]
) -> None:
    change = Change(Cause.SYSTEM, "system[1]", Role.SYSTEM, 0, old, new)
    assert rules_against(change, DEFAULT_RULES) == rules
    for rule in map(find_rule, rules):
        old, new = rule.without(old), rule.without(new)
    assert not rules or old == new


def test_words_of_users_and_answers_are_left_alone() -> None:
    change = Change(Cause.WORDS, "messages[0]", Role.USER, 0, "Build 1", "Build 2")
    assert rules_against(change, DEFAULT_RULES) == ()
