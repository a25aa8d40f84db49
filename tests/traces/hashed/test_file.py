from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxlab.errors import TraceError
from mlxlab.prompt import Role, Segment, Tokens
from mlxlab.traces.hashed.file import HashedFile, Hasher, write_hashed
from mlxlab.traces.hashed.trace import HashedRequest
from tests.support.traffic import DETERMINISTIC


def ids(*values: int) -> Tokens:
    return np.array(values, np.int32)


def request(
    hasher: Hasher, tokens: Tokens, answer: Tokens, cut: int = 3, agent: str = ""
) -> HashedRequest:
    segments = [
        Segment("system[0]", Role.SYSTEM, 0, min(cut, len(tokens))),
        Segment("messages[0]", Role.USER, min(cut, len(tokens)), len(tokens)),
    ]
    parts = [part for part in segments if len(part)]
    return hasher.request(1.5, tokens, answer, parts, session="1", agent=agent)


@DETERMINISTIC
@given(
    sequences=st.lists(
        st.tuples(
            st.lists(st.integers(0, 2), min_size=1, max_size=20),
            st.lists(st.integers(0, 2), max_size=6),
            st.integers(0, 9),
        ),
        min_size=2,
        max_size=5,
    )
)
def test_hashes_are_equal_when_what_they_stand_for_is(
    sequences: list[tuple[list[int], list[int], int]],
) -> None:
    hasher = Hasher(2, b"salt")
    prefixes: dict[int, tuple[int, ...]] = {}
    contents: dict[int, tuple[int, ...]] = {}
    for prompt, answer, cut in sequences:
        made = request(hasher, ids(*prompt), ids(*answer), cut)
        computed = [*prompt, *answer][: len(prompt) + max(len(answer) - 1, 0)]
        assert len(made.chained) == len(computed) // 2
        for i, number in enumerate(made.chained.tolist()):
            prefix = tuple(computed[: 2 * i + 2])
            assert prefixes.setdefault(number, prefix) == prefix
        assert len(set(prefixes.values())) == len(prefixes)
        start = 0
        for (_, tokens), numbers in zip(made.roles, made.content, strict=True):
            for i, number in enumerate(numbers.tolist()):
                piece = tuple(prompt[start : start + tokens][2 * i : 2 * i + 2])
                assert contents.setdefault(number, piece) == piece
            start += tokens
        assert start == len(prompt)
    assert len(set(contents.values())) == len(contents)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_what_is_written_is_read(name: str, tmp_path: Path) -> None:
    hasher = Hasher(2, b"salt")
    made = [
        request(hasher, ids(1, 2, 3, 4, 5), ids(6, 7)),
        request(hasher, ids(1, 2, 3, 9, 9, 9), ids(), agent="1"),
        request(hasher, ids(1), ids()),
    ]
    path = tmp_path / name
    write_hashed(path, hasher, made, {"tokenizer": "t"})
    again = tmp_path / f"b{name}"
    write_hashed(again, hasher, made, {"tokenizer": "t"})
    trace = HashedFile().open(path)
    assert (trace.name, trace.unit) == ("a", 2)
    for read, wrote in zip(trace, made, strict=True):
        for field in ("t", "tokens", "answer", "roles", "session", "agent"):
            assert getattr(read, field) == getattr(wrote, field)
        assert read.chained.tolist() == wrote.chained.tolist()
        pairs = zip(read.content, wrote.content, strict=True)
        assert all(a.tolist() == b.tolist() for a, b in pairs)


def test_a_salt_makes_hashes_ones_own() -> None:
    def hashes(salt: bytes) -> set[bytes]:
        hasher = Hasher(2, salt)
        request(hasher, ids(1, 2, 3, 4), ids())
        return {*hasher.chained, *hasher.content}

    assert hashes(b"a") == hashes(b"a")
    assert not hashes(b"a") & hashes(b"b")
    assert hashes(b"x" * 1000)


HEADER = '{"kind":"hashed","version":1,"unit":2}\n'
HASHES = '{"kind":"chained","hashes":["aa","bb"]}\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", ":1: line: Invalid JSON"),
        ('{"kind":"trace","version":1}\n', ":1: kind: Input should be 'hashed'"),
        ('{"kind":"hashed","version":2,"unit":2}\n', ":1: version: Input should be 1"),
        ('{"kind":"hashed","version":1,"unit":0}\n', ":1: unit: Input should be"),
        (HEADER + "{\n", ":2: line: Invalid JSON"),
        (HEADER + '{"kind":"other"}\n', ":2: line: Input tag 'other'"),
        (
            HEADER + HASHES + '{"kind":"request","t":0,"session":"1","tokens":4,'
            '"chained":[[1,2]]}\n',
            ":3: a run beyond the 2 hashes so far",
        ),
        (HEADER + '{"kind":"request","t":0,"session":"1"}\n', "tokens: Field required"),
    ],
)
def test_a_damaged_file_is_refused(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(TraceError) as caught:
        list(HashedFile().open(path))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="Is a directory; give a hashed trace"):
        HashedFile().open(tmp_path)
    with pytest.raises(TraceError, match="give a file to write"):
        write_hashed(tmp_path, Hasher(2, b""), [], {})
