"""JSON of hostile schemas: what is accepted at first does not fail later."""

from __future__ import annotations

import json
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlxlab.engine import json_constraint
from mlxlab.engine.json_constraint import JsonConstraint, constraint_tokenizer
from mlxlab.errors import RequestError
from mlxlab.models.folder import ModelFolder, find_model

STEPS = 40
NAMES = st.sampled_from(["a", "b", "ab", "é", "x y", "", '"q', "long_name_of_it"])
PATTERNS = st.sampled_from(
    ["a*", "[a-z]{3,9}", "^a.*b$", "\\d{3}-\\d{4}", "(a|b)*a(a|b){3}", "[^x]+", "^$"]
)
SIZES = st.integers(0, 6)
LEAVES: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.fixed_dictionaries(
        {"type": st.just("string")},
        optional={"minLength": SIZES, "maxLength": SIZES, "pattern": PATTERNS},
    ),
    st.fixed_dictionaries(
        {"type": st.sampled_from(["integer", "number"])},
        optional={
            "minimum": st.integers(-(10**6), 10**6),
            "maximum": st.integers(-(10**6), 2**60),
            "multipleOf": st.sampled_from([1, 2, 7, 12]),
        },
    ),
    st.sampled_from([{}, {"type": "null"}, {"type": "boolean"}, {"const": "x\ny"}]),
    st.lists(
        st.sampled_from(["a", "ab", "", 1, 1.5, None, True, [1], "😀", '"']),
        min_size=1,
        unique_by=repr,
    ).map(lambda values: {"enum": values}),
)
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.fixed_dictionaries(
            {
                "type": st.just("object"),
                "properties": st.dictionaries(NAMES, inner, max_size=4),
            },
            optional={
                "required": st.lists(NAMES, max_size=3, unique=True),
                "additionalProperties": st.one_of(st.booleans(), inner),
            },
        ),
        st.fixed_dictionaries(
            {"type": st.just("array"), "items": inner},
            optional={"minItems": SIZES, "maxItems": SIZES},
        ),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"anyOf": parts}),
        st.lists(inner, min_size=1, max_size=2).map(lambda parts: {"allOf": parts}),
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def tiny() -> ModelFolder:
    return find_model()


@pytest.fixture(scope="module")
def tokens(tiny: ModelFolder) -> Any:
    return constraint_tokenizer(tiny.tokenizer)


def allowed(constraint: JsonConstraint, ids: list[int], size: int) -> list[int]:
    logits = constraint(mx.array([0, *ids]), mx.zeros((1, size)))
    return [int(i) for i in np.flatnonzero(np.isfinite(np.asarray(logits)))]


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(schema=SCHEMAS, choices=st.randoms(use_true_random=False))
def test_no_allowed_id_breaks_an_accepted_schema(
    schema: dict[str, Any], choices: Any, tokens: Any, tiny: ModelFolder
) -> None:
    try:
        constraint = JsonConstraint(tokens, schema).fresh()
    except RequestError:
        return
    end, ids = tiny.tokenizer.eos_token_id, list[int]()
    while len(ids) < STEPS:
        possible = allowed(constraint, ids, tokens.vocab_size)
        assert possible
        # Values end soon, because the end is preferred.
        ids.append(end if end in possible else choices.choice(possible))
        if ids[-1] == end:
            json.loads(tokens.decode_str(ids[:-1]))
            break
    # One step runs ahead of the end.
    allowed(constraint, ids, tokens.vocab_size)


def test_an_answer_outlives_the_states_of_its_schema(
    tokens: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(json_constraint.LIMITS, "max_lexer_states", 3_000)
    constraint = JsonConstraint(tokens, {"type": "string", "minLength": 1_000})
    recompiled = 0
    recompile = constraint._recompile

    def count() -> None:
        nonlocal recompiled
        recompiled += 1
        recompile()

    monkeypatch.setattr(constraint, "_recompile", count)
    ids: list[int] = []
    for step in range(600):
        possible = allowed(constraint, ids, tokens.vocab_size)
        letters = [i for i in possible if tokens.decode_str([i]).isalpha()]
        ids.append((letters or possible)[step % 7 if letters else 0])
    assert recompiled


def test_copies_of_a_constraint_are_independent(tokens: Any) -> None:
    constraint = JsonConstraint(tokens, {"enum": ["ab", "cd"]})
    first, second = constraint.fresh(), constraint.fresh()
    (quote, *_) = allowed(first, [], tokens.vocab_size)
    assert quote in allowed(second, [], tokens.vocab_size)
    after = allowed(first, [quote], tokens.vocab_size)
    assert after == allowed(second, [quote], tokens.vocab_size)
    assert after != allowed(constraint, [], tokens.vocab_size)
