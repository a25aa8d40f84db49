"""Evaluates the bundled model: ``python -m training.evaluate``.

An answer is right if greedy decoding after a full prefill gives every token: the
thought, the text or call, and the end. The dialogues are made of held-out text.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlxlab.engine import load_model  # before mlx, for a fast BLAS

# isort: split
import mlx.core as mx
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from mlxlab.models.folder import find_model
from training.lessons import Lessons

__all__ = ["LENGTHS", "evaluate"]

LENGTHS = (256, 512, 1024, 2048, 4096)


def evaluate(
    model: Any, lengths: Iterable[int] = LENGTHS, dialogues: int = 20
) -> pd.DataFrame:
    """Evaluate every answer of some held-out dialogues.

    Args:
        model: from :func:`mlxlab.engine.load_model`, for the bundled tokenizer.
        lengths: approximate lengths of the dialogues, in tokens.
        dialogues: number of dialogues per length.

    Returns:
        One row per answer: ``length``, ``kind``, ``position`` (tokens before the
        answer), ``right``.
    """
    lessons = Lessons(held_out=True)
    rows: list[dict[str, Any]] = []
    wanted = [(length, i) for length in lengths for i in range(dialogues)]
    for length, i in tqdm(wanted, desc="dialogues"):
        lesson = lessons.lesson(f"held out {length} {i}", length)
        chosen = np.array(model(mx.array(lesson.ids)[None])[0].argmax(axis=-1))
        hits = chosen[:-1] == lesson.ids[1:]
        for place, kind in zip(lesson.answers, lesson.kinds, strict=True):
            right = bool(hits[place.start - 1 : place.stop - 1].all())
            rows.append(
                {
                    "length": length,
                    "kind": str(kind),
                    "position": place.start,
                    "right": right,
                }
            )
    return pd.DataFrame(rows)


def main() -> None:
    """Print accuracy by kind and length, and the number of answers."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate")
    parser.add_argument("--dialogues", type=int, default=20, help="number per length")
    parser.add_argument(
        "--weights",
        type=Path,
        help="evaluate these weights instead of the bundled ones",
    )
    arguments = parser.parse_args()
    model = load_model(find_model())
    if arguments.weights:
        model.load_weights(str(arguments.weights))
    rows = evaluate(model, dialogues=arguments.dialogues)
    table = rows.pivot_table("right", "kind", "length", "mean", margins=True)
    print(table.map("{:.1%}".format).to_string())
    print(f"{len(rows)} answers")


if __name__ == "__main__":
    main()
