"""What the trials of a study say: settings, loss curves and values, and which of them are worth a fit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, TrialState

from batchopt.errors import EvidenceError
from batchopt.evidence import Branch, LossCurve
from batchopt.learning_rate_schedule import LearningRateSchedule
from batchopt.planning.goal import BestMetric, LossGoal, LowestLoss, ReachLoss, ReachMetric
from batchopt.planning.wording import amount_in_words
from batchopt.search.saying import warn_once

if TYPE_CHECKING:
    import optuna

    from batchopt.search.metric_reading import MetricReading
    from batchopt.search.settings import StudySettings
    from batchopt.step_cost import StepCost

MEMORY_CONSTRAINT = "batchopt:memory"
"""A trial that ran out of memory says so by `trial.set_constraint("batchopt:memory", 1.0)`."""
CONSTRAINT = "batchopt"
MOST_CURVES = 24
"""Curves of finished trials that a fit uses, and of running ones: the best and the longest."""
LEAST_POINTS = 3
"""Evaluations that a curve needs to tell the law something."""
CROSSING_POINTS = (0.97, 0.99, 1.01, 1.03)
"""A run of which only the crossing is known is given as four evaluations this close around it."""
AS_IT_IS = "as it is, not its logarithm and no reward"
LEAST_COUNTED = 3
"""Reports at numbers that follow each other which tell a count of epochs or steps from one of examples."""
STOPPED_AT = 1.05
"""A completed trial whose last loss is within this factor of the goal stopped at its crossing."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One trial.

    Attributes:
        number: of the trial.
        batch_size: examples per step.
        learning_rate: the rate it was given.
        curve: its finite reports.
        values: objective values of a completed trial, finite and positive; None for others, and where a loss was
            returned for a cost.
        feasible: whether no constraint of the study is violated.
        diverged: whether a report was not finite.
        params: all parameters of the trial.
        running: whether it is not finished.
        horizon: examples of its learning-rate schedule; None where the rate does not decay, where the horizon is the
            goal's budget, or where the trial does not tell it.
    """

    number: int
    batch_size: int
    learning_rate: float
    curve: LossCurve
    values: tuple[float, ...] | None
    feasible: bool
    diverged: bool
    params: Mapping[str, Any] = field(default_factory=dict)
    running: bool = False
    horizon: float | None = None

    @property
    def usable(self) -> bool:
        """Whether the curve alone can be fitted."""
        return not self.diverged and sum(n > 0 for n in self.curve.examples) >= LEAST_POINTS

    def crossing(self, loss: float) -> float | None:
        """Examples at which the run reached a loss; None where its reports do not show it.

        Of a run that decays this is not what it cost, which is its horizon.
        """
        reached = self.curve.examples_to(loss)
        if (
            reached is None
            and self.values is not None
            and self.curve.losses
            and self.curve.losses[-1] <= STOPPED_AT * loss
        ):
            return float(self.curve.examples[-1])
        return reached


def setting_of(trial: FrozenTrial, settings: StudySettings, study_name: str) -> tuple[int, float] | None:
    """Batch size and learning rate of a trial; None where it does not have both, or is odd.

    An odd trial (a rate of zero, a negative loss) is left out, which is said of the first: a study outlives it.
    """
    try:
        setting = settings.read(trial.params)
        if setting is not None:
            check_losses(trial, settings.metric)
    except EvidenceError as error:
        rule = str(error).partition(", got")[0]
        warn_once(
            f"Study {study_name}: trial {trial.number} is left out: {error}. So are further ones like it.",
            about=f"{study_name} left out: {rule}",
        )
        return None
    return setting


def observe_one(trial: FrozenTrial, settings: StudySettings, study_name: str) -> Observation | None:
    """A trial with its reports so far; None where it does not have both parameters, or is odd."""
    setting = setting_of(trial, settings, study_name)
    if setting is None:
        return None
    complete = trial.state == TrialState.COMPLETE and all(0 < value < math.inf for value in trial.values)
    counts = counts_steps(trial, setting[0])
    if counts:
        warn_once(
            f"Study {study_name}: the reports of trial {trial.number} are left out: {counts}. A report's step is the "
            f"examples seen since the beginning, at least {setting[0]} more from one to the next: report at "
            "(epoch + 1) * len(data), or hand the objective through batchopt.reports_in_examples. So are further ones "
            "like it.",
            about=f"{study_name} counts",
        )
    return Observation(
        number=trial.number,
        batch_size=setting[0],
        learning_rate=setting[1],
        curve=LossCurve((), ()) if counts else _curve(trial),
        values=tuple(map(float, trial.values)) if complete and not returns_loss(trial, settings.goal) else None,
        feasible=all(excess <= 0 for excess in getattr(trial, "constraints", {}).values()),
        diverged=diverged(trial),
        params=trial.params,
        running=trial.state == TrialState.RUNNING,
        horizon=_horizon_of(trial, settings, study_name),
    )


def _horizon_of(trial: FrozenTrial, settings: StudySettings, study_name: str) -> float | None:
    """The horizon of a trial; that it tells none is said of the first that has trained without one."""
    if settings.decay is None:
        return None
    horizon = settings.decay.held_by(trial.params, trial.user_attrs)
    if horizon is None and settings.decay.horizon is not None and trial.last_step is not None:
        warn_once(
            f"Study {study_name}: the curve of trial {trial.number} is left out: it has no parameter or user attribute "
            f"{settings.decay.horizon!r} that holds its horizon in examples. So are further ones like it.",
            about=f"{study_name} horizon",
        )
    return horizon


def unstable_settings(observations: Sequence[Observation]) -> set[tuple[int, float]]:
    """(batch size, learning rate) of diverged trials that no other trial contradicts.

    A trial may diverge for another hyperparameter's sake: a finite run with a rate at least as high, at a batch at most
    as large, and no smaller than a quarter, shows that.
    """
    fine = [(o.batch_size, o.learning_rate) for o in observations if o.usable]
    hot = {(o.batch_size, o.learning_rate) for o in observations if o.diverged}
    return {(size, rate) for size, rate in hot if not any(size / 4 <= b <= size and r >= rate for b, r in fine)}


def memory_bound(trial: FrozenTrial, batch_size: int) -> int | None:
    """The largest batch size that may still fit, of a trial that ran out of memory; None of others."""
    out = getattr(trial, "constraints", {}).get(MEMORY_CONSTRAINT, 0.0) > 0
    return batch_size - 1 if out else None


def counts_steps(trial: FrozenTrial, batch_size: int) -> str | None:
    """Why a trial's reports cannot be at examples seen: there is one at every number, and a step sees several."""
    steps = list(trial.intermediate_values)
    if batch_size < 2 or len(steps) < LEAST_COUNTED or any(b - a != 1 for a, b in pairwise(steps)):
        return None
    return f"they are at {', '.join(map(str, steps[:LEAST_COUNTED]))}, ..., a count of epochs or steps"


