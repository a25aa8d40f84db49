"""The Messages API: requests as they were recorded."""

from __future__ import annotations

from collections.abc import Mapping

from mlxlab.replay.endpoints.dialect import Dialect, Json, Usage, read_count

__all__ = ["Messages", "read_usage"]

#: Recorded headers that a server may need to understand the body.
_KEPT = ("anthropic-", "x-claude-code-")
#: A server refuses requests that name no version of the API.
_VERSION = {"anthropic-version": "2023-06-01"}


class Messages(Dialect):
    """The Messages API."""

    path = "/v1/messages"

    def request(
        self, body: Mapping[str, Json], model: str, max_tokens: int = 1
    ) -> dict[str, Json]:
        own: dict[str, Json] = {"max_tokens": max_tokens, "stream": True}
        own |= {"model": model} if model else {}  # else the recorded one
        thinking = body.get("thinking")
        budget = (
            thinking.get("budget_tokens") if isinstance(thinking, Mapping) else None
        )
        if isinstance(budget, int) and budget >= max_tokens:
            own["thinking"] = {"type": "adaptive"}  # a budget has to be smaller
        return {**body, **own}

    def headers(self, recorded: Mapping[str, str]) -> dict[str, str]:
        kept = {k: v for k, v in recorded.items() if k.lower().startswith(_KEPT)}
        return _VERSION | kept

    def has_text(self, event: Mapping[str, Json]) -> bool:
        return event.get("type") == "content_block_delta"

    def is_end(self, event: Mapping[str, Json]) -> bool:
        return event.get("type") == "message_delta"

    def usage(self, event: Mapping[str, Json]) -> Usage | None:
        message = event.get("message") or event
        return read_usage(message.get("usage") or {})

    def generated(self, event: Mapping[str, Json]) -> int | None:
        if not self.is_end(event):
            return None
        return read_count((event.get("usage") or {}).get("output_tokens"))


def read_usage(usage: Mapping[str, Json]) -> Usage | None:
    """Return the prompt in the usage of a message, whose parts are disjoint."""
    reused = read_count(usage.get("cache_read_input_tokens"))
    others = ("cache_creation_input_tokens", "input_tokens")
    computed = sum(read_count(usage.get(name)) or 0 for name in others)
    prompt = (reused or 0) + computed
    return Usage(prompt, reused) if prompt else None
