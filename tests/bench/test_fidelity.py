"""Results that are kept: that they are of what comes with mlxlab now."""

import pytest

from bench.fidelity import FOLDER, MEASUREMENTS, RUNS, main
from mlxlab import Fidelity, find_model
from mlxlab.analysis.fidelity.store import RecordKey, recall
from mlxlab.replay.specs import StrategySpec, parse_specs
from mlxlab.traces import load_trace


@pytest.mark.parametrize("name", RUNS)
def test_kept_findings_are_of_the_bundled_model_and_trace(name: str) -> None:
    found = Fidelity.read_json(FOLDER / f"{name}.json.gz")
    assert found.manifest["model"]["digest"] == find_model().digest
    (trace,) = found.manifest["traces"]
    assert trace["digest"] == load_trace(RUNS[name].trace).digest
    named = {c.name for c in parse_specs(RUNS[name].strategies)}
    assert named <= set(found.requests.variant)


def test_what_the_server_shows_is_what_was_found() -> None:
    assert MEASUREMENTS.exists()
    found = Fidelity.read_json(FOLDER / "tasks.json.gz")
    suffix = recall(RecordKey.of(find_model().digest, StrategySpec.parse("suffix")))
    assert suffix is not None
    assert suffix.traces == ("tasks",)
    assert suffix.recovered == pytest.approx(found.summary().recovered["suffix"], 1e-4)


def test_an_unknown_run_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["fidelity", "nope"])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 2
    assert "no run nope; give some of tasks" in capsys.readouterr().err
