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

_MOST_SAID = 300


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
        RequestError: a schema that cannot be enforced, found out now or in the course
            of the answer. Nothing is fetched for one.
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
        # It gives up on a schema that nothing follows, or that grows beyond its limits.
        if self._matcher.is_error():
            raise _refusal(self._matcher.get_error())


def _refusal(problem: str) -> RequestError:
    """The library's complaint in one line, without the dump of its state."""
    line = " ".join(problem.partition("<state>")[0].split())
    line = line.replace("NoExtensionBias", "no JSON follows it")
    return RequestError(f"output_config.format.schema: {line[:_MOST_SAID]}")
