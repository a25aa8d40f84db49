"""A model's grammar: its tags, its tool calls, its detokenizer.

The grammar is inferred by mlx-lm. mlx-lm, and with it mlx, is imported only on use.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlxlab.backend import prepare
from mlxlab.decoding.calls import CallFormat, ParsedCalls
from mlxlab.decoding.detokenizer import Detokenizer, detokenizer_factory
from mlxlab.decoding.json_calls import JsonCalls
from mlxlab.decoding.xml_calls import XmlCalls
from mlxlab.models.refusal import refusing

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    from mlxlab.models.folder import ModelFolder

__all__ = ["Grammar"]


@dataclass(frozen=True, slots=True)
class Grammar:
    """The syntax of a model's answers.

    Attributes:
        detokenizer: makes a fresh detokenizer for each answer.
        think_start: tag that opens thinking; empty if the model does not think.
        think_end: tag that closes thinking.
        think_start_ids: ids of ``think_start``.
        think_end_ids: ids of ``think_end``.
        calls: the format of tool calls, if the model has one.
        markers: strings of the template that are not part of the text.
    """

    detokenizer: Callable[[], Detokenizer]
    think_start: str = ""
    think_end: str = ""
    think_start_ids: tuple[int, ...] = ()
    think_end_ids: tuple[int, ...] = ()
    calls: CallFormat | None = None
    markers: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: ModelFolder) -> Grammar:
        """Return the grammar that mlx-lm infers from a model's tokenizer and template.

        This takes as long as loading a tokenizer, so keep the result.

        Raises:
            ModelError: mlx-lm cannot load the tokenizer.
        """
        with refusing(model.name, "mlx-lm cannot load its tokenizer"):
            tokenizer = _load(model)
            return cls(
                detokenizer_factory(tokenizer),
                tokenizer.think_start or "",
                tokenizer.think_end or "",
                tuple(tokenizer.think_start_tokens or ()),
                tuple(tokenizer.think_end_tokens or ()),
                _call_format(tokenizer),
                tuple(tokenizer.structural_markers),
            )

    def opens_in_thinking(self, ids: Iterable[int]) -> bool:
        """Return whether the end of a prompt leaves thinking open.

        Args:
            ids: ids of the generation prompt. Tags in user text do not count.
        """
        tail = [int(token) for token in ids]
        return _last(tail, self.think_start_ids) > _last(tail, self.think_end_ids)

    def call_opening(self, name: str | None = None) -> str:
        """Return the text that opens a call of the tool ``name``, or of any tool.

        An answer that is forced to begin with this text continues as a call. The
        decoder
        must be fed its ids too. Empty if the model has no tool calls.
        """
        return self.calls.opening(name) if self.calls else ""


def _load(model: ModelFolder) -> TokenizerWrapper:
    prepare()
    from mlx_lm.tokenizer_utils import load

    options = {
        "local_files_only": True,
        "model_max_length": sys.maxsize,
        "trust_remote_code": False,
    }
    return load(model.path, options)


def _call_format(tokenizer: TokenizerWrapper) -> CallFormat | None:
    if not tokenizer.has_tool_calling:
        return None
    start, end = tokenizer.tool_call_start, tokenizer.tool_call_end
    parse = tokenizer.tool_parser
    match parse.__module__.rpartition(".")[2]:
        case "json_tools":
            return JsonCalls(start, end)
        case "qwen3_coder":
            return XmlCalls(start, end, parse)
        case _:
            return ParsedCalls(start, end, parse)


def _last(ids: list[int], sought: tuple[int, ...]) -> int:
    """Return the last index of ``sought`` in ``ids``, or -1."""
    length = len(sought)
    if not length:
        return -1
    starts = range(len(ids) - length, -1, -1)
    return next((i for i in starts if tuple(ids[i : i + length]) == sought), -1)
