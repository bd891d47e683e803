"""One run of a sweep: train, evaluate at log-spaced examples, stop where nothing more is to be learned."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from batchopt import TrainingTask
from batchopt.errors import NonFiniteLossError
from batchopt.evidence import LossCurve
from batchopt.probing.evaluation import evaluated, evaluation_points
from batchopt.probing.run import TrainingRun
from truth.curves import Run
from truth.problems import PROBLEMS, make

EVALUATION_RATIO = 1.2
FIRST_EVALUATION_STEPS = 4
DIVERGED = 3.0
"""A loss this many times the initial one counts as diverged, once it has stayed there: a rate near the best may begin
with a shock."""
DIVERGED_EVALUATIONS = 6
"""So many evaluations in a row: a factor of 2.5 in examples."""
HOPELESS = 8.0
"""A run that has taken this many times the examples with which another of its batch size had its lowest loss stops."""
GIVEN_UP = 4.0
"""And one that has taken this many times the examples that the other took to the last loss."""
CONFIRMATIONS = 2
"""Evaluations after the last loss is reached: the running median must see them."""


def train(problem: str, *, batch_size: int, learning_rate: float, seed: int, pace: Run | None = None) -> Run:
    """Train one configuration until it reaches the problem's last loss, or is beyond hope.

    Args:
        problem: its name.
        batch_size: examples per step.
        learning_rate: constant.
        seed: of initialisation and data order.
        pace: the best run at this batch size so far; a run far behind it stops.
    """
    torch.set_num_threads(1)
    settings = PROBLEMS[problem]
    most = settings.most_examples + settings.most_steps * batch_size
    if settings.closed_form is not None:
        return settings.closed_form(
            batch_size, learning_rate, seed=seed, most_examples=most, last_loss=settings.losses[-1]
        )
    task, held_out = make(problem)
    run = TrainingRun(task, learning_rate=learning_rate, seed=seed)
    first = max(FIRST_EVALUATION_STEPS * batch_size, 64)
    points = whole_steps(evaluation_points(max(most, first), first=first, ratio=EVALUATION_RATIO), batch_size)
    curve: list[tuple[int, float, float]] = []
    outcome = "stopped"
    try:
        for until in points:
            while run.examples_seen < until:
                run.step(batch_size)
            curve.append((run.examples_seen, run.evaluate(), held_out_loss(task, run, held_out)))
            end = ended([loss for _, loss, _ in curve], run.examples_seen, settings.losses[-1], pace)
            if end is not None:
                outcome = end
                break
    except NonFiniteLossError:
        outcome = "diverged"
    examples, losses, others = zip(*[point for point in curve if point[1] > 0], strict=True)
    return Run(batch_size, learning_rate, seed, 0, outcome, examples, losses, others)


def ended(losses: list[float], examples: int, last: float, pace: Run | None) -> str | None:
    """The outcome of a run that need not go on; None for one that must."""
    latest = losses[-DIVERGED_EVALUATIONS:]
    if len(losses) > DIVERGED_EVALUATIONS and min(latest) > DIVERGED * losses[0]:
        return "diverged"
    if sum(loss <= last for loss in losses) > CONFIRMATIONS:
        return "reached"
    return "stopped" if pace is not None and _is_hopeless(examples, min(losses), pace, last) else None


def whole_steps(points: list[int], batch_size: int) -> list[int]:
    """Points moved up to whole steps, each once."""
    return sorted({math.ceil(point / batch_size) * batch_size for point in points})


def held_out_loss(task: TrainingTask, run: TrainingRun, held_out: tuple[torch.Tensor, ...]) -> float:
    """The loss of a run on held-out data; infinite where it is not finite."""
    loss = evaluated(replace(task, eval_data=held_out), run.model).loss
    return loss if math.isfinite(loss) else math.inf


def _is_hopeless(examples: int, lowest: float, pace: Run, last: float) -> bool:
    there = LossCurve(pace.examples, pace.losses)
    at_all = there.examples_to(last)
    if at_all is not None and examples > GIVEN_UP * at_all:
        return True
    here = there.examples_to(lowest)
    return here is not None and here > 0 and examples > HOPELESS * here and lowest < 0.9 * pace.losses[0]
