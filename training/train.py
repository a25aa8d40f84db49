"""Trains the bundled model: ``python -m training.train FOLDER``.

Training begins with short dialogues and continues with longer ones. The state is saved
in FOLDER every few minutes, and an interrupted run resumes from it. Data and order
depend on the seed and the step alone, so the result does not change. ``curve.csv`` in
FOLDER holds the loss and accuracy over the steps.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from typing import Any

import mlxlab.engine  # noqa: F401  # before mlx, for a fast BLAS

# isort: split
import mlx.core as mx
import numpy as np
import pandas as pd
from mlx import nn, optimizers
from mlx.nn.utils import value_and_grad
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.qwen3 import Model, ModelArgs
from numpy.typing import NDArray
from tqdm.auto import tqdm

from mlxlab.models.tiny import PATH
from training.batches import Batch, Batches, Phase

SEED = 0

#: Drills come first: they teach recall in a few hundred steps, dialogues hardly do.
PHASES = (
    Phase(256, 8, 400, drills=8),
    Phase(256, 16, 400, drills=4),
    Phase(512, 8, 500, drills=2),
    Phase(1024, 4, 400, drills=1),
    Phase(2048, 2, 350),
    Phase(4096, 1, 200),
)

#: Muon trains the matrices inside the layers, AdamW the rest. Both rates rise over the
#: first steps and fall to 0 over the last part of the run.
_MUON_RATE, _ADAM_RATE = 0.02, 0.003
_WARM_UP, _DECAY = 50, 0.45

#: Deviation of fresh embeddings, and the ratio of their one constant component to it.
_EMBEDDING, _CONSTANT = 0.1, 4.0

_SAVE_EVERY, _RECORD_EVERY = 100, 25


def new_model(config: dict[str, Any]) -> Any:
    """Return a Qwen3 model with fresh weights drawn from mlx's seeded stream.

    The weights start close to a recall circuit (Olsson et al., arXiv 2209.11895), which
    training alone takes long to find. The first layer attends to the two tokens before;
    the other layers copy the tokens that they attend to.
    """
    model = Model(ModelArgs.from_dict(config))
    weights = {name: _drawn(name, array) for name, array in weights_of(model).items()}
    weights["model.embed_tokens.weight"][:, 0] = _CONSTANT * _EMBEDDING
    before = _looking_back(config)
    for name, constant in zip(("q_proj", "k_proj"), before, strict=True):
        weight = weights[f"model.layers.0.self_attn.{name}.weight"]
        weight *= 0.3
        weight[:, 0] = constant
    for i in range(1, config["num_hidden_layers"]):
        at = f"model.layers.{i}.self_attn."
        weights[f"{at}o_proj.weight"] = weights[f"{at}v_proj.weight"].T
    model.update(tree_unflatten(list(weights.items())))
    return model


def weights_of(model: Any) -> dict[str, mx.array]:
    """Return the arrays by their names in a safetensors file."""
    flat: Any = tree_flatten(model.parameters())
    return dict(flat)


def _drawn(name: str, array: mx.array) -> mx.array:
    if "embed_tokens" in name:
        return _EMBEDDING * mx.random.normal(array.shape)
    if "q_norm" in name or "k_norm" in name:
        return 1.5 * array
    if array.ndim == 1:
        return array
    gain = 0.5 if "o_proj" in name or "down_proj" in name else 1.0
    scale: float = gain / sqrt(array.shape[1])
    return scale * mx.random.normal(array.shape)


def _looking_back(config: dict[str, Any]) -> tuple[mx.array, mx.array]:
    """Return the constant's queries and keys, which favour 1 or 2 positions back."""
    half = config["head_dim"] // 2
    turns = config["rope_theta"] ** (-np.arange(half) / half)
    used = np.arange(half) < 6  # the fast ones
    length = sqrt(config["head_dim"] / used.sum()) / _CONSTANT
    query = length * np.concatenate([used, 0 * used])
    key = length * np.concatenate(
        [used * np.cos(1.5 * turns), used * np.sin(1.5 * turns)]
    )
    return mx.array(query.astype(np.float32)), mx.array(key.astype(np.float32))


