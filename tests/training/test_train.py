import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlxlab.models.tiny import PATH
from training.batches import Batch, Batches, Phase
from training.lessons import Lessons
from training.train import Training, train, weights_of

RUNS = ("whole", "cut")
PHASES = (Phase(256, 2, 3, drills=1), Phase(400, 1, 2))


def weights(model: Any) -> dict[str, np.ndarray]:
    return {name: np.array(array) for name, array in weights_of(model).items()}


@pytest.mark.slow
def test_a_run_that_was_cut_off_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.train._SAVE_EVERY", 2)
    monkeypatch.setattr("training.train._RECORD_EVERY", 1)
    whole = weights(train(tmp_path / "whole", PHASES))

    update = Training.update

    def cut_off(self: Training, batch: Batch, progress: float) -> Any:
        if self.step == 3:
            raise KeyboardInterrupt
        return update(self, batch, progress)

    monkeypatch.setattr(Training, "update", cut_off)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", PHASES)
    monkeypatch.setattr(Training, "update", update)
    resumed = weights(train(tmp_path / "cut", PHASES))

    for name, array in whole.items():
        np.testing.assert_array_equal(resumed[name], array, err_msg=name)
    curve, other = (pd.read_csv(tmp_path / run / "curve.csv") for run in RUNS)
    pd.testing.assert_frame_equal(curve, other)
    assert list(curve.step) == [1, 2, 3, 4, 5]


def test_what_is_trained_on_is_learned(tmp_path: Path) -> None:
    config = json.loads((PATH / "config.json").read_text())
    training = Training(tmp_path, config)
    batch = Batches(0).batch(0, Phase(128, 2, 1, drills=2))
    losses = [training.update(batch, 0.0)[0].mean() for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]


def test_batches_train_every_recalled_word_and_some_of_the_rest() -> None:
    phase = Phase(256, 4, 1, drills=2)
    batch = Batches(0).batch(7, phase)
    again = Batches(0).batch(7, phase)
    assert batch.ids.shape == (4, 257)
    np.testing.assert_array_equal(batch.ids, again.ids)
    np.testing.assert_array_equal(batch.places, again.places)
    assert batch.weights[batch.words].sum() == pytest.approx(1)
    assert 0 < batch.weights[~batch.words].sum() < 1
    assert not np.array_equal(batch.ids, Batches(1).batch(7, phase).ids)


def test_drills_ask_for_what_was_there_before() -> None:
    lesson = Lessons(held_out=True).drill("3", 300)
    for place in lesson.answers:
        key, value = lesson.ids[place.start - 2], lesson.ids[place.start]
        before = np.flatnonzero(lesson.ids[: place.start - 2] == key)
        assert value in lesson.ids[before + 2]
