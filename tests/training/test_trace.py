"""The trace of tasks: what it asks for, and that edits find their places in it."""

from itertools import pairwise

import pytest

from mlxlab.analysis.fidelity.edits import EDITS, apply_edit
from mlxlab.models.folder import find_model
from mlxlab.rendering.renderer import Renderer
from mlxlab.replay.requests import render_trace
from mlxlab.traces import Trace, load_trace
from training.trace import SEED, task_trace


@pytest.fixture(scope="module")
def bundled() -> Trace:
    return load_trace("tasks")


def test_written_traces_repeat_and_differ_by_seed() -> None:
    first, again, other = (task_trace("t", seed, 600) for seed in (SEED, SEED, 1))
    bodies = [[e.body for e in trace] for trace in (first, again, other)]
    assert bodies[0] == bodies[1] != bodies[2]
    assert first.header.notes["tasks"] is True


def test_the_bundled_one_has_answers_that_its_requests_go_on_from(
    bundled: Trace,
) -> None:
    assert bundled.header.notes["tasks"] is True
    for earlier, later in pairwise(bundled.inference):
        assert earlier.body is not None
        assert earlier.response is not None
        assert later.body is not None
        so_far = [*earlier.body["messages"], earlier.response.message]
        assert later.body["messages"][: len(so_far)] == so_far


def test_the_bundled_one_is_of_a_length_that_the_model_was_trained_on(
    bundled: Trace,
) -> None:
    steps = render_trace(bundled, Renderer(find_model()))
    assert 3000 < len(steps[-1].prompt) < 4096


@pytest.mark.parametrize("edit", EDITS)
def test_the_bundled_one_can_be_edited(bundled: Trace, edit: str) -> None:
    assert len(apply_edit(bundled, edit).changed) == len(bundled.inference) // 2
