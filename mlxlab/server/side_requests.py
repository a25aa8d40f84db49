"""Which requests are turns of a conversation, and which are beside it."""

from __future__ import annotations

from collections import OrderedDict

from mlxlab.limits import EXPLAINED_SEQUENCES

__all__ = ["SideRequests"]


class SideRequests:
    """Recognizes side requests, such as one for a title, as they arrive.

    They ask for JSON, or lack the tools that their session had before.
    """

    def __init__(self) -> None:
        self._equipped: OrderedDict[tuple[str, str], None] = OrderedDict()

    def take(
        self, credential: str, session: str, *, has_tools: bool, wants_json: bool
    ) -> bool:
        """Note a request, and return whether it is a side request.

        Args:
            credential: of the client.
            session: its session, sub-agents included.
            has_tools: whether the request offers tools.
            wants_json: whether the answer must be JSON of a schema.
        """
        own = credential, session
        if has_tools:
            self._equipped[own] = None
            self._equipped.move_to_end(own)
            if len(self._equipped) > EXPLAINED_SEQUENCES:
                self._equipped.popitem(last=False)
        return wants_json or (own in self._equipped and not has_tools)
