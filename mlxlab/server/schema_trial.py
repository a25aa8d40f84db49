"""The trial of a JSON schema: a program for a process of its own, with limits.

It compiles a schema and writes some JSON of it, as an answer would. It imports nothing
of mlxlab, so that it starts in a tenth of a second. Its arguments are the seconds of a
processor and the bytes of memory that it may take. It reads a JSON object with
``schema``, ``options`` and ``limits`` and prints one line: what is wrong, or nothing.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import time
from contextlib import suppress
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

_WALKS = 4
_STEPS = 400
_WALKS_S = 0.3


class Bytes:
    """A tokenizer with a token for each byte, and one for the end."""

    eos_token_id = 256
    bos_token_id = None
    tokens = (*(bytes([value]) for value in range(256)), b"<end>")
    special_token_ids = (256,)

    def __call__(self, data: bytes) -> list[int]:
        return list(data)


def find_problem(schema: Any, options: Any, limits: dict[str, Any]) -> str:
    """Return why a schema cannot be held; empty if it can."""
    tokenizer = LLTokenizer(TokenizerWrapper(Bytes()))
    bounds = LLParserLimits(**limits)
    grammar = LLMatcher.grammar_from_json_schema(schema, overrides=options)
    problem = LLMatcher.validate_grammar(grammar, tokenizer, limits=bounds)
    if problem:
        return problem
    start = LLMatcher(tokenizer, grammar, log_level=0, limits=bounds)
    end = time.monotonic() + _WALKS_S
    for seed in range(_WALKS):
        matcher, chooser = start.deep_copy(), random.Random(seed)
        for _ in range(_STEPS):
            allowed = _allowed(matcher)
            if matcher.is_error():
                return matcher.get_error()
            if not allowed or time.monotonic() > end:
                break
            # The first allowed byte is often the one that opens or ends a value.
            choices = allowed[:2] if seed % 2 else allowed
            matcher.consume_token(chooser.choice(choices))
    return ""


def _allowed(matcher: LLMatcher) -> list[int]:
    return [token for token, bias in enumerate(matcher.compute_logit_bias()) if bias]


def main() -> None:
    """Read the schema from standard input."""
    cpu_s, memory = map(int, sys.argv[1:])
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    with suppress(ValueError, OSError):  # not every system has this limit
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    try:
        problem = find_problem(**json.load(sys.stdin))
    except (ValueError, RecursionError) as error:
        problem = str(error)
    sys.stdout.write(problem)


if __name__ == "__main__":
    main()
