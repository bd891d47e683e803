"""The curves of a sweep: one record for each run, one compressed file for each problem."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from batchopt.evidence import LossCurve

OUTCOMES = ("reached", "stopped", "diverged")
SHAPES = ("constant", "wsd", "cosine", "linear")
FOLDER = Path(__file__).parent / "curves"


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a sweep.

    Attributes:
        batch_size: examples per step.
        learning_rate: constant, or the peak of a decaying one.
        seed: of initialisation and data order.
        horizon: examples at whose end the learning rate has decayed; 0 for one that does not decay.
        outcome: "reached" the last loss (or the horizon), "stopped" before, or "diverged".
        examples: examples seen at each evaluation, rising; of a cooldown after it left the stable run, else from 0.
        losses: the loss there (finite).
        held_out: the loss on held-out data there.
        shape: "constant" (without warm-up); "wsd", whose stable run has horizon 0 and whose cooldowns have one each;
            "cosine" or "linear", after a warm-up.
        rescaled: whether beta2 and weight decay follow the batch size.
    """

    batch_size: int
    learning_rate: float
    seed: int
    horizon: int
    outcome: str
    examples: tuple[int, ...]
    losses: tuple[float, ...]
    held_out: tuple[float, ...]
    shape: str = "constant"
    rescaled: bool = False

    @property
    def key(self) -> tuple[int, float, int, int, str, bool]:
        """What tells a run from the others of its sweep."""
        return self.batch_size, self.learning_rate, self.seed, self.horizon, self.shape, self.rescaled

    def examples_to(self, loss: float) -> float:
        """Examples to a loss, as batchopt defines reaching it; infinite where the run does not."""
        reached = LossCurve(self.examples, self.losses).examples_to(loss)
        return math.inf if reached is None else reached


def pack(runs: Sequence[Run], path: Path) -> None:
    """Write a sweep as arrays: losses as float32, which is a hundredth of their jitter at most."""
    runs = sorted(runs, key=lambda run: run.key)
    unfinished = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    with unfinished.open("wb") as file:
        np.savez_compressed(
            file,
            batch_size=np.array([run.batch_size for run in runs], np.int32),
            learning_rate=np.array([run.learning_rate for run in runs], np.float64),
            seed=np.array([run.seed for run in runs], np.int16),
            horizon=np.array([run.horizon for run in runs], np.int64),
            outcome=np.array([OUTCOMES.index(run.outcome) for run in runs], np.int8),
            shape=np.array([SHAPES.index(run.shape) for run in runs], np.int8),
            rescaled=np.array([run.rescaled for run in runs]),
            points=np.array([len(run.examples) for run in runs], np.int32),
            examples=np.concatenate([np.array(run.examples, np.int64) for run in runs]),
            losses=np.concatenate([np.array(run.losses, np.float32) for run in runs]),
            held_out=np.concatenate([np.array(run.held_out, np.float32) for run in runs]),
        )
    unfinished.replace(path)


def unpack(path: Path) -> list[Run]:
    """The runs of a sweep."""
    with np.load(path, allow_pickle=False) as archive:
        columns = {name: archive[name] for name in archive.files}
    ends = np.cumsum(columns["points"])
    runs = []
    for i, (end, count) in enumerate(zip(ends, columns["points"], strict=True)):
        part = slice(end - count, end)
        runs.append(
            Run(
                batch_size=int(columns["batch_size"][i]),
                learning_rate=float(columns["learning_rate"][i]),
                seed=int(columns["seed"][i]),
                horizon=int(columns["horizon"][i]),
                outcome=OUTCOMES[columns["outcome"][i]],
                examples=tuple(map(int, columns["examples"][part])),
                losses=tuple(map(float, columns["losses"][part])),
                held_out=tuple(map(float, columns["held_out"][part])),
                shape=SHAPES[columns["shape"][i]],
                rescaled=bool(columns["rescaled"][i]),
            )
        )
    return runs
