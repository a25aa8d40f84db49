"""In-context tasks for the bundled model: dialogues that contain their answers.

Settings such as ``month=socket`` are planted in the system text, in tool descriptions
and in tool results, between passages of prose and code. A turn asks for one of them,
or for a call of the tool that a setting names. The answer first recalls the setting in
a short thought.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from random import Random

from mlxlab.traces.schema import Json
from training.corpus import read_prose

__all__ = ["Kind", "Task", "TaskWriter"]

#: Words that the bundled tokenizer keeps whole, with or without a space before them.
WORDS = tuple(Path(__file__).with_name("words.txt").read_text(encoding="utf-8").split())

#: Average characters per token.
_CHARACTERS = 3.3

#: Tokens of text per planted setting: from lists of settings to mostly prose.
_SPACINGS = (6, 10, 20, 60)

#: Characters of JSON around a tool's description, and of template around a turn.
_TOOL, _TURN = 230, 80

_QUESTIONS = ("What is ({})?", "Give me ({}).", "Tell me the value of ({}).")
_ORDERS = ("Look up ({}) for ({}).", "Find ({}) as ({}) asks.")


class Kind(StrEnum):
    """The place of the setting that a task asks for."""

    SYSTEM = "system"
    TOOLS = "tools"
    RESULT = "tool result"
    CALL = "call"


@dataclass(frozen=True, slots=True)
class Task:
    """A request and the one right answer to it.

    Attributes:
        kind: where the setting is.
        request: body of a Messages request.
        answer: content of the response: a thought, then a text or a call.
    """

    kind: Kind
    request: Json
    answer: list[Json]


class TaskWriter:
    """Writes dialogues; different seeds give unrelated ones.

    Args:
        held_out: whether to use filler text that no training dialogue has.
    """

    def __init__(self, *, held_out: bool = False) -> None:
        self._prose = _prose(held_out)

    def dialogue(self, seed: int | str, tokens: int) -> list[Task]:
        """Write the turns of one conversation; each request repeats the earlier ones.

        Args:
            seed: equal seeds give equal dialogues.
            tokens: approximate length of the last prompt with its answer.
        """
        return _Dialogue(Random(seed), self._prose, tokens).tasks()


@cache
def _prose(held_out: bool) -> tuple[str, ...]:
    # Reading and parsing the library takes seconds.
    return tuple(text for text in read_prose(held_out=held_out) if text.strip())


class _Dialogue:
    """One conversation while it is written."""

    def __init__(self, random: Random, prose: Sequence[str], tokens: int) -> None:
        self._random = random
        self._prose = prose
        self._left = tokens * _CHARACTERS
        self._words = iter(random.sample(WORDS, len(WORDS)))
        self._known: dict[Kind, list[tuple[str, str]]] = {}
        self._messages: list[Json] = []
        self._spacing = random.choice(_SPACINGS)

    def tasks(self) -> list[Task]:
        static = self._left * self._random.uniform(0.3, 0.6)
        most = min(round(static / 2.5 / _TOOL), 5)
        names = [next(self._words) for _ in range(self._random.randint(0, most))]
        self._routes = [(next(self._words), name) for name in names]
        texts = max(static - _TOOL * len(names), 0.0)
        share = self._random.uniform(0.3, 0.9) if names else 1.0
        self._system = self._passage(Kind.SYSTEM, texts * share, self._routes)
        self._tools = [
            _tool(name, self._passage(Kind.TOOLS, texts * (1 - share) / len(names)))
            for name in names
        ]
        self._left -= len(self._system) + sum(len(str(tool)) for tool in self._tools)
        tasks: list[Task] = []
        while not tasks or self._left > 2 * _TURN:
            tasks += self._turn()
        return tasks

    def _turn(self) -> Iterator[Task]:
        known = [kind for kind, settings in self._known.items() if settings]
        if known and (not self._routes or self._random.random() < 0.55):
            kind = self._random.choice(known)
            key, value = self._known[kind].pop()
            # It may be asked again, but only after all others.
            self._known[kind].insert(0, (key, value))
            self._say(self._random.choice(_QUESTIONS).format(key))
            yield self._answered(kind, f"{key}={value}", _text(value))
            return
        route, name = self._random.choice(self._routes)
        key, value = next(self._words), self._value()
        self._say(self._random.choice(_ORDERS).format(key, route))
        call_id = f"toolu_{len(self._messages)}"
        call = {"type": "tool_use", "id": call_id, "name": name, "input": {"key": key}}
        yield self._answered(Kind.CALL, f"{route}={name}", call)
        length = min(self._random.uniform(0, 800), max(self._left - 2 * _TURN, 0))
        found = self._passage(Kind.RESULT, length, [(key, value)])
        block = {"type": "tool_result", "tool_use_id": call_id, "content": found}
        self._say([block], len(found))
        yield self._answered(Kind.RESULT, f"{key}={value}", _text(value))

    def _say(self, content: Json, length: int = 30) -> None:
        self._messages.append({"role": "user", "content": content})
        self._left -= length

    def _answered(self, kind: Kind, thought: str, block: Json) -> Task:
        request = {
            "model": "tiny",
            "max_tokens": 64,
            "thinking": {"type": "adaptive"},
            "system": self._system,
            "tools": self._tools,
            "messages": list(self._messages),
        }
        thinking = {"type": "thinking", "thinking": thought, "signature": ""}
        answer = [thinking, block]
        self._messages.append({"role": "assistant", "content": answer})
        self._left -= _TURN
        return Task(kind, request, answer)

    def _passage(
        self,
        kind: Kind,
        characters: float,
        extra: Sequence[tuple[str, str]] = (),
    ) -> str:
        """Return lines of filler and settings, which later turns can ask for."""
        least = 0 if self._known or extra else 1  # at least one setting to ask for
        count = max(round(characters / _CHARACTERS / self._spacing), least)
        keys = itertools.islice(self._words, count)
        planted = [(key, self._value()) for key in keys]
        self._known.setdefault(kind, []).extend(planted)
        self._random.shuffle(self._known[kind])
        lines = [f"{key}={value}" for key, value in (*planted, *extra)]
        while characters > sum(len(line) + 1 for line in lines):
            lines.append(self._filler())
        self._random.shuffle(lines)
        return "\n".join(lines)

    def _value(self) -> str:
        return self._random.choice(WORDS)

    def _filler(self) -> str:
        """Return a passage of one to four lines of the library's prose."""
        text = self._random.choice(self._prose)[:600]
        lines = [line for line in text.splitlines() if line.strip()]
        start = self._random.randrange(len(lines))
        return "\n".join(lines[start : start + self._random.randint(1, 4)])


def _text(value: str) -> Json:
    return {"type": "text", "text": value}


def _tool(name: str, description: str) -> Json:
    return {
        "name": name,
        "description": description,
        "input_schema": {
            "type": "object",
            "properties": {"key": {"type": "string"}},
            "required": ["key"],
        },
    }