def returns_loss(trial: FrozenTrial, goal: LossGoal) -> bool:
    """Whether a completed trial's value, which should be a cost, is a loss that it reported."""
    if isinstance(goal, LowestLoss) or trial.state != TrialState.COMPLETE:
        return False
    return any(math.isclose(trial.values[0], loss, rel_tol=1e-6) for loss in trial.intermediate_values.values())


def diverged(trial: FrozenTrial) -> bool:
    """Whether a report was not finite."""
    return not all(map(math.isfinite, trial.intermediate_values.values()))


def rank(trial: FrozenTrial) -> float:
    """A completed trial's log value, of two objectives the mean of both; inf for others."""
    if trial.state != TrialState.COMPLETE or min(trial.values) <= 0:
        return math.inf
    return sum(map(math.log, trial.values)) / len(trial.values)


def end_of(
    values: Sequence[float], batch_size: int, goal: LossGoal, price: StepCost | None
) -> tuple[float, float] | None:
    """Examples and loss at the end of a completed run, as its value says; None where no price tells.

    A run that decays may have ended below the goal's loss; under a budget its loss is that at its horizon.
    """
    if isinstance(goal, ReachLoss) and isinstance(goal.least, tuple):
        return (values[1], goal.loss) if len(values) == 2 else None
    if price is None:
        return None
    if isinstance(goal, ReachLoss):
        return values[0] / price(batch_size) * batch_size, goal.loss
    return max(1.0, math.floor(goal.within / price(batch_size))) * batch_size, values[0]


