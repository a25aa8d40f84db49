"""From text to extents: which characters of a rendered text came from which block.

A template is a program, so its output cannot be parsed back. The conversation is
rendered a second time, with invisible marks around the text of each block. If the
marked text without its marks equals the plain one, the marks show where the blocks are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mlxlab.prompt import Role
from mlxlab.rendering.chat_template import ChatTemplate, TemplateText
from mlxlab.rendering.conversation import Conversation
from mlxlab.rendering.marks import Extent, Marks
from mlxlab.rendering.template_process import TemplateRefusedError

__all__ = ["Layout", "find_marked", "locate_blocks"]

_COARSE = "segments: coarse, the template does not print every block as it is"


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the blocks are in a text.

    Attributes:
        extents: in order, without overlap.
        exact: False if there is one extent for each turn instead of each block.
    """

    extents: tuple[Extent, ...] = ()
    exact: bool = True

    @property
    def notes(self) -> tuple[str, ...]:
        """The limits of the layout, for the report."""
        return () if self.exact else (_COARSE,)


def locate_blocks(template: ChatTemplate, rendered: TemplateText) -> Layout:
    """Locate all blocks in a rendered text, or all turns if marks get lost."""
    extents = find_marked(template, rendered.conversation, rendered.text)
    if extents is None:
        return Layout(_find_turns(template, rendered), exact=False)
    return Layout(extents)


def find_marked(
    template: ChatTemplate,
    conversation: Conversation,
    text: str,
    generation: bool = True,
) -> tuple[Extent, ...] | None:
    """Locate blocks by their marks.

    Args:
        template: renders the marked conversation.
        conversation: whose blocks are located.
        text: the same conversation, rendered without marks.
        generation: whether ``text`` ends with the opening of the answer.

    Returns:
        Extents in order; None if the template changes marked texts.
    """
    marks = Marks()
    try:
        marked = template.fill(conversation, marks.open, generation)
    except TemplateRefusedError:
        return None
    return marks.locate(marked, text)


def _find_turns(template: ChatTemplate, rendered: TemplateText) -> tuple[Extent, ...]:
    """Return one extent per turn, found by rendering ever longer conversations."""
    extents: list[Extent] = []
    turns = rendered.conversation.turns
    for n in range(1, len(turns) + 1):
        shorter = replace(rendered.conversation, turns=turns[:n])
        try:
            text = template.fill(shorter, generation=False)
        except TemplateRefusedError:
            continue
        start = extents[-1].stop if extents else 0
        if len(text) > start and rendered.text.startswith(text):
            extents.append(Extent(f"turns[{n - 1}]", Role.UNKNOWN, start, len(text)))
    return tuple(extents)