class Training:
    """A run in progress: weights, optimizers and the number of steps."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        mx.random.seed(SEED)
        self.folder = folder
        self.step = 0
        self.model = new_model(config)
        self._muon = optimizers.Muon(_MUON_RATE, weight_decay=0.0)
        self._adam = optimizers.AdamW(_ADAM_RATE, betas=[0.9, 0.98], weight_decay=0.0)
        self._optimizer = optimizers.MultiOptimizer(
            [self._muon, self._adam],
            [lambda name, array: array.ndim == 2 and "embed" not in name],
        )
        self._optimizer.init(self.model.trainable_parameters())
        self._gradient = value_and_grad(self.model, _loss)

    def update(self, batch: Batch, progress: float) -> NDArray[np.float32]:
        """Run one step at ``progress`` (0 to 1); return losses and hits by place."""
        rate = min((self.step + 1) / _WARM_UP, (1 - progress) / _DECAY, 1.0)
        self._muon.learning_rate = _MUON_RATE * rate
        self._adam.learning_rate = _ADAM_RATE * rate
        arrays = (mx.array(a) for a in (batch.ids, batch.places, batch.weights))
        (_, details), gradient = self._gradient(self.model, *arrays)
        gradient, _ = optimizers.clip_grad_norm(gradient, 1.0)
        self._optimizer.update(self.model, gradient)
        mx.eval(self.model.state, self._optimizer.state, details)
        self.step += 1
        return np.array(details)

    def save(self) -> None:
        """Write the state atomically: an interrupted write loses nothing."""
        state = {
            "model": self.model.parameters(),
            "optimizer": self._optimizer.state,
            "step": mx.array(self.step),
        }
        unfinished = self.folder / "unfinished.safetensors"
        mx.save_safetensors(str(unfinished), dict(tree_flatten(state)))
        unfinished.replace(self.folder / "state.safetensors")

    def restore(self) -> None:
        """Resume from the saved state, if there is one."""
        path = self.folder / "state.safetensors"
        if not path.exists():
            return
        arrays: Any = mx.load(str(path))
        state: Any = tree_unflatten(list(arrays.items()))
        self.model.update(state["model"])
        self._optimizer.state = state["optimizer"]
        self.step = state["step"].item()


def _loss(
    model: Any, ids: mx.array, places: mx.array, weights: mx.array
) -> tuple[mx.array, mx.array]:
    """Return the weighted loss, and per place its loss and whether it was right."""
    hidden = model.model(ids[:, :-1])
    hidden = hidden.reshape(-1, hidden.shape[-1])[places]
    logits = model.model.embed_tokens.as_linear(hidden)
    wanted = ids[:, 1:].reshape(-1)[places]
    losses = nn.losses.cross_entropy(logits, wanted)
    hits = logits.argmax(axis=-1) == wanted
    return (losses * weights).sum(), mx.stack([losses, hits])


class Curve:
    """Records loss and accuracy over the steps in a CSV file.

    Args:
        path: the file; rows of an earlier run up to ``step`` are kept.
        step: the step that training continues from.
    """

    COLUMNS = ("step", "length", "word_loss", "word_hits", "other_loss")

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        self._rows = pd.DataFrame(columns=list(self.COLUMNS))
        if path.exists():
            rows = pd.read_csv(path)
            self._rows = rows[rows.step <= step]
        self._recent: list[tuple[float, float, float]] = []

    def record(
        self, step: int, phase: Phase, batch: Batch, details: NDArray[np.float32]
    ) -> None:
        """Add a step; write a row when enough steps have been added."""
        (losses, hits), inside = details, batch.words
        self._recent.append(
            (losses[inside].mean(), hits[inside].mean(), losses[~inside].mean())
        )
        if step % _RECORD_EVERY == 0:
            means = np.mean(self._recent, axis=0)
            self._rows.loc[len(self._rows)] = [step, phase.length, *means]
            whole = self._rows.astype({"step": int, "length": int})
            whole.to_csv(self._path, index=False, float_format="%.4f")
            self._recent.clear()

    def __str__(self) -> str:
        if self._rows.empty:
            return ""
        last = self._rows.iloc[-1]
        return f"words {last.word_hits:.1%}, others {last.other_loss:.2f}"


def train(folder: Path, phases: Sequence[Phase] = PHASES) -> Any:
    """Train from scratch, or resume from ``folder``, and record the curve."""
    folder.mkdir(parents=True, exist_ok=True)
    training = Training(folder, json.loads((PATH / "config.json").read_text()))
    training.restore()
    batches = Batches(SEED)
    curve = Curve(folder / "curve.csv", training.step)
    schedule = [phase for phase in phases for _ in range(phase.steps)]
    with tqdm(total=len(schedule), initial=training.step, unit="step") as bar:
        for phase in schedule[training.step :]:
            batch = batches.batch(training.step, phase)
            details = training.update(batch, training.step / len(schedule))
            curve.record(training.step, phase, batch, details)
            bar.set_postfix_str(str(curve))
            bar.update()
            if training.step % _SAVE_EVERY == 0:
                training.save()
    training.save()
    return training.model


def main() -> None:
    """Train, then write ``model.safetensors`` into the folder."""
    parser = argparse.ArgumentParser(prog="python -m training.train")
    parser.add_argument(
        "folder", type=Path, help="keep state, curve and result in this folder"
    )
    folder = parser.parse_args().folder
    model = train(folder)
    path = str(folder / "model.safetensors")
    mx.save_safetensors(path, weights_of(model), {"format": "mlx"})


if __name__ == "__main__":
    main()
