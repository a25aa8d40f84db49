"""Constrains answers to JSON of a schema, with llguidance.

The allowed ids depend on the ids so far, so each step waits for the one before it.
Constrained answers therefore decode more slowly than free ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import TYPE_CHECKING, Any, Self, cast

import llguidance.hf
import llguidance.numpy
import mlx.core as mx
import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from mlxlab.errors import RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["LIMITS", "OPTIONS", "JsonConstraint", "constraint_tokenizer", "refusal"]

#: Of the conversion. An unsure model writes white space without end.
OPTIONS = {"whitespace_flexible": False}
#: Of the compiled schema; the library's own refuse 500 optional properties.
LIMITS: dict[str, Any] = {"max_items_in_row": 20_000, "step_max_items": 200_000}

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
        limits = LLParserLimits(**LIMITS)
        try:
            grammar = LLMatcher.grammar_from_json_schema(
                dict(schema), overrides=cast("Any", OPTIONS)
            )
            problem = LLMatcher.validate_grammar(grammar, tokenizer, limits=limits)
        except (ValueError, RecursionError) as error:
            problem = str(error)
        if problem:
            raise refusal(problem)
        self._tokenizer, self._grammar = tokenizer, grammar
        self._matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
        self._mask = llguidance.numpy.allocate_token_bitmask(1, tokenizer.vocab_size)
        self._ids: list[int] = []
        self._fill()
        self._started = False

    def fresh(self) -> Self:
        """Return a copy for an answer; call it before the first step of this one."""
        other = copy(self)
        other._matcher = self._matcher.deep_copy()
        other._mask = self._mask.copy()
        other._ids = []
        return other

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        if self._started:
            self._ids.append(int(cast("int", tokens[-1].item())))
            self._matcher.consume_token(self._ids[-1])
            self._fill()
        self._started = True
        bits = np.unpackbits(self._mask.view(np.uint8), bitorder="little")
        allowed = np.zeros(logits.shape[-1], dtype=bool)
        allowed[: len(bits)] = bits[: len(allowed)]
        return mx.where(mx.array(allowed), logits, -float("inf"))

    def _fill(self) -> None:
        llguidance.numpy.fill_next_token_bitmask(self._matcher, self._mask, 0)
        if self._matcher.is_error():
            self._recompile()

    def _recompile(self) -> None:
        """Forget the states that long answers leave behind, which are limited."""
        matcher = LLMatcher(
            self._tokenizer, self._grammar, log_level=0, limits=LLParserLimits(**LIMITS)
        )
        matcher.consume_tokens(self._ids)
        llguidance.numpy.fill_next_token_bitmask(matcher, self._mask, 0)
        # llguidance stops on schemas that allow no next id or exceed its limits.
        if matcher.is_error():
            raise refusal(self._matcher.get_error())
        self._matcher = matcher


def refusal(problem: str) -> RequestError:
    """Shorten the library's error to one line, without its internal state."""
    line = " ".join(problem.partition("<state>")[0].split())
    line = line.replace("NoExtensionBias", "no JSON follows it")
    return RequestError(f"output_config.format.schema: {line[:_MOST_SAID]}")
