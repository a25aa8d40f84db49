"""From text and extents to a prompt: token ids, and the segments that cover them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from mlxlab.models.encoder import Encoded, Encoder, join_encoded
from mlxlab.prompt import Prompt, Role, Segment
from mlxlab.rendering.chat_template import TemplateText
from mlxlab.rendering.extents import Layout
from mlxlab.rendering.marks import Extent
from mlxlab.rendering.thinking import Splice

__all__ = ["encode_prompt", "encode_text"]


def encode_prompt(
    encoder: Encoder,
    rendered: TemplateText,
    layout: Layout,
    splices: Iterable[Splice],
) -> Prompt:
    """Encode a rendered text, followed by the answer that the client began.

    Args:
        encoder: of the model that the prompt is for.
        rendered: text and conversation.
        layout: becomes the segments.
        splices: ids of signed thinking, in the order of the text.
    """
    tokens, starts = encode_text(encoder, rendered.text, splices)
    segments = _segments(layout.extents, starts)
    begun = rendered.conversation.begun
    if begun:
        more, _ = encoder.encode(begun.text)
        start = len(tokens)
        tokens = np.concatenate([tokens, more])
        segments += (Segment(begun.label, begun.role, start, len(tokens)),)
    return Prompt(tokens, segments, layout.exact)


def encode_text(encoder: Encoder, text: str, splices: Iterable[Splice]) -> Encoded:
    """Encode a text in which splices replace what was printed.

    Splices begin and end with tags, at which tokenizers cut anyway.

    Returns:
        Ids, and the first character of each, both of shape ``[n]``.
    """
    pieces: list[Encoded] = []
    position = 0
    for splice in splices:
        pieces.append(_encode_range(encoder, text, position, splice.start))
        pieces.append((splice.tokens, splice.starts))
        position = splice.stop
    pieces.append(_encode_range(encoder, text, position, len(text)))
    return join_encoded(pieces)


def _encode_range(encoder: Encoder, text: str, start: int, stop: int) -> Encoded:
    ids, starts = encoder.encode(text[start:stop])
    return ids, starts + start


def _segments(
    extents: tuple[Extent, ...], starts: NDArray[np.int64]
) -> tuple[Segment, ...]:
    """Cover all tokens: a token belongs to the block of its first character.

    Args:
        extents: in order, without overlap.
        starts: first character of every token, shape ``[n]``.
    """
    pieces: list[tuple[str, Role, int]] = []
    position = 0
    for extent in extents:
        if extent.start > position:
            pieces.append(("template", Role.TEMPLATE, position))
        pieces.append((extent.label, extent.role, extent.start))
        position = extent.stop
    pieces.append(("generation", Role.GENERATION, position))
    edges = [*np.searchsorted(starts, [p[2] for p in pieces]).tolist(), len(starts)]
    return tuple(
        Segment(label, role, start, stop)
        for (label, role, _), start, stop in zip(pieces, edges, edges[1:], strict=False)
        if stop > start
    )
