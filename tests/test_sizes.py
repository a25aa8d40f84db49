from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxlab.errors import ConfigError
from mlxlab.sizes import Size, format_size, parse_size, read_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64", 64),
        ("96KiB", 98_304),
        (" 4 GiB ", 4 << 30),
        ("1.5GiB", 3 << 29),
        ("0.5KiB", 512),
        ("999999999999999999", 999_999_999_999_999_999),
    ],
)
def test_reads_bytes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "1TB", "1gib", "GiB", "1e9", "0.1"])
def test_refuses_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is no size; give bytes, or 96KiB"):
        parse_size(text)


@given(st.integers(1, 10**18 - 1))
def test_what_is_written_is_read(size: int) -> None:
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(("size", "read"), [(16, 16), ("16GiB", 16 << 30)])
def test_an_argument_is_bytes_or_text_with_a_unit(size: Size, read: int) -> None:
    assert read_size(size, "memory") == read


@pytest.mark.parametrize("size", ["16", " 16 ", 0, -1, "16GB", ""])
def test_an_argument_without_a_unit_is_refused(size: Size) -> None:
    with pytest.raises(ConfigError, match=r"memory .*: give bytes as a number, or a"):
        read_size(size, "memory")
