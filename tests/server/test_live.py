"""The view model: what users see of a server, without any browser."""

from __future__ import annotations

import json
from typing import Any

from mlxlab.server.event_log import Asker, EventLog, Stage
from mlxlab.server.live.pieces import Fill, Piece, Span, make_pieces
from mlxlab.server.live.view import View
from mlxlab.server.metrics import Served

RULES = ("drop-attribution", "inline-system")


class Watched:
    """A log with its view, and the settings that the view shows."""

    def __init__(self, kept: int = 20_000, **limits: int) -> None:
        self.log = EventLog(kept)
        self.rules, self.strategy = set(RULES), "prefix"
        self.view = View(self.log, self._describe, **limits)

    def _describe(self) -> dict[str, Any]:
        rules = [{"name": name, "is_on": name in self.rules} for name in RULES]
        server = {"rules": rules, "strategy": self.strategy}
        return {"server": server, "meters": {"memory": [1, 2]}}

    def arrive(self, agent: str = "") -> int:
        return self.log.arrive(Asker("a1b2c3d4", agent), "claude-x")

    def serve(self, prompt: int = 100, reused: int = 90, **facts: Any) -> int:
        """Take a request from its arrival to its end."""
        number = self.arrive()
        self.log.add(number, Stage.QUEUED, strategy="paged", prompt_tokens=prompt)
        spans = [["system", prompt, reused]]
        self.log.add(number, Stage.PLANNED, reused_tokens=reused, spans=spans)
        self.log.add(number, Stage.FIRST_TOKEN)
        self.end(number, prompt, reused, **facts)
        return number

    def end(self, number: int, prompt: int, reused: int, **facts: Any) -> None:
        served = {"t": 0.0, "alias": "default", "model": "tiny", "strategy": "paged"}
        served |= {"prompt_tokens": prompt, "reused_tokens": reused}
        served |= {"output_tokens": 5, "ttft_s": 0.5, "total_s": 1.0}
        served |= {"outcome": "end_turn", "queue_s": 0.1, "prefill_s": 0.4} | facts
        assert served.keys() <= Served.__dataclass_fields__.keys()
        self.log.add(number, Stage.ENDED, **served)

    def explain(
        self, number: int, kind: str, lost: int, remedy: str = "", **facts: Any
    ) -> None:
        seconds = lost / 10
        losses = [(kind, remedy, lost, seconds)] if lost else []
        found: dict[str, Any] = {"cause": f"{kind}!", "kind": kind, "remedy": remedy}
        found |= {"lost_tokens": lost, "lost_s": seconds, "losses": losses}
        found |= {"shadow": {}, "by": None}
        self.log.add(number, Stage.EXPLAINED, **found | facts)

    def changes(self, version: int = 0) -> dict[str, Any]:
        changed = self.view.since(version)
        assert changed
        assert json.loads(json.dumps(changed, allow_nan=False)) is not None
        return changed


def test_a_snapshot_and_then_only_what_has_changed() -> None:
    watched = Watched()
    first = watched.serve()
    whole = watched.changes()
    assert whole["whole"]
    assert whole["server"]["rules"]
    [row] = whole["rows"]
    assert row["request"] == first
    assert row["pieces"] == [
        {"fill": "reused", "tokens": 90, "label": "system"},
        {"fill": "computed", "tokens": 10, "label": ""},
    ]
    assert row["queue_s"] == 0.1
    assert "cause" not in row  # what is not known is not there

    assert watched.view.since(whole["version"]) == {}
    second = watched.arrive("explore")
    changed = watched.changes(whole["version"])
    assert not changed["whole"]
    assert [row["request"] for row in changed["rows"]] == [second]
    assert changed["totals"]["queued"] == 1
    assert {"server", "meters", "losses"}.isdisjoint(changed)
    watched.rules.clear()
    later = watched.changes(changed["version"])
    assert later["rows"] == []
    assert "server" in later
    # A reader that has slept gets all of it at once.
    both = watched.changes(whole["version"])
    assert both["rows"] == changed["rows"]
    assert both["server"] == later["server"]


def test_a_row_follows_its_request() -> None:
    watched = Watched()
    number, steps = watched.arrive("explore"), []

    def note(stage: Stage, **facts: Any) -> None:
        watched.log.add(number, stage, **facts)
        [row] = watched.changes()["rows"]
        totals = watched.changes()["totals"]
        steps.append((row["stage"], totals["running"], totals["queued"]))

    note(Stage.QUEUED, prompt_tokens=1000, behind=7)
    assert watched.view.rows()[0].behind == 7
    note(Stage.PLANNED, reused_tokens=0, spans=[["system", 600, 0], ["user", 400, 0]])
    note(Stage.PROGRESS, done_tokens=480)
    row = watched.view.rows()[0]
    assert (row.agent, row.session, row.done_tokens) == ("explore", "a1b2c3d4", 480)
    begun = row.stage_t
    note(Stage.PROGRESS, done_tokens=900)
    assert watched.view.rows()[0].stage_t == begun  # of the first chunk
    note(Stage.FIRST_TOKEN)
    watched.end(number, 1000, 0)
    watched.explain(number, "evicted", 600, by=3, shadow={"prefix": 1})
    watched.log.add(number, Stage.EVICTED, tokens=5, of=1, tier="memory")
    row = watched.view.rows()[0]
    assert row.is_over
    assert (row.cause, row.by, row.shadow) == ("evicted!", 3, {"prefix": 1})
    assert steps == [
        ("queued", 0, 1),
        ("planned", 1, 0),
        ("progress", 1, 0),
        ("progress", 1, 0),
        ("first token", 1, 0),
    ]


