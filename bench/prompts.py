"""The requests of the loads: English of a recorded session, cut to size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from mlxlab.models.folder import ModelFolder
from mlxlab.traces import load_trace

__all__ = ["Prompts", "Sizes", "usual_answer"]

Body: TypeAlias = dict[str, Any]

#: The window that a prompt leaves for its answer, as a share.
_SPARE = 4
_THOUSAND = 1000
#: Weights in bytes of a model that is fast without an accelerator.
_SMALL = 2**26
#: Length of a long prompt, in system texts that agents share.
_SHARED = 12
_TASKS = (
    "Find where the configuration is read and explain every step.",
    "Search for tests that are skipped and list the reasons.",
    "Look for functions that nothing calls.",
    "Explain how errors reach the user.",
    "List the packages that the project needs, and why.",
    "Find all places that write files.",
    "Describe how the command line is parsed.",
    "Look for names that say too little, and propose better ones.",
)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the loads are.

    Attributes:
        agents: numbers of agents that ask at once.
        answer: tokens of an agent's answer; one that is alone has four times as many.
        long: tokens of the long prompt.
    """

    agents: tuple[int, ...] = (1, 2, 4, 8)
    answer: int = 256
    long: int = 16_000

    @property
    def shared(self) -> int:
        """Tokens of the system text that agents share."""
        return self.long // _SHARED

    def within(self, window: int) -> Sizes:
        """Return sizes with a long prompt for which a model's window has room."""
        room = window - window // _SPARE
        long = min(self.long, max(room // _THOUSAND * _THOUSAND, room % _THOUSAND))
        return Sizes(self.agents, self.answer, long)


def usual_answer(folder: ModelFolder) -> int:
    """Return tokens of an answer that take seconds, not minutes, on two CPUs."""
    weights = sum(file.stat().st_size for file in folder.path.glob("*.safetensors"))
    return Sizes().answer if weights < _SMALL else Sizes().answer // 8


class Prompts:
    """Makes Messages requests of a known size, decoded greedily.

    Args:
        folder: counts the tokens.
        sizes: of the loads.
    """

    def __init__(self, folder: ModelFolder, sizes: Sizes) -> None:
        self.sizes = sizes
        self._tokenizer = folder.tokenizer
        text = "\n".join(dict.fromkeys(_texts()))
        self._ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def agents(self, number: int) -> list[Body]:
        """Return one request an agent: a shared system text, and a task of its own."""
        system = self._text(self.sizes.shared, f"{number} agents work on a project.")
        tasks = (f"{_TASKS[i % len(_TASKS)]} You are agent {i}." for i in range(number))
        return [_body(system, [task]) for task in tasks]

    def long(self, name: str) -> Body:
        """Return a request with a long prompt, which shares nothing with others."""
        return _body(f"You read for {name}.", [self._text(self.sizes.long, name)])

    def short(self, name: str) -> Body:
        """Return a request with a short prompt."""
        return _body(f"You help {name}.", [_TASKS[0]])

    def turns(self, name: str, number: int) -> list[Body]:
        """Return the turns of a session; each repeats the one before it."""
        system = self._text(self.sizes.shared, f"You talk with {name}.")
        said = [
            text
            for task in _TASKS[:number]
            for text in (task, "I have looked at all files of the project.")
        ]
        return [_body(system, said[: 2 * turn + 1]) for turn in range(number)]

    def _text(self, tokens: int, head: str) -> str:
        """Return a text of about this many tokens that begins with ``head``."""
        repeated = self._ids * (tokens // len(self._ids) + 1)
        return f"{head}\n{self._tokenizer.decode(repeated[:tokens])}"


def _body(system: str, said: Sequence[str]) -> Body:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": t} for i, t in enumerate(said)]
    return {
        "model": "any",
        "system": system,
        "messages": messages,
        "temperature": 0,
    }


def _texts() -> Iterator[str]:
    """Yield the texts that a recorded session has sent."""
    for exchange in load_trace("sessions").inference:
        body: Mapping[str, Any] = exchange.body or {}
        contents = [body["system"], *(m["content"] for m in body["messages"])]
        for content in contents:
            blocks = [] if isinstance(content, str) else content
            yield from (block["text"] for block in blocks if block["type"] == "text")
        yield from (tool["description"] for tool in body.get("tools", ()))
