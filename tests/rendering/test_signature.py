"""Signatures: every id comes back; nothing else is taken for one."""

from base64 import urlsafe_b64decode, urlsafe_b64encode

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxlab.rendering.thinking import read_signature, sign

IDS = st.lists(st.integers(0, 2**31 - 1), max_size=200)


@given(IDS)
def test_ids_come_back(ids: list[int]) -> None:
    read = read_signature(sign(ids, "abc"), "abc")
    assert read is not None
    assert read.dtype == np.int32
    assert read.tolist() == ids


@given(IDS)
def test_another_tokenizer_reads_nothing(ids: list[int]) -> None:
    assert read_signature(sign(ids, "abc"), "abd") is None


@given(IDS, st.integers(0), st.integers(1, 255))
def test_damage_is_noticed(ids: list[int], at: int, change: int) -> None:
    head, _, tail = sign(ids, "abc").partition(".")
    data = bytearray(urlsafe_b64decode(tail))
    data[at % len(data)] ^= change
    read = read_signature(f"{head}.{urlsafe_b64encode(bytes(data)).decode()}", "abc")
    assert read is None or read.tolist() == ids


@pytest.mark.parametrize("foreign", ["", "EqQBCkYI", "mlxlab1.", "mlxlab1.%%%", "é"])
def test_foreign_signatures_are_left_alone(foreign: str) -> None:
    assert read_signature(foreign, "abc") is None


def test_a_bomb_is_not_unpacked() -> None:
    bomb = sign([0] * 50_000_000, "abc")
    assert len(bomb) < 10**6
    assert read_signature(bomb, "abc") is None
