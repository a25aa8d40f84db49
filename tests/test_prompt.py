"""Prompts: prefixes, segments, static parts."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mlxlab.prompt import Prompt, Role, Segment, common_prefix

IDS = st.lists(st.integers(0, 2), max_size=40)


def array(ids: list[int]) -> np.ndarray:
    return np.array(ids, dtype=np.int32)


@given(IDS, IDS)
def test_common_prefix_is_the_longest(a: list[int], b: list[int]) -> None:
    n = common_prefix(array(a), array(b))
    assert a[:n] == b[:n]
    assert n == min(len(a), len(b)) or a[n] != b[n]


def prompt(*roles: Role) -> Prompt:
    segments = [Segment(str(r), r, 2 * i, 2 * i + 2) for i, r in enumerate(roles)]
    return Prompt(array(list(range(2 * len(roles)))), tuple(segments))


def test_static_part_ends_where_the_conversation_begins() -> None:
    t, s, tools, user = Role.TEMPLATE, Role.SYSTEM, Role.TOOLS, Role.USER
    assert prompt(t, s, t, tools, t, user, t).static_length == 8
    assert prompt(t, user, s).static_length == 0
    assert Prompt.of([1, 2]).static_length == 0


def test_extended_and_head_keep_segments_covering() -> None:
    whole = prompt(Role.SYSTEM, Role.USER).extended(array([7, 8, 9]))
    assert whole.tokens.tolist() == [0, 1, 2, 3, 7, 8, 9]
    assert whole.segments[-1] == Segment("answer", Role.ANSWER, 4, 7)
    cut = whole.head(5)
    assert [len(s) for s in cut.segments] == [2, 2, 1]
    assert cut.tokens.tolist() == [0, 1, 2, 3, 7]


def test_tokens_cannot_be_changed() -> None:
    assert not Prompt.of([1, 2]).tokens.flags.writeable
