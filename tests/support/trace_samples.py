"""Requests in the form that the client sends."""

from typing import Any

SESSION = "02281126-eb86-4b55-a97f-a1372eeac4b3"
HEADERS = {
    "User-Agent": "client/1.0",
    "X-Claude-Code-Session-Id": SESSION,
    "x-api-key": "sk-dummy",
    "Authorization": "Bearer abc123def456ghi789",
    "Cookie": "a=b",
    "anthropic-version": "2023-06-01",
}
MARK = {"type": "ephemeral"}


def request(turns: int = 1, output: str = "ok") -> dict[str, Any]:
    """Return the request after ``turns`` tool results, its last block marked."""
    tools = [
        {"name": f"Tool{i}", "description": "does it " * 100, "input_schema": {"b": 1}}
        for i in range(10)
    ]
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Fix it."},
        {"role": "system", "content": "The day is long. " * 50},
    ]
    for turn in range(turns):
        call = {
            "type": "tool_use",
            "id": f"t{turn}",
            "name": "Tool1",
            "input": {"n": turn},
        }
        result = {
            "type": "tool_result",
            "tool_use_id": f"t{turn}",
            "content": f"{turn} {output}",
        }
        messages += [
            {"role": "assistant", "content": [call]},
            {"role": "user", "content": [result]},
        ]
    if turns:
        messages[-1]["content"][-1]["cache_control"] = MARK
    return {
        "model": "m",
        "system": [{"type": "text", "text": "You help. " * 200, "cache_control": MARK}],
        "tools": tools,
        "messages": messages,
        "max_tokens": 100,
        "stream": True,
    }
