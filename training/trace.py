"""The bundled trace of tasks: ``python -m training.trace OUT``.

Its recorded answers are the right ones, so a replay shows how reuse changes the share
of right answers.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mlxlab.traces import Exchange, Response, Trace, write_trace
from mlxlab.traces.schema import HeaderLine, Json
from training.tasks import TaskWriter

__all__ = ["task_trace"]

#: The dialogue of this seed has five tools, and all kinds of task in its later half.
SEED = 9
#: Within the lengths of the training, with room for an edit of some hundred tokens.
TOKENS = 3400

_DATE = "Today's date is 2026-11-20."
_REMINDER = (
    "<system-reminder>\nThe settings may have been read before. They are as they "
    "were when they were read; nothing has changed them since.\n</system-reminder>"
)


def task_trace(name: str, seed: int | str = SEED, tokens: int = TOKENS) -> Trace:
    """Return a trace of one session, with one task of a held-out dialogue per request.

    A date and a reminder are placed as clients place them, so that edits find them.

    Args:
        name: name of the trace.
        seed: equal seeds give equal tasks; see :class:`training.tasks.TaskWriter`.
        tokens: approximate length of the last prompt with its answer.
    """
    tasks = TaskWriter(held_out=True).dialogue(seed, tokens)
    exchanges = (
        Exchange(
            id=i,
            t=float(i),
            method="POST",
            path="/v1/messages",
            headers={},
            body=_framed(task.request),
            response=Response(
                i + 0.5, 200, 0.5, {"role": "assistant", "content": task.answer}
            ),
        )
        for i, task in enumerate(tasks, 1)
    )
    header = HeaderLine.model_validate({"recorder": "training.trace", "tasks": True})
    return Trace(name, tuple(exchanges), header)


def _framed(request: Json) -> Json:
    first, *others = request["messages"]
    said = [_text(_REMINDER), _text(first["content"])]
    return {
        **request,
        "system": [_text(_DATE), _text(request["system"])],
        "messages": [{**first, "content": said}, *others],
    }


def _text(text: str) -> Json:
    return {"type": "text", "text": text}


def main() -> None:
    """Write the trace."""
    parser = argparse.ArgumentParser(prog="python -m training.trace")
    parser.add_argument("out", type=Path, help="write the trace to this file")
    out: Path = parser.parse_args().out
    write_trace(task_trace(out.stem), out)


if __name__ == "__main__":
    main()
