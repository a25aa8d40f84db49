"""Misses of recorded and small traces: frames that add up, tables, files."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from mlxlab.analysis.compare import compare
from mlxlab.analysis.jobs import HERE
from mlxlab.analysis.misses.attribution import attribute
from mlxlab.analysis.misses.causes import NOTHING, Cause
from mlxlab.analysis.misses.result import Misses
from mlxlab.analysis.misses.run import misses as find_misses
from mlxlab.analysis.sweep import sweep
from mlxlab.cli import app
from mlxlab.errors import MlxlabError, RuleError, StrategyError
from mlxlab.models.folder import find_model
from mlxlab.prompt import Prompt, Role, Segment
from mlxlab.rendering.renderer import Renderer
from mlxlab.rendering.rules import parse_rules
from mlxlab.replay.requests import RenderedRequest, render_trace
from mlxlab.replay.simulator import Simulator
from mlxlab.strategies import STRATEGIES, make_strategy
from mlxlab.traces import Trace, load_trace, write_trace
from mlxlab.traces.hashed.weka import Weka
from mlxlab.traces.schema import Configuration
from tests.support import wire
from tests.support.exchanges import exchange, small_trace
from tests.support.hashes import write_weka

KEY = ["session", "request"]


class Square:
    """Later positions cost more, and every call something of its own."""

    def prefill_s(self, start: int, stop: int) -> float:
        return 0.01 + 1e-4 * (stop - start) + 1e-9 * (stop**2 - start**2)

    def ttft_s(self, reused: int, tokens: int) -> float:
        return self.prefill_s(reused, tokens)


@cache
def quick(name: str, strategy: str, rules: str = "all", text: str = "full") -> Misses:
    trace = load_trace(name)
    return find_misses(trace, strategy=strategy, rules=rules, text=text, progress=False)


@pytest.fixture(scope="module")
def priced() -> Misses:
    costs = Square()
    return find_misses(load_trace("sessions"), strategy="prefix@none", costs=costs)


def tokens_of(misses: Misses) -> pd.Series[int]:
    return misses.causes.groupby(["request", "cause"]).tokens.sum()


@pytest.mark.parametrize("strategy", ["prefix@none", "paged", "block-hash", "suffix"])
def test_causes_add_up_to_what_a_comparison_says_was_computed(strategy: str) -> None:
    trace = small_trace()
    misses = find_misses(trace, strategy=strategy, progress=False)
    compared = compare(trace, strategies=strategy, simulate=True, progress=False)
    rows = compared.requests.set_index(KEY)
    by_request = misses.causes.groupby(KEY, sort=False).tokens.sum()
    assert by_request.to_dict() == rows.computed_tokens.to_dict()
    breaks = misses.requests.set_index(KEY)
    assert breaks.missed_tokens.to_dict() == rows.computed_tokens.to_dict()
    assert breaks.reused_tokens.to_dict() == rows.reused_tokens.to_dict()


@cache
def requests_of(name: str, rules: str) -> list[RenderedRequest]:
    return render_trace(load_trace(name), Renderer(find_model(), parse_rules(rules)))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("name", "rules"),
    [("sessions", "none"), ("subagents", "all"), ("thinking", "none")],
)
def test_every_strategy_adds_up_on_recorded_traces(
    name: str, rules: str, strategy: str
) -> None:
    layout = find_model().layout
    replayer = Simulator(make_strategy(strategy, layout=layout))
    requests = requests_of(name, rules)
    attributions = attribute(
        requests, make_strategy(strategy, layout=layout), lambda ids: str(ids)
    )
    for request, attribution in zip(requests, attributions, strict=True):
        computed = sum(len(part) for part in attribution.parts if part.cause)
        reused = replayer.replay(request).reused_tokens
        assert computed + attribution.plan.recompute == len(request.prompt) - reused


def test_seconds_add_up_to_the_cost_of_each_gap(priced: Misses) -> None:
    by_request = priced.causes.groupby("request").seconds.sum()
    for row in priced.requests.to_dict("records"):
        whole = Square().prefill_s(row["reused_tokens"], row["prompt_tokens"])
        assert by_request[row["request"]] == pytest.approx(whole)
    assert priced.summary().seconds.sum() == pytest.approx(by_request.sum())


def test_without_costs_there_are_no_seconds() -> None:
    misses = find_misses(small_trace(), progress=False)
    assert "seconds" not in misses.causes
    assert "seconds" not in misses.summary()


def test_a_second_sessions_header_is_blamed_and_not_its_being_new(
    priced: Misses,
) -> None:
    tokens = tokens_of(priced)
    assert tokens[0, Cause.SESSION] == 14_824
    for request in (4, 8):
        assert tokens[request, Cause.HEADER] > 14_000
        assert (request, Cause.SESSION) not in tokens
    header = priced.requests.set_index("request").loc[4]
    assert (header.label, header.position) == ("attribution", 28)
    assert "cc_version" in header.change


def test_the_environment_behind_the_users_words_asks_for_its_rule() -> None:
    misses = quick("sessions", "paged", rules="-environment-first")
    lost = misses.causes[misses.causes.cause == Cause.WORDS]
    remedies = lost.groupby("remedy").tokens.sum()
    assert remedies["rule environment-first"] > 5_000
    helped = quick("sessions", "paged").causes
    assert "rule environment-first" not in set(helped.remedy)


def test_one_slot_is_taken_by_the_other_agents() -> None:
    misses = quick("subagents", "prefix")
    summary = misses.summary().set_index("cause")
    assert summary.tokens.idxmax() == Cause.EVICTED
    assert summary.remedy[Cause.EVICTED] == "paged"
    by = misses.causes[misses.causes.cause == Cause.EVICTED].set_index("request")
    assert by.evicted_by[4].startswith("request 2 (sub-agent ")
    assert by.evicted_by[6] == "request 4 (main loop)"


def test_a_small_pool_names_who_took_its_blocks() -> None:
    misses = quick("subagents", "paged:capacity=8MiB")
    evicted = misses.causes[misses.causes.cause == Cause.EVICTED]
    assert len(evicted)
    assert set(evicted.remedy) == {"capacity"}
    assert (evicted.evicted_by != "").all()


def test_a_history_that_was_cut_is_told_from_one_that_grew() -> None:
    misses = quick("compact", "paged")
    tokens = tokens_of(misses)
    cut = tokens[tokens.index.get_level_values("cause") == Cause.CUT]
    assert list(cut.index.get_level_values("request")) == [7]
    # The order for a summary takes the place of the last answer: it is new.
    assert tokens[6, Cause.FRESH] > 1_700


def test_a_deferred_tool_asks_for_its_rule() -> None:
    misses = quick("deferred", "paged", rules="-deferred-tools")
    lost = misses.causes[misses.causes.cause == Cause.TOOLS]
    assert set(lost.remedy) == {"rule deferred-tools"}
    assert Cause.TOOLS not in set(quick("deferred", "paged").causes.cause)


def test_a_side_request_is_compared_with_its_own_kind() -> None:
    trace = small_trace()
    body = dict(trace.exchanges[0].body or {})
    body |= {"tools": [], "system": "Give a title. " * 9}
    title = exchange(70, body, None)
    early = tuple(replace(e, t=e.t + 100) for e in trace.exchanges)
    misses = find_misses(Trace("side", (title, *early)), progress=False)
    by_request = misses.requests.set_index("request")
    assert by_request.cause[70] == Cause.SIDE
    assert by_request.cause[0] == Cause.SESSION


def coarse(ids: list[int], *stops: int) -> Prompt:
    labels = (("tools", Role.TOOLS), ("system", Role.SYSTEM), ("messages", Role.USER))
    starts = (0, *stops[:-1])
    segments = [
        Segment(label, role, start, stop)
        for (label, role), start, stop in zip(labels, starts, stops, strict=True)
    ]
    return Prompt(Prompt.of(ids).tokens, tuple(segments), exact_segments=False)


def test_coarse_segments_give_coarse_causes() -> None:
    tools, system, talk = ([n * 100 + i for i in range(30)] for n in (1, 2, 3))
    prompts = [
        coarse(tools + system + talk, 30, 60, 90),
        coarse(tools + system + talk + [7] * 20, 30, 60, 110),  # it grew
        coarse(tools[:9] + [5] + tools[9:] + system + talk + [7] * 20, 31, 61, 111),
        coarse([*tools[:9], 5, *tools[9:], *system, *talk[15:]], 31, 61, 76),
        coarse([*tools[:9], 5, *tools[9:], *[4] * 20, *talk], 31, 51, 81),
    ]
    answer = Prompt.of([]).tokens
    requests = [
        RenderedRequest("a", i, prompt, answer) for i, prompt in enumerate(prompts)
    ]
    found = [
        attribution.change.cause if attribution.change else None
        for attribution in attribute(
            requests, make_strategy("prefix"), lambda ids: str(ids)
        )
    ]
    assert found == [None, None, Cause.TOOLS, Cause.CUT, Cause.SYSTEM]


@pytest.mark.parametrize(
    ("text", "shown"), [("redacted", True), ("full", True), ("none", False)]
)
def test_texts_are_shown_as_asked(text: str, shown: bool) -> None:
    misses = quick("sessions", "prefix@none", text=text)
    assert (misses.requests.change != "").any() == shown


def test_secrets_are_kept_out_unless_asked_for() -> None:
    secrets = ["sk-" + letter * 20 for letter in "ab"]
    trace = small_trace()
    exchanges = list(trace.exchanges)
    for i, secret in enumerate(secrets):
        body = dict(exchanges[i].body or {})
        body["system"] = f"The key {secret} is {'old' if i else 'new'}."
        exchanges[i] = replace(exchanges[i], body=body)
    secret_trace = Trace("secret", tuple(exchanges))
    for text, there in (("redacted", False), ("full", True)):
        misses = find_misses(secret_trace, text=text, progress=False)
        changes = " ".join(misses.requests.change)
        assert any(secret[:12] in changes for secret in secrets) == there


def served_with(*settings: tuple[str, str]) -> Trace:
    """A trace whose requests were served with these, in turns."""
    trace = small_trace()
    exchanges = []
    for i, e in enumerate(trace.exchanges):
        strategy, rules = settings[i % len(settings)]
        configuration = Configuration(strategy=strategy, rules=rules)
        assert e.response
        response = replace(e.response, configuration=configuration)
        exchanges.append(replace(e, response=response))
    return Trace("served", tuple(exchanges))


def test_a_recording_is_explained_as_it_was_served(tmp_path: Path) -> None:
    write_trace(served_with(("prefix", "none")), tmp_path / "served.jsonl")
    found = find_misses(tmp_path / "served.jsonl", progress=False)
    assert found.strategy == "prefix@none"
    note = found.manifest["warnings"][0]
    assert note.startswith("as served in the recording: strategy prefix, rules none (")
    named = find_misses(
        str(tmp_path / "served.jsonl"), strategy="paged", progress=False
    )
    assert named.strategy == "paged@none"
    assert "strategy" not in named.manifest["warnings"][0]
    both = find_misses(
        load_trace(tmp_path / "served.jsonl"),
        strategy="paged",
        rules="all",
        progress=False,
    )
    assert both.strategy == "paged"
    assert not both.manifest["warnings"]
    result = CliRunner().invoke(app, ["misses", str(tmp_path / "served.jsonl")])
    assert result.exit_code == 0
    assert "prefix@none: " in result.output
    assert "as served in the recording: strategy prefix" in result.output


def test_of_several_configurations_the_most_used_one_is_explained() -> None:
    trace = served_with(("prefix", "all"), ("paged", "none"), ("prefix", "all"))
    found = find_misses(trace, progress=False)
    assert found.strategy == "prefix"
    assert found.manifest["warnings"][1].startswith("also served: strategy paged")


def test_a_name_a_path_and_a_trace_are_explained_alike() -> None:
    title = find_misses(load_trace("tasks"), progress=False).title
    path = Path("data/traces/tasks.jsonl")
    for given in ("tasks", path, str(path), [path]):
        assert find_misses(given, progress=False).title == title
    assert not find_misses("tasks", progress=False).manifest["warnings"]
    with pytest.raises(MlxlabError, match="nowhere"):
        find_misses("nowhere.jsonl", progress=False)


def test_the_tables_fit_a_terminal(priced: Misses) -> None:
    summary = priced.summary()
    assert summary.share.sum() == pytest.approx(1)
    assert summary.tokens.is_monotonic_decreasing
    shown, possible = priced.tables()
    assert list(shown.columns)[:4] == ["cause", "tokens", "share", "requests"]
    lines = list(priced.request_lines())
    assert any("attribution header, at 28 in attribution" in line for line in lines)
    assert "prefix@none: 47,570 of 170,469" in priced.title
    assert "<table" in priced._repr_html_()
    assert priced.title in repr(priced)
    assert max(map(len, repr(priced).splitlines())) <= 100
    assert possible.bound[0] == "exact, unlimited memory"


def test_writes_what_it_found(priced: Misses, tmp_path: Path) -> None:
    priced.to_json(tmp_path / "misses.json")
    content = json.loads((tmp_path / "misses.json").read_text())
    assert {"manifest", "summary", "causes", "requests", "bounds"} < set(content)
    assert content["manifest"]["strategies"][0]["strategy"] == "prefix"
    assert content["manifest"]["model"]["digest"] == find_model().digest
    assert sum(row["tokens"] for row in content["causes"]) == 47_570


def test_several_traces_begin_with_an_empty_cache_each() -> None:
    misses = find_misses([small_trace("one"), small_trace("two")], progress=False)
    first = misses.requests.groupby(misses.requests.session.str.partition(":")[0]).head(
        1
    )
    assert list(first.reused_tokens) == [0, 0]
    assert (first.cause == Cause.SESSION).all()


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"strategy": "nope"}, StrategyError, "no strategy 'nope'"),
        ({"strategy": "paged,prefix"}, StrategyError, "2 of them; give one"),
        ({"rules": "nope"}, RuleError, "unknown rule"),
        ({"text": "nope"}, MlxlabError, "choose from redacted, full, none"),
    ],
)
def test_refuses_what_it_does_not_know(
    options: dict[str, str], error: type[MlxlabError], says: str
) -> None:
    with pytest.raises(error, match=says):
        find_misses(small_trace(), progress=False, **options)  # type: ignore[arg-type]


def test_users_at_the_same_time_share_a_cache() -> None:
    traces = [load_trace("thinking"), load_trace("sessions")]
    settings: dict[str, Any] = {"users": 2, "rules": "all", "progress": False}
    misses = find_misses(traces, strategy="paged:capacity=24MiB", **settings)
    settings["users"] = [2]
    swept = sweep(traces, strategies="paged:capacity=24MiB", scheduler=HERE, **settings)
    computed = swept.requests.prompt_tokens - swept.requests.reused_tokens
    pd.testing.assert_frame_equal(
        misses.bounds, swept.bounds.drop(columns="users"), check_dtype=False
    )
    assert [misses.causes.tokens.sum()] == computed.tolist()
    lost = misses.causes[misses.causes.evicted_by.str.contains("session sessions")]
    assert lost.session.str.startswith("thinking").all()
    assert lost.tokens.sum() > 0


def test_nothing_is_promised_for_new_text() -> None:
    misses = quick("loop", "paged")
    fresh = misses.causes[misses.causes.cause == Cause.FRESH]
    assert set(fresh.remedy) == {f"{NOTHING}new text"}


def test_a_second_equal_reminder_moves_the_tools_behind_it() -> None:
    reminder = {"role": "system", "content": "task_reminder"}
    (first, reply), (second, _) = wire.session(2)
    first["messages"] += [reminder]
    second["messages"] = [*first["messages"], *second["messages"][2:], reminder]
    trace = Trace("t", (exchange(0, first, reply), exchange(1, second, None)))
    found = find_misses(trace, "prefix@none", progress=False)
    tools = found.parts[(found.parts.request == 1) & (found.parts.role == Role.TOOLS)]
    assert set(tools.cause) == {Cause.INLINE}


def test_the_command_prints_a_table_and_writes_what_was_asked(tmp_path: Path) -> None:
    trace, out = tmp_path / "small.jsonl", tmp_path / "out.json"
    write_trace(small_trace(), trace)
    options = ["--strategy", "prefix", "--rules", "none", "--by-request"]
    files = ["--json", str(out), "--plots", str(tmp_path / "plots")]
    done = CliRunner().invoke(app, ["misses", str(trace), *options, *files])
    assert done.exit_code == 0, done.output
    table = done.stdout.split("#0")[0].splitlines()
    assert max(map(len, table)) <= 80
    assert "attribution header" in done.stdout
    assert "rule drop-attribution" in done.stdout
    assert "[-cc_version=2.1.330.a1b;-]" in done.stdout
    assert json.loads(out.read_text())["requests"]
    assert (tmp_path / "plots" / "strip.svg").exists()


def test_hashed_traces_tell_causes_too(tmp_path: Path) -> None:
    trace = Weka().open(write_weka(tmp_path / "w.json"))
    found = find_misses(trace, strategy="paged", progress=False)
    breaks = found.requests.set_index("request")
    assert breaks.prompt_tokens.tolist() == [256, 130, 330, 200, 200]
    assert breaks.reused_tokens.tolist() == [0, 0, 256, 128, 128]
    causes = found.causes.groupby(["request", "cause"]).tokens.sum().to_dict()
    assert causes == {
        (0, "new session"): 256,
        (1, "sub-agent"): 130,
        (2, "fresh content"): 74,
        (3, "fresh content"): 72,
        # Two units are as they were, and less than there was comes behind them.
        (4, "history cut"): 72,
    }
    assert found.causes.tokens.sum() == breaks.missed_tokens.sum()
    assert (breaks.change == "").all()
