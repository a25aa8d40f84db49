"""Change texts: short, in one line, and never with a secret."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxlab.analysis.misses.text_diff import TextShown, describe_change, shows_date
from tests.support.traffic import DETERMINISTIC

SECRET = "sk-" + "a1b2c3d4" * 3


@pytest.mark.parametrize(
    ("old", "new", "shown"),
    [
        ("It is 2031-07-18 today.", "It is 2031-07-19 today.", True),
        ("a b c", "a x c", False),
    ],
)
def test_shows_what_went_and_what_came(old: str, new: str, shown: bool) -> None:
    gone, come = (set(a.split()) - set(b.split()) for a, b in ((old, new), (new, old)))
    text = describe_change(old, new)
    assert f"[-{gone.pop()}-] {{+{come.pop()}+}}" in text
    assert shows_date(old, new) == shown


def test_a_date_that_stays_is_no_change_of_date() -> None:
    assert not shows_date("On 2031-07-19 a b", "On 2031-07-19 a c")
    assert shows_date("", "Today's date is 2031-07-19.")


def test_secrets_are_replaced_before_anything_is_cut() -> None:
    old, new = f"key {'x ' * 200}", f"key {SECRET} {'x ' * 200}"
    assert SECRET[:9] not in describe_change(old, new)
    assert SECRET[:9] in describe_change(old, new, TextShown.FULL)
    assert describe_change(old, new, TextShown.NONE) == ""
    changed = describe_change(f"a {SECRET}", f"a {SECRET[:-1]}9")
    assert changed == "a secret changed"


@DETERMINISTIC
@given(old=st.text(max_size=400), new=st.text(max_size=400))
def test_is_a_short_line_whatever_the_texts(old: str, new: str) -> None:
    text = describe_change(old, new)
    assert len(text) <= 240
    assert text.isprintable()


def test_long_texts_take_no_time() -> None:
    old, new = ("".join(f"{w}{i} " for i in range(20_000)) for w in "ab")
    assert len(describe_change(old, new)) <= 160