def test_totals_count_answered_requests() -> None:
    watched = Watched()
    for ttft in range(1, 101):
        watched.serve(100, 80, ttft_s=float(ttft))
    watched.serve(100, 80, ttft_s=None, outcome="cancelled")
    refused = watched.arrive()
    watched.log.add(refused, Stage.ENDED, outcome="refused")
    totals = watched.changes()["totals"]
    assert totals["requests"] == 101
    assert totals["reused_tokens"] == 80 * 101
    assert (totals["ttft_p50_s"], totals["ttft_p95_s"]) == (51.0, 96.0)
    assert totals["running"] == totals["queued"] == 0


def test_losses_name_the_setting_that_avoids_them() -> None:
    watched = Watched()
    watched.rules = {"inline-system"}
    for _ in range(2):
        header = watched.serve()
        watched.explain(header, "attribution header", 70, "rule drop-attribution")
    evicted = watched.serve(100, 10)
    shadow = {"paged": 90, "prefix": 12}
    watched.explain(evicted, "evicted", 80, "capacity", shadow=shadow)
    slots = watched.serve(100, 10)
    watched.explain(slots, "not kept", 60, "paged")
    watched.explain(watched.serve(), "tool order", 5, "suffix (approximate)")
    watched.explain(watched.serve(), "fresh content", 0)
    first, second, third = watched.changes()["losses"]["causes"]
    assert watched.changes()["losses"]["lost_s"] == 28.5  # with what is not shown
    assert first == {
        "cause": "attribution header",
        "lost_tokens": 140,
        "lost_s": 14.0,
        "remedy": "drop-attribution",
        "setting": {"rules": "inline-system,drop-attribution"},
    }
    # Another strategy would have reused them, whatever limits this one.
    assert second["setting"] == {"strategy": "paged"}
    assert third["setting"] == {"strategy": "paged"}
    watched.rules.add("drop-attribution")
    watched.strategy = "paged"
    for loss in watched.changes()["losses"]["causes"]:
        assert "setting" not in loss  # it is in force


def test_no_setting_is_offered_that_helps_little_or_changes_answers() -> None:
    watched = Watched()
    watched.log.add(watched.serve(), Stage.EXPLAINED, cause="not explained")
    small = watched.serve(100, 10)
    watched.explain(small, "block granularity", 80, "block=8", shadow={"prefix": 11})
    watched.explain(watched.serve(), "tool order", 50, "suffix (approximate)")
    for loss in watched.changes()["losses"]["causes"]:
        assert "setting" not in loss
        assert loss["remedy"]


def test_a_row_says_its_cause_where_it_is_worth_a_look() -> None:
    watched = Watched()
    for kind, lost, headline in (
        ("evicted", 40, "evicted!"),
        ("block granularity", 1, ""),
        ("fresh content", 0, ""),
        ("new session", 0, "new session!"),
    ):
        watched.explain(watched.serve(100, 20), kind, lost)
        row = watched.view.rows()[-1]
        assert row.headline == headline
        marks = [piece for piece in row.pieces() if piece.fill is Fill.BREAK]
        assert len(marks) == (lost > 2)


def test_ten_thousand_requests_take_no_more_than_two_hundred() -> None:
    watched = Watched(kept=1000)
    version, size = 0, 0
    for number in range(1, 10_001):
        request = watched.serve()
        watched.explain(request, "evicted", 5, detail="x" * 9000, shadow={"prefix": 9})
        if number % 150 == 0:  # less than the log keeps
            version = watched.changes(version)["version"]
        if number == 600:
            size = len(json.dumps(watched.changes()))
    whole = watched.changes()
    assert whole["totals"]["requests"] == 10_000
    assert [row["request"] for row in whole["rows"]] == list(range(9801, 10_001))
    assert whole["first"] == 9801
    assert len(json.dumps(whole)) < 1.1 * size
    assert size < 200 * 3000
    # What belongs to a row that is gone comes too late, and brings it not back.
    watched.explain(1, "evicted", 5)
    assert watched.changes()["first"] == 9801
    assert len(watched.view.rows()) == 200


def test_requests_whose_end_was_missed_do_not_stay_open() -> None:
    watched = Watched(kept=20)
    lost = watched.arrive()
    kept = watched.serve()
    assert watched.changes()["totals"]["queued"] == 1
    for _ in range(10):
        watched.serve()
    totals = watched.changes()["totals"]
    assert totals["queued"] == totals["running"] == 0
    numbers = [row.request for row in watched.view.rows()]
    assert kept in numbers
    assert lost not in numbers


def test_a_prompt_is_cut_where_its_fill_changes() -> None:
    spans = [Span("system", 60, 60), Span("tools", 30, 10), Span("odd", 10)]
    for done, expected in (
        (0, [(Fill.LEFT, 20, ""), (Fill.LEFT, 10, "")]),
        (75, [(Fill.COMPUTED, 5, ""), (Fill.LEFT, 15, ""), (Fill.LEFT, 10, "")]),
        (100, [(Fill.COMPUTED, 20, ""), (Fill.COMPUTED, 10, "")]),
    ):
        reused = [(Fill.REUSED, 60, "system"), (Fill.REUSED, 10, "tools")]
        for is_broken in (False, True):
            mark = [(Fill.BREAK, 0, "")] if is_broken else []
            assert make_pieces(spans, done, is_broken=is_broken) == [
                Piece(*piece) for piece in (*reused, *mark, *expected)
            ]
