"""The bundled trace of tasks: ``python -m training.trace OUT``.

Its recorded answers are the right ones, so a replay tells what reuse does to how often
the bundled model is right. Knows nothing of models and tokens.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mlxlab.traces import Exchange, Response, Trace, write_trace
from mlxlab.traces.schema import HeaderLine, Json
from training.tasks import TaskWriter

__all__ = ["task_trace"]

#: Its dialogue has five tools, and tasks of every kind in its later half.
SEED = 9
#: Within what the model was trained on, with an edit of some hundred tokens.
TOKENS = 3400

_DATE = "Today's date is 2026-11-20."
_REMINDER = (
    "<system-reminder>\nThe settings may have been read before. They are as they "
    "were when they were read; nothing has changed them since.\n</system-reminder>"
)


def task_trace(name: str, seed: int | str = SEED, tokens: int = TOKENS) -> Trace:
    """One session that does the tasks of a held-out dialogue, one a request.

    A date and a reminder are put where clients put them, for edits to find.

    Args:
        name: of the trace.
        seed: equal seeds, equal tasks; see :class:`training.tasks.TaskWriter`.
        tokens: of the last prompt with its answer, roughly.
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
    parser.add_argument("out", type=Path, help="trace to write")
    out: Path = parser.parse_args().out
    write_trace(task_trace(out.stem), out)


if __name__ == "__main__":
    main()