def as_branch(
    observation: Observation,
    goal: LossGoal,
    price: StepCost | None,
    schedule: LearningRateSchedule | None = None,
) -> Branch | None:
    """The trial as evidence for the law: its curve, and the point its value stands for; None where it says nothing."""
    curve = observation.curve
    end = None if observation.values is None else end_of(observation.values, observation.batch_size, goal, price)
    # The value stands for the end of the schedule; a trial of the caller's may have stopped at the loss before.
    if end is not None and schedule is not None:
        horizon = float(schedule.examples[-1])
        end = (horizon if isinstance(goal, LowestLoss) else min(end[0], horizon)), end[1]
    if end is not None and (not curve.examples or round(end[0]) > curve.examples[-1]):
        curve = LossCurve((*curve.examples, round(end[0])), (*curve.losses, end[1]))
    if end is not None and sum(n > 0 for n in curve.examples) < LEAST_POINTS:
        around = sorted({max(1, round(end[0] * share)) for share in CROSSING_POINTS})
        curve = LossCurve(tuple(around), (end[1],) * len(around))
    if observation.diverged or sum(n > 0 for n in curve.examples) < LEAST_POINTS:
        return None
    return Branch(
        batch_size=observation.batch_size,
        learning_rate=observation.learning_rate,
        curve=curve,
        outcome="stopped" if observation.values is None else "finished",
        seed=observation.number,
        learning_rate_schedule=schedule,
    )


def check_objective(study: optuna.Study, settings: StudySettings) -> None:
    """Raise EvidenceError where the study's directions are not those of the goal."""
    goal, asked = settings.goal, settings.asked
    two = isinstance(goal, ReachLoss) and isinstance(goal.least, tuple)
    wanted = ["minimize", "minimize"] if two else ["minimize"]
    if settings.metric is not None and isinstance(asked, BestMetric):
        wanted = [settings.metric.direction]
    given = [direction.name.lower() for direction in study.directions]
    if given == wanted:
        return
    how = f'direction="{wanted[0]}"' if len(wanted) == 1 else 'directions=["minimize", "minimize"]'
    remedy = f"{reading_of(settings)}; make another study by optuna.create_study({how})"
    if len(given) != len(wanted):
        raise EvidenceError(f"the goal needs a study of {len(wanted)} objective(s), got {len(given)}: {remedy}")
    if "maximize" in given and not isinstance(asked, BestMetric):
        name = asked.metric if isinstance(asked, ReachMetric) else "accuracy"
        remedy += f". If it returns a metric that rises, its goal is batchopt.BestMetric({name!r}, within=...)"
    verb = "maximise" if wanted == ["maximize"] else "minimise"
    raise EvidenceError(f"the study must {verb}, got direction {' and '.join(given)}: {remedy}")


def check_losses(trial: FrozenTrial, metric: MetricReading | None = None) -> None:
    """Raise EvidenceError where a trial has reported a negative loss, or a metric that stands for one."""
    negative = next((loss for loss in trial.intermediate_values.values() if -math.inf < loss < 0), None)
    if negative is not None and metric is not None:
        raise EvidenceError(metric.rule(negative))
    if negative is not None:
        rule = f"a reported loss must be positive, got {negative!r}"
        raise EvidenceError(f"{rule}: report the mean per-example loss {AS_IT_IS}")


def reading_of(settings: StudySettings) -> str:
    """What the objective's value is taken to be, in one line; of trials that decay, at the end of that."""
    goal, metric = settings.goal, settings.metric
    if isinstance(goal, LowestLoss):
        has_own = settings.decay is not None and settings.decay.horizon is not None
        when = "at the end of a trial's horizon" if has_own else f"after {amount_in_words(goal.within, goal.of)}"
        what = "loss" if metric is None else metric.goal.metric
        how = "minimised" if metric is None or not metric.rises else "maximised"
        return f"batchopt reads the objective as the {what} {when}, {how}"
    asked = settings.asked
    there = f"{asked.metric} {asked.value:g}" if isinstance(asked, ReachMetric) else f"loss {goal.loss:g}"
    is_end = "at" if isinstance(asked, ReachMetric) else "at or below"
    of_what = "to reach" if settings.decay is None else f"of the whole horizon of a trial that ends {is_end}"
    if isinstance(goal.least, tuple):
        return f"batchopt reads the two objectives as steps and examples {of_what} {there}, minimised"
    unit = goal.least if isinstance(goal.least, str) else goal.least.unit
    unit = "steps / S_min + examples / E_min" if unit == "balanced" else unit
    return f"batchopt reads the objective as the cost ({unit}) {of_what} {there}, minimised"


def _curve(trial: FrozenTrial) -> LossCurve:
    examples, losses = [], []
    for step, loss in sorted(trial.intermediate_values.items()):
        # A loss of zero has no logarithm; the run is over for all that the law can say.
        if loss == 0 or not math.isfinite(loss):
            break
        examples.append(int(step))
        losses.append(float(loss))
    return LossCurve(tuple(examples), tuple(losses))
