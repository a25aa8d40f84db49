"""Answers that must be JSON of a schema, with llguidance.

Which ids may come next depends on the ids so far, so each step waits for the one
before it: constrained answers decode more slowly than free ones.
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


def constraint_tokenizer(tokenizer: PreTrainedTokenizerBase) -> LLTokenizer:
    """The tokenizer as llguidance knows it; takes about a second, so keep it."""
    return llguidance.hf.from_tokenizer(cast("Any", tokenizer))


class JsonConstraint:
    """Lets through only ids that can still become JSON of ``schema``.

    A logits processor for one answer.

    Args:
        tokenizer: from :func:`constraint_tokenizer`.
        schema: a JSON schema.

    Raises:
        RequestError: a schema that cannot be enforced. Nothing is fetched for one.
    """

    def __init__(self, tokenizer: LLTokenizer, schema: Mapping[str, Any]) -> None:
        try:
            # White space without end is what a model falls into when it is unsure.
            grammar = LLMatcher.grammar_from_json_schema(
                dict(schema), overrides={"whitespace_flexible": False}
            )
            problem = LLMatcher.validate_grammar(grammar, tokenizer)
        except (ValueError, RecursionError) as error:
            problem = str(error)
        if problem:
            first = problem.splitlines()[0]
            raise RequestError(f"output_config.format.schema: {first}")
        self._matcher = LLMatcher(tokenizer, grammar)
        self._mask = llguidance.numpy.allocate_token_bitmask(1, tokenizer.vocab_size)
        self._started = False

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        if self._started:
            self._matcher.consume_token(int(cast("int", tokens[-1].item())))
        self._started = True
        llguidance.numpy.fill_next_token_bitmask(self._matcher, self._mask, 0)
        bits = np.unpackbits(self._mask.view(np.uint8), bitorder="little")
        allowed = np.zeros(logits.shape[-1], dtype=bool)
        allowed[: len(bits)] = bits[: len(allowed)]
        return mx.where(mx.array(allowed), logits, -float("inf"))
