"""What a comparison comes to, in sentences."""

from __future__ import annotations

import pytest

from mlxlab import Comparison, compare
from mlxlab.sizes import format_duration
from mlxlab.traces import Trace
from tests.support.exchanges import small_trace


def simulated(trace: str | Trace, strategies: str) -> Comparison:
    return compare(trace, strategies, simulate=True, progress=False)


def reused(result: Comparison, strategy: str) -> str:
    own = result.requests[result.requests.strategy == strategy]
    return f"{own.reused_tokens.sum() / own.prompt_tokens.sum():.1%}"


def test_the_best_is_set_against_the_first_and_no_reuse() -> None:
    rows = simulated("sessions", "prefix@none,none,paged")
    best, left = rows.lines()
    assert best == (
        f"Best: paged reuses {reused(rows, 'paged')} of all prompt tokens "
        f"(prefix@none {reused(rows, 'prefix@none')}, none 0.0%)."
    )
    unlimited = rows.bounds[rows.bounds.bound == "unlimited"].iloc[0]
    most = f"{unlimited.reused_tokens / unlimited.prompt_tokens:.1%}"
    assert f"unlimited memory would reuse {most}: " in left
    assert left.endswith("of all prompt tokens are left to gain.")


def test_equals_are_named_and_the_one_for_several_agents_wins() -> None:
    best, equal, left = simulated("sessions", "prefix,mlx-lm").lines()
    assert best.startswith("Best: mlx-lm reuses ")
    assert equal.startswith("As much is reused by prefix (")
    assert "one sequence only" in equal
    assert left.startswith("No exact reuse could do better: ")


def test_one_strategy_is_the_best_of_its_own() -> None:
    (best, left) = simulated(small_trace(), "none").lines()
    assert best == "Best: none reuses 0.0% of all prompt tokens."
    assert "left to gain" in left


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "1 s"), (59.4, "59 s"), (60, "1 min"), (170, "3 min"), (5400, "1.5 h")],
)
def test_durations_are_read_at_a_glance(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
