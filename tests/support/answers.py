"""Answers to decode: any text in any tokens, and the meaning of valid ones."""

import codecs
import json
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from hypothesis import strategies as st
from mlx_lm.tool_parsers import pythonic, qwen3_coder

from mlxlab.decoding import Decoder, Event, Grammar, join_pieces
from mlxlab.decoding.calls import CallFormat, ParsedCalls, Tools
from mlxlab.decoding.json_calls import JsonCalls
from mlxlab.decoding.xml_calls import XmlCalls

JSON = JsonCalls("<tool_call>", "</tool_call>")
XML = XmlCalls("<tool_call>", "</tool_call>", qwen3_coder.parse_tool_call)
PYTHONIC = ParsedCalls(
    pythonic.tool_call_start, pythonic.tool_call_end, pythonic.parse_tool_call
)
FORMATS: Sequence[CallFormat] = (JSON, XML, PYTHONIC)


class Chunks:
    """A detokenizer whose tokens are chunks of bytes; an id is the chunk's index."""

    def __init__(self, chunks: Sequence[bytes]) -> None:
        self._chunks = chunks
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        return self._decoder.decode(self._chunks[token])

    def finish(self) -> str:
        return self._decoder.decode(b"", True)


def decode_chunks(
    chunks: Sequence[bytes],
    calls: CallFormat | None = JSON,
    *,
    thinking: bool = False,
    tools: Tools = (),
    stop: Sequence[str] = (),
) -> list[Event]:
    """Return the events of an answer of tokens ``chunks``, adjacent pieces joined."""
    grammar = Grammar(partial(Chunks, chunks), "<think>", "</think>", calls=calls)
    decoder = Decoder(grammar, thinking=thinking, tools=tools, stop=stop)
    events = [event for token in range(len(chunks)) for event in decoder.feed(token)]
    return join_pieces(events + decoder.finish())


def decode(text: str, calls: CallFormat | None = JSON, **options: Any) -> list[Event]:
    """Return the events of an answer that is one token."""
    return decode_chunks([text.encode()], calls, **options)


@st.composite
def cuts(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """Cut ``data`` anywhere, also inside characters."""
    if draw(st.booleans()):
        return [data[i : i + 1] for i in range(len(data))]
    points = draw(st.sets(st.integers(0, len(data)), max_size=30))
    edges = sorted({0, len(data)} | points)
    return [data[start:stop] for start, stop in pairwise(edges)]


#: Parts of answers: whole tags and near misses.
FRAGMENTS = [
    *("<think>", "</think>", "<think", "</thi", "<tool_call>", "</tool_call>"),
    *("<tool_call", "</tool", '{"name": "', "Bash", '", "arguments": {', '"a": '),
    *('"', "\\", "\\n", "\\d", "\\u00e", "\\ud83d", "\\ude00", "}", "{", "[", "]"),
    *(",", ":", "1", "-0.5e3", "true", "nul", "null", "\n", "\n\n", "\r\n", " ", "\t"),
    *("é", "😀", "\x00", "\ufffd", "word", "STOP", "STO", "OPS", "<", ">"),
    *("<function=", "Bash>\n", "<parameter=", "a>\n", "</parameter>", "</function>"),
    *("<|tool_call_start|>", "[f(a=1)]", "<|tool_call_end|>"),
]
SOUP = st.lists(st.sampled_from(FRAGMENTS), max_size=25).map("".join)

STRING = st.text(
    st.characters(exclude_categories=["Cs"]), max_size=8
) | st.sampled_from(
    ["</tool_call>", "<tool_call>", "a\nb", "\n", "null", "\\d", '"', "😀", "[1]"]
)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | STRING,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(STRING, inner, max_size=3)
    ),
    max_leaves=6,
).filter(lambda value: "Infinity" not in json.dumps(value))
ARGUMENTS = st.dictionaries(STRING, VALUE, max_size=4)
NAME = st.sampled_from(["Bash", "mcp__files__read", "é", "f"])


def json_call(name: str, arguments: Mapping[str, Any], **style: Any) -> str:
    written = json.dumps({"name": name, "arguments": arguments}, **style)
    return f"<tool_call>\n{written}\n</tool_call>"


def xml_call(name: str, parameters: Mapping[str, str]) -> str:
    body = "".join(
        f"<parameter={key}>\n{value}\n</parameter>\n"
        for key, value in parameters.items()
    )
    return f"<tool_call>\n<function={name}>\n{body}</function>\n</tool_call>"


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """Draw a well-formed answer with at most one change."""
    call = draw(
        st.builds(json_call, NAME, ARGUMENTS)
        | st.builds(
            xml_call, NAME, st.dictionaries(st.sampled_from("abc"), STRING, max_size=3)
        )
    )
    text = draw(st.sampled_from(["", "<think>\nhm\n</think>\n\n"])) + f"Look:\n{call}"
    text += draw(st.sampled_from(["", f"\n{call}", "\nSTOP", " and\n", "\n\n"]))
    start = draw(st.integers(0, len(text)))
    stop = draw(st.integers(start, min(start + 5, len(text))))
    return text[:start] + draw(st.sampled_from(["", *FRAGMENTS])) + text[stop:]


ANY_ANSWER = SOUP | damaged()
