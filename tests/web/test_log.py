"""An endpoint's log stays small, and says how much it left out."""

from __future__ import annotations

from mlxlab.web.log import ServerLog


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_repeated_lines_are_counted_and_others_kept() -> None:
    log = ServerLog(Clock())
    for number in range(1244):
        log.add(f"failed {number}", "failed")
    log.add("another", "another")
    assert len(log) == 11
    assert log[0] == "failed 0"
    assert log[9:] == ["failed 9 (… 1,234 more like it)", "another"]
    assert list(log)[-1] == "another"


def test_after_a_minute_a_kind_has_its_lines_again() -> None:
    clock = Clock()
    log = ServerLog(clock)
    for _ in range(12):
        log.add("failed", "failed")
    clock.now = 61.0
    assert not log.is_repeated("failed")
    log.add("failed", "failed")
    assert log[-2:] == ["failed (… 2 more like it)", "failed"]


def test_lines_and_characters_are_bounded() -> None:
    log = ServerLog()
    for number in range(3000):
        log.add(str(number), str(number))
    assert (len(log), log[-1]) == (log.maxlen, "2999")
    for number in range(100):
        log.add("a" * 5000 + f"ValueError: {number}", str(number))
    assert sum(map(len, log)) < 64 * 2**10
    assert log[-1].startswith("aaa")
    assert log[-1].endswith("ValueError: 99")
    log.clear()
    assert not log
