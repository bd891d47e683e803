"""The noisy quadratic model, whose truth needs no training (Zhang et al. 2019, arXiv 1907.04164).

Notation
    h      eigenvalues of the Hessian, 1 / i
    theta  parameters, all 1 at initialisation
    C      covariance of an example's gradient noise, NOISE h
    m      mean square of a parameter over runs; after a step of SGD with rate e and batch B,
           m <- (1 - e h)^2 m + e^2 C / B
The loss of example j is theta' H theta / 2 + theta' n_j with noise n_j of mean zero, so the mean loss is exact.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from batchopt import TrainingTask
from batchopt.probing.evaluation import evaluation_points
from truth.curves import Run

DIMENSIONS = 64
NOISE = 3.5
EXAMPLES = 2**17
HELD_OUT = 256
EIGENVALUES = 1.0 / np.arange(1, DIMENSIONS + 1)


class Quadratic(nn.Module):
    """Parameters only."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.ones(DIMENSIONS))


def loss(model: Quadratic, batch: tuple[Tensor]) -> Tensor:
    """Of each example, (batch,)."""
    (noise,) = batch
    h = torch.tensor(EIGENVALUES, dtype=torch.float32)
    return 0.5 * (h * model.theta.square()).sum() + noise @ model.theta


def make() -> tuple[TrainingTask, tuple[Tensor, ...]]:
    """The task; its evaluation examples have a mean of exactly zero, so that they give the true loss."""
    task = TrainingTask(
        model=Quadratic,
        data=_examples(EXAMPLES, seed=0),
        eval_data=_examples(HELD_OUT, seed=1),
        loss=loss,
        optimizer=lambda parameters, lr: torch.optim.SGD(parameters, lr=lr),
        device="cpu",
    )
    return task, _examples(HELD_OUT, seed=2)


def _examples(count: int, *, seed: int) -> tuple[Tensor, ...]:
    noise = torch.randn(count, DIMENSIONS, generator=torch.Generator().manual_seed(seed))
    scale = torch.tensor(np.sqrt(NOISE * EIGENVALUES), dtype=torch.float32)
    return ((noise - noise.mean(0)) * scale,)


def expected_losses(batch_size: int, learning_rate: float, steps: np.ndarray) -> np.ndarray:
    """The expected loss after steps of SGD, both (k,)."""
    kept = (1.0 - learning_rate * EIGENVALUES) ** 2
    added = learning_rate**2 * NOISE * EIGENVALUES / batch_size
    counts = np.asarray(steps, float)[:, None]
    powers = kept[None, :] ** counts
    still = np.isclose(kept, 1.0)
    summed = np.where(still, counts, (1.0 - powers) / np.where(still, 1.0, 1.0 - kept))
    mean_squares = powers + added * summed
    return 0.5 * mean_squares @ EIGENVALUES


def losses_under(batch_size: int, learning_rates: np.ndarray) -> np.ndarray:
    """The expected loss before the first step and after every one, (steps + 1,), under any sequence of rates."""
    squares, losses = np.ones(DIMENSIONS), []
    with np.errstate(over="ignore", invalid="ignore"):
        for rate in learning_rates:
            losses.append(0.5 * squares @ EIGENVALUES)
            squares = (1.0 - rate * EIGENVALUES) ** 2 * squares + rate**2 * NOISE * EIGENVALUES / batch_size
        losses.append(0.5 * squares @ EIGENVALUES)
    return np.array(losses)


def run(batch_size: int, learning_rate: float, *, seed: int, most_examples: int, last_loss: float) -> Run:
    """The curve that training this configuration gives on average."""
    points = evaluation_points(most_examples, first=batch_size, ratio=1.2)
    steps = np.array(sorted({math.ceil(point / batch_size) for point in points}))
    with np.errstate(over="ignore", invalid="ignore"):
        losses = expected_losses(batch_size, learning_rate, steps)
    fine = np.isfinite(losses) & (losses < 10.0 * losses[0])
    count = len(steps) if fine.all() else int(np.argmin(fine))
    reached = bool((losses[:count] <= last_loss).any())
    outcome = "diverged" if not fine.all() else "reached" if reached else "stopped"
    values = tuple(float(value) for value in losses[:count])
    examples = tuple(int(step) * batch_size for step in steps[:count])
    return Run(batch_size, learning_rate, seed, 0, outcome, examples, values, values)
