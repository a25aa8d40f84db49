"""Divergence of predictions: known values and what holds for any."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from mlxlab.analysis.fidelity.divergence import diverge, log_probabilities

NONE = np.empty(0, np.int32)

Logits = NDArray[np.float32]


def logits_of(*rows: list[float]) -> Logits:
    return np.log(np.array(rows, np.float32))


LOGITS = arrays(np.float32, (3, 7), elements=st.floats(-80, 80, width=32))


def test_known_values() -> None:
    reference = logits_of([0.5, 0.5], [0.8, 0.2], [0.9, 0.1])
    other = logits_of([0.25, 0.75], [0.8, 0.2], [0.2, 0.8])
    found = diverge(reference, other, np.array([1, 0, 1], np.int32))
    expected = [0.14384, 0.0, 0.9 * np.log(4.5) + 0.1 * np.log(0.125)]
    assert found.kld == pytest.approx(expected, abs=1e-5)
    assert found.same_top.tolist() == [False, True, False]
    assert found.delta_p == pytest.approx([0.25, 0.0, 0.7], abs=1e-6)
    assert found.surprisal == pytest.approx(-np.log([0.75, 0.8, 0.8]), abs=1e-6)


def test_without_an_answer_the_top_token_counts() -> None:
    reference, other = logits_of([0.2, 0.7, 0.1]), logits_of([0.5, 0.3, 0.2])
    found = diverge(reference, other, NONE)
    assert found.delta_p == pytest.approx([-0.4], abs=1e-6)
    assert np.isnan(found.surprisal).all()


def test_what_follows_beyond_the_scored_rows_is_ignored() -> None:
    reference = logits_of([0.2, 0.8])
    found = diverge(reference, reference, np.array([0, 1, 1], np.int32))
    assert found.surprisal == pytest.approx([-np.log(0.2)], abs=1e-6)


def test_a_token_that_cannot_come_adds_nothing() -> None:
    barred = np.array([[0.0, -np.inf, 0.0]], np.float32)
    assert diverge(barred, np.zeros((1, 3), np.float32), NONE).kld == pytest.approx(
        [np.log(1.5)]
    )
    assert diverge(barred, barred, NONE).kld.tolist() == [0.0]
    assert diverge(np.zeros((1, 3), np.float32), barred, NONE).kld.tolist() == [np.inf]


@given(LOGITS, LOGITS)
def test_no_divergence_is_negative(reference: Logits, other: Logits) -> None:
    found = diverge(reference, other, NONE)
    assert (found.kld >= 0).all()
    assert (np.abs(found.delta_p) <= 1).all()


@given(LOGITS)
def test_equal_predictions_do_not_diverge(logits: Logits) -> None:
    found = diverge(logits, logits.copy(), NONE)
    assert found.kld.tolist() == [0.0] * 3
    assert found.same_top.all()
    assert found.delta_p.tolist() == [0.0] * 3


@given(LOGITS, LOGITS, st.floats(-1000, 1000))
def test_a_constant_added_to_logits_changes_nothing(
    reference: Logits, other: Logits, constant: float
) -> None:
    shifted = other.astype(np.float64) + constant
    a, b = diverge(reference, other, NONE), diverge(reference, shifted, NONE)
    assert a.kld == pytest.approx(b.kld, abs=1e-9)


@given(LOGITS)
def test_probabilities_add_up_to_one(logits: Logits) -> None:
    assert np.exp(log_probabilities(logits)).sum(axis=-1) == pytest.approx(1.0)
