"""Constrains answers to JSON of a schema, with llguidance.

The allowed ids depend on the ids so far, so each step waits for the one before it.
Constrained answers therefore decode more slowly than free ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import llguidance.hf
import llguidance.numpy
import mlx.core as mx
import numpy as np
from llguidance import LLMatcher, LLTokenizer

from mlxlab.errors import RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["JsonConstraint", "constraint_tokenizer"]

_MOST_SAID = 300


def constraint_tokenizer(tokenizer: PreTrainedTokenizerBase) -> LLTokenizer:
    """Convert a tokenizer for llguidance; takes about a second, so keep the result."""
    return llguidance.hf.from_tokenizer(cast("Any", tokenizer))


class JsonConstraint:
    """A logits processor that keeps an answer within a JSON schema.

    It allows only ids that can still become such JSON. It serves one answer.

    Args:
        tokenizer: from :func:`constraint_tokenizer`.
        schema: a JSON schema.

    Raises:
        RequestError: the schema cannot be enforced. Some schemas fail only during
            the answer. References are never fetched.
    """

    def __init__(self, tokenizer: LLTokenizer, schema: Mapping[str, Any]) -> None:
        try:
            # An unsure model writes white space without end.
            grammar = LLMatcher.grammar_from_json_schema(
                dict(schema), overrides={"whitespace_flexible": False}
            )
            problem = LLMatcher.validate_grammar(grammar, tokenizer)
        except (ValueError, RecursionError) as error:
            problem = str(error)
        if problem:
            raise _refusal(problem)
        self._matcher = LLMatcher(tokenizer, grammar, log_level=0)
        self._mask = llguidance.numpy.allocate_token_bitmask(1, tokenizer.vocab_size)
        self._fill()
        self._started = False

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        if self._started:
            self._matcher.consume_token(int(cast("int", tokens[-1].item())))
            self._fill()
        self._started = True
        bits = np.unpackbits(self._mask.view(np.uint8), bitorder="little")
        allowed = np.zeros(logits.shape[-1], dtype=bool)
        allowed[: len(bits)] = bits[: len(allowed)]
        return mx.where(mx.array(allowed), logits, -float("inf"))

    def _fill(self) -> None:
        llguidance.numpy.fill_next_token_bitmask(self._matcher, self._mask, 0)
        # llguidance stops on schemas that allow no next id or exceed its limits.
        if self._matcher.is_error():
            raise _refusal(self._matcher.get_error())


def _refusal(problem: str) -> RequestError:
    """Shorten the library's error to one line, without its internal state."""
    line = " ".join(problem.partition("<state>")[0].split())
    line = line.replace("NoExtensionBias", "no JSON follows it")
    return RequestError(f"output_config.format.schema: {line[:_MOST_SAID]}")
