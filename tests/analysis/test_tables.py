"""Tables fit a terminal and cut no number."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pandas import DataFrame
from rich.console import Console

from mlxlab.analysis.tables import lay_out


def shown(frame: DataFrame, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(lay_out(frame, width), highlight=False)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


@given(
    columns=st.integers(1, 8),
    digits=st.integers(1, 7),
    name=st.text("abcdef:=,-", min_size=1, max_size=60),
    words=st.booleans(),
)
def test_numbers_are_whole_and_lines_fit(
    columns: int, digits: int, name: str, words: bool
) -> None:
    number = "9" * digits
    frame = DataFrame({"name": [name], **{f"c{i}": [number] for i in range(columns)}})
    if words:
        frame["words"] = "some words to be read"
    text = shown(frame)
    assert [word for word in text.split() if set(word) == {"9"}] == [number] * columns
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("name", ["static-prefix", "paged:block=16"])
def test_short_names_stay_whole_where_there_is_room(name: str) -> None:
    frame = DataFrame({"strategy": [name], **{f"c{i}": ["100.0%"] for i in range(7)}})
    assert name in shown(frame)
