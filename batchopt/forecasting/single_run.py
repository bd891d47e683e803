"""One run of one setting, as the posterior sees it: when it reaches a loss, and where it ends."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from batchopt.forecasting.horizons import FINE_RATIO, ends_of, first_crossing, schedule_of
from batchopt.forecasting.own_decision import CHANCE, examples_by_own_decision
from batchopt.forecasting.posterior import LossPosterior
from batchopt.forecasting.schedule_points import course_of, edges_of
from batchopt.learning_rate_schedule import LearningRateSchedule, Shape
from batchopt.planning.plan import LossBand
from batchopt.uncertainty import LEVEL, Estimate, from_positive_draws

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from batchopt.forecasting.carried_rates import KnownRate

    Floats = NDArray[np.float64]

_Row = TypeVar("_Row", bound=np.generic)

MOST_PATIENCE = 3.0
"""The horizon of a run that is to reach a loss is the shortest with which it does by the chance `CHANCE`, but no more
than this multiple of the one with which it does by even chance: then the forecast is too vague to buy certainty with
examples."""
FINE_STEPS = 10
"""Neighbouring horizons on either side of the middle one."""
POINTS = 48
"""Of a run, at which its loss is predicted."""


@dataclass(frozen=True, slots=True)
class SingleRun:
    """A setting with what one run of it takes, (1 + draws,) each but for the horizon.

    Attributes:
        batch_size: examples per step.
        learning_rate: peak rate.
        schedule: of its learning rate, over its horizon.
        horizon: examples of the schedule.
        examples: to the goal's loss; more than the horizon in draws that do not reach it within. Of wsd where the run
            decides by itself when to decay.
        losses: at the end of the schedule.
        predicted: losses along the run.
        known: what its peak rate was moved near to; None where it is the law's own.
    """

    batch_size: int
    learning_rate: float
    schedule: LearningRateSchedule
    horizon: int
    examples: Floats
    losses: Floats
    predicted: LossBand
    known: KnownRate | None = None


def examples_needed(
    posterior: LossPosterior,
    shape: Shape,
    batch_size: float,
    learning_rate: float,
    loss: float,
    *,
    near: float,
    warmup_examples: int | None = None,
) -> Floats:
    """Horizons at whose end single runs of a setting reach a loss, (1 + draws,), about `near`; inf far beyond."""
    horizons = near * FINE_RATIO ** np.arange(-FINE_STEPS, 2.0 * FINE_STEPS)
    rates = np.array([[learning_rate]])
    ends = ends_of(posterior, shape, [batch_size], rates, horizons, warmup_examples=warmup_examples)
    log_losses = posterior.scattered_losses(ends.log_losses[:, 0, 0])
    return first_crossing(log_losses, np.log(horizons), math.log(loss))


def run_to_loss(
    posterior: LossPosterior,
    shape: Shape,
    batch_size: int,
    learning_rate: float,
    loss: float,
    *,
    near: float,
    warmup_examples: int | None = None,
) -> SingleRun | None:
    """A run whose horizon is long enough for a loss; None where it is more likely never to get there.

    Args:
        posterior: what is believed.
        shape: of the learning-rate schedule.
        batch_size: examples per step.
        learning_rate: peak rate.
        loss: to reach.
        near: examples that it takes, roughly.
        warmup_examples: None for a share of the horizon.
    """
    needed = examples_needed(
        posterior, shape, batch_size, learning_rate, loss, near=near, warmup_examples=warmup_examples
    )
    middle = float(np.median(of_draws(needed)))
    if not math.isfinite(middle):
        return None
    safe = min(float(np.quantile(of_draws(needed), CHANCE, method="higher")), MOST_PATIENCE * middle)
    # By whole batches, of which the last one takes its full share of the decay.
    horizon = max(2, math.ceil(safe / batch_size)) * batch_size
    schedule = schedule_of(shape, horizon, warmup_examples)
    run = run_over(posterior, schedule, batch_size, learning_rate, horizon=horizon, loss=loss)
    if shape == "wsd":
        warmup = schedule.warmup_examples
        examples = examples_by_own_decision(
            posterior, batch_size, learning_rate, loss, near=middle, warmup_examples=warmup
        )
    else:
        # A run that ends above the loss has used its schedule up. At a constant rate it goes on.
        lost = 0 if shape == "constant" else horizon
        examples = np.where(np.isfinite(run.examples), run.examples, lost + np.maximum(needed, horizon))
    if not math.isfinite(float(np.median(of_draws(examples)))):
        return None
    return replace(run, examples=np.maximum(examples, batch_size))


def run_over(
    posterior: LossPosterior,
    schedule: LearningRateSchedule,
    batch_size: int,
    learning_rate: float,
    *,
    horizon: int,
    loss: float | None = None,
) -> SingleRun:
    """A run of a given schedule, to its end.

    Args:
        posterior: what is believed.
        schedule: of the learning rate.
        batch_size: examples per step.
        learning_rate: peak rate.
        horizon: examples of the run.
        loss: whose first crossing `examples` are, inf where there is none; None for the whole run.
    """
    late = horizon * np.linspace(0.5, 1.0, POINTS // 2)
    points = np.unique(np.concatenate([np.geomspace(1.0, horizon, POINTS), late]))
    edges = edges_of(batch_size, schedule, points / batch_size)
    course = course_of(batch_size, learning_rate, schedule, edges, delay=posterior.delay)
    found = posterior.scattered_losses(posterior.losses_along([course])[0])
    found[posterior.is_unstable([batch_size], [learning_rate])[:, 0]] = np.inf
    examples = np.full(len(found), float(horizon))
    if loss is not None:
        examples = first_crossing(found, np.log(edges[1:] * batch_size), math.log(loss))
    band = _band(np.round(edges[1:] * batch_size), np.exp(found))
    return SingleRun(batch_size, learning_rate, schedule, horizon, examples, np.exp(found[:, -1]), band)


def _band(examples: Floats, losses: Floats) -> LossBand:
    """At the last of the points that round to the same number of examples."""
    keep = np.flatnonzero(np.diff(examples, append=np.inf) > 0)
    draws = of_draws(losses)[:, keep]
    tail = (1.0 - LEVEL) / 2.0
    low, middle = (np.quantile(draws, q, axis=0, method="lower") for q in (tail, 0.5))
    high = np.quantile(draws, 1.0 - tail, axis=0, method="higher")
    at = tuple(int(n) for n in examples[keep])
    return LossBand(at, tuple(middle.tolist()), tuple(low.tolist()), tuple(high.tolist()))


def of_draws(rows: NDArray[_Row]) -> NDArray[_Row]:
    """The draws without the best guess, which has no scatter; the best guess where there are no draws."""
    return rows[1:] if len(rows) > 1 else rows


def estimate_of(rows: Floats) -> Estimate:
    """The median of draws, which must be finite, with their central 90 %."""
    draws = of_draws(rows)
    return from_positive_draws(np.concatenate([[np.median(draws)], draws]))
