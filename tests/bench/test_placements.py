"""The comparison of placements: its rows, its cells, and who is ahead."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from rich.console import Console

from bench import placements
from bench.placements import OURS, PEERS, Traffic, compare, simulate, tabulate
from mlxlab.analysis.sweep import Sweep, sweep
from mlxlab.models.geometry import known_layout
from mlxlab.strategies.placements import PLACEMENTS


@pytest.fixture(scope="module")
def swept() -> Sweep:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placements, "sweep", partial(sweep, scheduler="here"))
        patch.setattr(placements, "CAPACITIES", (1 << 20, 1 << 30))
        traffic = Traffic("recorded", ("deferred",), (1,))
        return simulate(traffic, known_layout("gpt-oss-20b"), None)


def test_capacities_that_hold_no_checkpoint_are_left_out(swept: Sweep) -> None:
    assert set(swept.requests.capacity) == {1 << 30}


def test_a_table_has_all_placements_and_bounds(swept: Sweep) -> None:
    table = tabulate(swept, 1, "deferred")
    console = Console(width=120, record=True)
    console.print(table)
    text = console.export_text()
    for name in (*PEERS, "every2048", "windows=tokens", "bound placement"):
        assert f"{name} " in text
    summary = swept.summary().set_index("strategy")
    shares = [summary[key][OURS] for key in ("reused", "of_placement", "of_optimal")]
    (line,) = [own for own in text.splitlines() if own.strip().startswith(f"{OURS} ")]
    assert line.split()[1:4] == [f"{share:.1%}" for share in shares]
    assert set(PEERS) <= set(PLACEMENTS)


def test_only_placements_that_reuse_clearly_more_are_named(swept: Sweep) -> None:
    rows = swept.requests
    tokens = int(rows.prompt_tokens.iloc[0])
    reused = rows.set_index("strategy").reused_tokens
    reused[:] = reused[OURS]
    reused[f"{OURS}:checkpoints=omlx"] += tokens * 4 // 1000
    reused[f"{OURS}:checkpoints=sglang"] += tokens * 9 // 1000
    changed = replace(swept, requests=rows.assign(reused_tokens=reused.to_numpy()))
    assert list(compare(changed, 1)) == ["sglang is 0.9 points ahead at 1GiB"]
