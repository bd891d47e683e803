"""What a step costs in the goal's unit, where the goal leaves that to be measured.

Notation
    a, b    cost per step and per example, t(B) = a + b B
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import optimize

from batchopt.forecasting.decayed_law import DecayedLaw
from batchopt.forecasting.law import LawPosterior
from batchopt.planning.goal import BALANCED, LossGoal, ReachLoss
from batchopt.search.observations import Observation
from batchopt.step_cost import Knee, StepCost

GUESSED = "guessed units"
"""Unit of costs while nothing tells what a step costs in the goal's own: they can only be compared with each other."""
LEAST_TO_LEARN = 3
"""Completed trials, over two batch sizes at least, from which a price can be learned."""


def price_of(
    goal: LossGoal,
    measured: StepCost | None,
    law: LawPosterior | DecayedLaw | None,
    observations: Sequence[Observation],
    knee: float,
) -> StepCost | None:
    """The cost of a step in the goal's unit; None where the study has two objectives.

    Seconds are those of the trials: the measured step cost is scaled by the median ratio that completed trials show,
    because they also evaluate, load data or run elsewhere. Without a measured one, a + b B is fitted to them; before
    three over two batch sizes tell it, a step of `knee` examples is guessed to cost twice what a tiny one does.
    """
    unit = goal.least if isinstance(goal, ReachLoss) else goal.of
    if isinstance(unit, tuple):
        return None
    if isinstance(unit, StepCost) or unit in ("examples", "steps"):
        return goal.price()
    seen = _costs_per_step(goal, observations)
    balanced = isinstance(goal, ReachLoss) and unit == "balanced"
    known = _balanced(goal, law) if balanced and isinstance(goal, ReachLoss) else None
    if known is not None:
        return known
    if not balanced and measured is not None:
        return _scaled(measured, seen) if len(seen) >= LEAST_TO_LEARN else measured
    name = BALANCED if balanced else "seconds"
    return _learned(seen, name) or _guessed(goal, seen, knee, name)


def _balanced(goal: ReachLoss, law: LawPosterior | DecayedLaw | None) -> StepCost | None:
    if law is None:
        return None
    steps_min, examples_min = (float(values[0]) for values in law.hyperbola(goal.loss))
    if not (math.isfinite(steps_min) and math.isfinite(examples_min)):
        return None
    return goal.price(steps_min=steps_min, examples_min=examples_min)


def _costs_per_step(goal: LossGoal, observations: Sequence[Observation]) -> list[tuple[int, float]]:
    """(batch size, cost of a step) of completed trials that show how many steps their cost paid for.

    A trial with a horizon of its own pays for that, and not for what the goal's budget would buy.
    """
    seen = []
    for observation in observations:
        if observation.values is None:
            continue
        if isinstance(goal, ReachLoss):
            examples, cost = observation.crossing(goal.loss), observation.values[0]
            if observation.horizon is not None:
                examples = max(observation.horizon, float(observation.batch_size))
        elif observation.horizon is not None:
            continue
        else:
            examples, cost = float(max(observation.curve.examples, default=0)), goal.within
        if examples:
            seen.append((observation.batch_size, cost * observation.batch_size / examples))
    return seen


def _learned(seen: Sequence[tuple[int, float]], unit: str) -> StepCost | None:
    if len(seen) < LEAST_TO_LEARN or len({size for size, _ in seen}) < 2:
        return None
    sizes, costs = (np.array(column, dtype=float) for column in zip(*seen, strict=True))
    # Relative errors: (a + b B) / cost = 1, with neither a nor b negative.
    (per_step, per_example), _ = optimize.nnls(np.stack([1.0 / costs, sizes / costs], axis=1), np.ones(len(costs)))
    return StepCost(float(per_step), float(per_example), unit=unit)


def _guessed(goal: LossGoal, seen: Sequence[tuple[int, float]], knee: float, unit: str) -> StepCost | None:
    if seen:
        return _scaled(StepCost(knee, 1.0, unit=unit), seen)
    # A budget needs the size of costs.
    return StepCost(knee, 1.0, unit=GUESSED) if isinstance(goal, ReachLoss) else None


def _scaled(measured: StepCost, seen: Sequence[tuple[int, float]]) -> StepCost:
    factor = math.exp(float(np.median([math.log(cost / measured(size)) for size, cost in seen])))
    return StepCost(
        per_step=factor * measured.per_step,
        per_example=factor * measured.per_example,
        knees=tuple(Knee(knee.batch_size, factor * knee.per_example) for knee in measured.knees),
        largest_batch_size=measured.largest_batch_size,
        unit=measured.unit,
    )
