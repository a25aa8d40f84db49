"""Placements of other projects, under their names.

Each places checkpoints as its project does, written in words of the same grammar where
they suffice. What stays of them is decided here by one eviction for all placements, so
that a comparison is one of places. Docstrings say where a project evicts otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import ClassVar

from mlxlab.prompt import GLUE_ROLES, Prompt, Role
from mlxlab.strategies.placements.base import Placement, parse_placement, register
from mlxlab.strategies.placements.blocks import System
from mlxlab.strategies.placements.every import Every
from mlxlab.strategies.placements.messages import PromptEnd, turn_starts

__all__ = [
    "LlamaCpp",
    "LmStudio",
    "MlxLm",
    "Ollama",
    "Omlx",
    "Preset",
    "RapidMlx",
    "SgLang",
    "Vllm",
]


class Preset(Placement):
    """A placement that other words describe.

    Attributes:
        words: as specs join them.
    """

    words: ClassVar[str]

    def __init__(self, number: int = 0, unit: int = 1) -> None:
        super().__init__(number, unit)
        self._parts = parse_placement(self.words, unit)
        self.answer = self._parts.answer

    def places(self, prompt: Prompt, match: int) -> Iterable[int]:
        """See :meth:`Placement.places`."""
        return self._parts.places(prompt, match)


@register
class Omlx(Preset):
    """At the ends of blocks, which oMLX enlarges for models with recurrent state.

    A block holds 2,048 tokens, 4,096 on some Macs with 64 GB or more. oMLX evicts whole
    blocks, the least recently used first, and may keep them on disk.
    """

    name = "omlx"
    summary = "oMLX: the ends of blocks of 2,048 tokens"
    source = "oMLX 0.6.4, issues 3443 and 3456"
    words = "every2048"


@register
class LlamaCpp(Preset):
    """In front of user messages and near the end of the prompt, 32 of each slot.

    The last user message has one however near it is to another. Those near the end
    stand 4 tokens, and one micro-batch of 512 more, in front of it. A slot drops its
    oldest; whole slots that wait are kept within ``--cache-ram``.
    """

    name = "llama.cpp"
    summary = "llama.cpp: user messages 8,192 tokens apart, and two near the end"
    source = "llama.cpp b10434, tools/server/server-context.cpp, pulls 20288 and 22929"
    words = "turns8192+tail516+tail4"
    most = 32

    def places(self, prompt: Prompt, match: int) -> Iterable[int]:
        return [*super().places(prompt, match), *list(turn_starts(prompt))[-1:]]


@register
class Ollama(Preset):
    """On a coarse grid, near the end, where prompts part, and where the answer ends.

    Ollama keeps snapshots within 8 GiB, the least recently used go first.
    """

    name = "ollama"
    summary = "Ollama: every 8,192 tokens, 4 before the end, at branches"
    source = "Ollama 0.33, MLX runner, pull 15058, issue 18267"
    words = "every8192+tail4+branches+answer"


@register
class LmStudio(Preset):
    """At the ends of prefill steps and the last whole chunk of 256 tokens.

    LM Studio keeps the end of the latest answer only. It drops the largest records
    first, and all when the model is unloaded.
    """

    name = "lm-studio"
    summary = "LM Studio: every 2,048 tokens, and the last chunk of 256"
    source = "mlx-engine 00d313e, mlx_engine/model_kit/batched_vision"
    words = "every2048+last256+answer"


@register
class RapidMlx(Placement):
    """Four on a grid, spread over the prompt; the last turn's start, and the answer.

    Where a fifth comes, the one nearest behind another goes, never the newest. Each of
    eight stored sequences has four of its own; the least recently used sequence goes.
    """

    name = "rapid-mlx"
    summary = "Rapid-MLX: four on a grid of 2,048 tokens, and a message boundary"
    source = "Rapid-MLX, vllm_mlx/hybrid_state_checkpoints.py, pulls 435 and 3435"
    answer = True

    def places(self, prompt: Prompt, match: int) -> Iterable[int]:
        grid = Every(-(-2048 // self.unit)).places(prompt, match)
        return [*_thinned(grid, 4), *list(turn_starts(prompt))[-1:]]


@register
class Vllm(Preset):
    """At the ends of prefill steps and the last whole block.

    A block is as large as a state: 528 tokens for Qwen3.5. A step holds up to 8,192
    tokens in whole blocks. Blocks of state are evicted like any others, the least
    recently used first.
    """

    name = "vllm"
    summary = "vLLM: the last block of 528 tokens, and the ends of prefill steps"
    source = "vLLM 0.19, --mamba-cache-mode align, pull 30877, issue 40696"
    words = "every7920+last528"


@register
class SgLang(Preset):
    """At the last multiple of 64 tokens, where prompts part, and at the answer's end.

    SGLang moves branches down to a multiple of 64, and the answer's end to one of 256,
    so that it resumes a little earlier. It evicts states apart from keys and values,
    the least recently used first.
    """

    name = "sglang"
    summary = "SGLang: the last multiple of 64 tokens, branches, the answer"
    source = "SGLang, --mamba-scheduler-strategy extra_buffer, pull 14792"
    words = "last64+branches+answer"


@register
class MlxLm(Placement):
    """In front of the prompt's last token, and at the answer.

    Where the user spoke last, also at the ends of system text and message. So a tool
    loop that drops its thinking has none to go on from. The server keeps whole
    sequences, ten by default; the least recently used goes, system text last.
    """

    name = "mlx-lm"
    summary = "mlx-lm: the last token, the answer; system text if the user spoke"
    source = "mlx-lm 0.32.2, mlx_lm/server.py and BatchGenerator.insert_segments"
    answer = True

    def places(self, prompt: Prompt, match: int) -> Iterable[int]:
        last = len(prompt) - 1
        asked = [s.role for s in prompt.segments if s.role not in GLUE_ROLES]
        if asked[-1:] != [Role.USER]:
            return (last,)
        spoken = PromptEnd().places(prompt, match)
        return [*System().places(prompt, match), *spoken, last]


def _thinned(places: Iterable[int], most: int) -> list[int]:
    """Take places one by one; beyond ``most``, drop the nearest behind another."""
    kept: list[int] = []
    for place in places:
        kept.append(place)
        if len(kept) > most:
            gaps = [stop - start for start, stop in pairwise([0, *kept[:-1]])]
            del kept[gaps.index(min(gaps))]
    return kept
