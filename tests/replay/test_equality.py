"""A strategy reuses, stores and evicts the same with and without a model."""

from pathlib import Path

import pytest

from mlxlab.analysis.compare import compare
from mlxlab.strategies import STRATEGIES
from tests.replay.test_uses import ended_trace
from tests.support.architectures import save_architecture
from tests.support.exchanges import small_trace
from tests.support.git_status import with_git_status
from tests.support.hybrids import HYBRIDS

SMALL = "block=16,capacity=1152KiB"

#: Small enough that every limit is reached on a short trace.
SPECS = {
    "static-prefix": "static-prefix:slots=2",
    "block-hash": "block-hash:block=32,slots=2,minimum=64",
    "paged": f"paged:{SMALL}",
    "residual": f"paged:{SMALL},evict=residual",
    "kv=8": "paged:block=16,capacity=320KiB,kv=8",
    "kv=k8v4": "prefix:kv=k8v4",
    "mlx-lm": "mlx-lm:max_size=2",
    "suffix": f"suffix:{SMALL},run=32,head=4,tail=16",
    "suffix-naive": f"suffix-naive:{SMALL}",
    "segmented": f"segmented:{SMALL},run=32,head=4,tail=16,recompute=10",
    "segmented-naive": f"segmented-naive:{SMALL}",
}
COUNTED = ["session", "request", "reused_tokens", "stored_bytes", "evicted"]


@pytest.mark.parametrize("name", [*STRATEGIES, "residual", "kv=8", "kv=k8v4"])
def test_simulated_equals_live(name: str) -> None:
    spec = SPECS.get(name, name)
    trace = small_trace()
    simulated = compare(trace, strategies=spec, simulate=True, progress=False)
    live = compare(trace, strategies=spec, simulate=False, progress=False)
    a, b = simulated.requests, live.requests
    assert a[COUNTED].equals(b[COUNTED])
    assert a.ttft_s.isna().all()
    assert (b.ttft_s > 0).all()
    if name != "none":
        assert 0 < a.reused_tokens.sum() < a.prompt_tokens.sum()
        # What is refused to begin with is not evicted.
        assert a.evicted.sum() > 0 or name == "residual"


@pytest.mark.parametrize(
    "spec",
    [
        "prefix:capacity=1,disk=64MiB",
        f"paged:{SMALL},disk=64MiB",
        f"paged:{SMALL},disk=3MiB",
        "block-hash:block=32,slots=2,minimum=64,disk=64MiB",
        "static-prefix:slots=1,disk=64MiB",
        "mlx-lm:max_size=1,disk=64MiB",
    ],
)
def test_simulated_equals_live_by_tier(spec: str) -> None:
    trace = small_trace()
    simulated = compare(trace, strategies=spec, simulate=True, progress=False)
    live = compare(trace, strategies=spec, simulate=False, progress=False)
    counted = [*COUNTED, "disk_tokens"]
    assert simulated.requests[counted].equals(live.requests[counted])
    assert simulated.requests.disk_tokens.sum() > 0


def test_simulated_equals_live_where_the_policy_orders_checkpoints(
    tmp_path: Path,
) -> None:
    save_architecture(tmp_path / "state", HYBRIDS["qwen3_5"])
    specs = ["paged:capacity=100KiB", "paged:capacity=100KiB,evict=residual"]
    simulated, live = (
        compare(
            ended_trace(),
            strategies=specs,
            model=str(tmp_path / "state"),
            simulate=simulate,
            progress=False,
        ).requests
        for simulate in (True, False)
    )
    assert simulated[COUNTED].equals(live[COUNTED])
    reused = simulated.groupby("strategy").reused_tokens.sum()
    assert reused.nunique() == 2  # the policy decides
    assert reused.min() > 0


def test_simulated_equals_live_under_rules_that_move_text() -> None:
    trace = with_git_status(small_trace())
    rules = "@all+git-status-last+session-ids-last+move:Status"
    specs = [f"{SPECS[name]}{rules}" for name in ("paged", "static-prefix", "suffix")]
    simulated = compare(trace, strategies=specs, simulate=True, progress=False)
    live = compare(trace, strategies=specs, simulate=False, progress=False)
    assert simulated.requests[COUNTED].equals(live.requests[COUNTED])
    usual = compare(trace, strategies=SPECS["paged"], simulate=True, progress=False)
    first = f"paged:{SMALL}{rules}"
    moved = simulated.requests[simulated.requests.strategy == first]
    assert moved.reused_tokens.sum() > usual.requests.reused_tokens.sum()
