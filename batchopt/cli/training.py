"""A training by a schedule, as `train`, `run` and `demo` do and show it: predicted beside measured."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchopt._wording import seconds as in_words
from batchopt.cli import processes
from batchopt.cli.console import Console
from batchopt.errors import BatchoptError
from batchopt.forecasting.doubts import HARDLY_FELL
from batchopt.planning.goal import ReachLoss
from batchopt.planning.plan import Plan
from batchopt.report.comparison import Comparison
from batchopt.schedules.schedule import Schedule

if TYPE_CHECKING:
    from batchopt.probing.task import TrainingTask
    from batchopt.training.adaptive import AdaptiveSchedule
    from batchopt.training.train import TrainingResult

PATIENCE = 3
"""Training towards a plan's loss at a constant rate gives up at this many times the examples of the schedule."""


OTHER_SPEED = 1.25
"""A step that takes longer or shorter by this factor is reported: timings of the same machine differ by less."""


class GoalMissedError(BatchoptError):
    """A training towards a plan's loss ended before it."""


def train_and_show(
    task: TrainingTask,
    schedule: Schedule,
    console: Console,
    *,
    plan: Plan | None,
    adaptive: AdaptiveSchedule | None,
    checkpoint: Path | None,
    learning_rate: float | None = None,
    **settings: Any,
) -> tuple[TrainingResult, list[Comparison]]:
    """Train, and show what was predicted beside what was measured.

    Args:
        task: what to train.
        schedule: to follow.
        console: where to show it.
        plan: to compare with.
        adaptive: to follow instead, where the run decides itself when its rate decays.
        checkpoint: as for `train`.
        learning_rate: likewise.
        settings: further ones of `train_by`.
    """
    result = train_by(
        task,
        adaptive or schedule,
        console,
        plan=plan,
        learning_rate=learning_rate,
        checkpoint=checkpoint,
        **settings,
    )
    show_training(result, checkpoint, console)
    if adaptive is not None:
        show_decays(adaptive, result, console)
    rows = []
    rate = adaptive.diverged[0].learning_rate if adaptive is not None and adaptive.diverged else None
    if plan is not None and is_as_planned(plan, schedule, rate or result.schedule.learning_rate):
        rows = compare(plan, schedule, result)
    elif plan is not None:
        console.say("what was trained is not what was planned, so nothing is compared: another schedule, or rate")
    if plan is not None and isinstance(plan.goal, ReachLoss) and not rows and len(schedule.segments) > 1:
        console.say("the plan predicts the loss of its constant batch size, and this schedule raises it: not compared")
    show_comparison(result, rows, console)
    return result, rows


def training_result(result: TrainingResult, rows: list[Comparison]) -> dict[str, object]:
    """A training in one JSON object."""
    return {
        "steps": result.steps,
        "examples": result.examples,
        "resumed_at_examples": result.resumed_at,
        "gone_back_examples": result.gone_back,
        "seconds": result.seconds,
        "loss": result.curve.losses[-1],
        "reached_at_examples": result.reached,
        "compared": [{"name": r.name, "predicted": r.predicted, "measured": r.measured} for r in rows],
    }


def show_decays(adaptive: AdaptiveSchedule, result: TrainingResult, console: Console) -> None:
    """When an adaptive schedule let the rate decay, and where the run diverged before."""
    from batchopt.training.adaptive import LOWERED

    for run in adaptive.diverged:
        console.item(
            f"At a learning rate of {run.learning_rate:.4g} the run diverged at {run.at:,} examples; it began again at "
            f"{LOWERED * run.learning_rate:.4g}."
        )
    for decay in adaptive.missed:
        console.item(
            f"The decay from {decay.begin:,} to {decay.end:,} examples ended at a loss of {decay.loss:.4g}, where "
            f"{decay.predicted:.4g} was predicted: the run went back to {decay.begin:,} and on from there."
        )
    begin, planned = adaptive.decay_begins, adaptive.planned_beginning
    if result.reached is not None and result.reached <= begin:
        console.say(f"the rate never decayed, as the loss was reached before; by the plan it falls from {planned:,} on")
    else:
        console.say(f"the rate decayed from {begin:,} examples on; by the plan it falls from {planned:,} on")


def show_training(result: TrainingResult, checkpoint: Path | None, console: Console) -> None:
    """What was trained, and which of it a checkpoint held already."""
    trained = "trained"
    if result.resumed_at is not None:
        trained = "in all"
        if result.resumed_at == result.examples:
            console.say(f"the training in {checkpoint} was finished already; nothing was trained")
        else:
            console.say(f"went on from the {result.resumed_at:,} examples of {checkpoint}")
    console.say(
        f"{trained} {result.steps:,} steps on {result.examples:,} examples in {in_words(result.seconds)} "
        f"(and {in_words(result.evaluation_seconds)} of evaluations); last loss {result.curve.losses[-1]:.4g}"
    )


def train_by(
    task: TrainingTask,
    schedule: Schedule | AdaptiveSchedule,
    console: Console,
    *,
    plan: Plan | None = None,
    learning_rate: float | None = None,
    checkpoint: Path | None = None,
    seed: int = 0,
    micro_batch: int | None = None,
    metrics: Path | None = None,
    log: str | None = None,
) -> TrainingResult:
    """Train by a schedule: one whose rate decays to its end, which is where its loss is reached.

    Where the rate does not decay, or the run decides itself when, it ends at the plan's loss; at three times the
    planned examples at most.
    """
    from batchopt.training.train import train

    goal = plan.goal if plan is not None else None
    until = goal.loss if isinstance(goal, ReachLoss) else None
    if until is not None and isinstance(schedule, Schedule):
        if _decays(schedule):
            until = None
        else:
            schedule = replace(schedule, examples=PATIENCE * schedule.examples)

    def show(examples: int, loss: float) -> None:
        console.progress("training", min(1.0, examples / schedule.examples))

    with warnings.catch_warnings():
        # What is said of it is told at the end, in words and without the place in our code.
        warnings.filterwarnings("ignore", message=".*The run begins again", category=RuntimeWarning)
        result = train(
            task,
            schedule,
            learning_rate=learning_rate,
            seed=seed,
            until_loss=until,
            checkpoint=checkpoint,
            on_evaluation=show,
            micro_batch=micro_batch,
            metrics=metrics,
            log=log,
        )
    console.end_progress()
    return result


def _decays(schedule: Schedule) -> bool:
    rates = schedule.learning_rate_schedule
    return rates is not None and rates.decays


def is_as_planned(plan: Plan, schedule: Schedule, learning_rate: float | None) -> bool:
    """Whether a run began by the plan's own schedule, at its learning rate: of no other does it predict anything."""
    return schedule == plan.schedule and learning_rate == schedule.learning_rate


def compare(plan: Plan, schedule: Schedule, result: TrainingResult) -> list[Comparison]:
    """Predictions for the schedule beside the run: its price to the goal's loss (none if not reached), or its loss.

    The task's metrics as well, where something is compared.
    """
    if not isinstance(plan.goal, ReachLoss):
        return [Comparison("loss", plan.best.loss, result.curve.losses[-1]), *_metrics_compared(plan, result)]
    if result.schedule == schedule and _decays(schedule):  # a schedule that was followed to its end
        same = len(schedule.segments) == 1  # the plan's loss is of its constant batch size
        loss = Comparison("loss at the end", plan.loss, result.curve.losses[-1])
        return [loss, *_metrics_compared(plan, result)] if same else []
    steps, examples, seconds = result.steps_reached, result.reached, result.seconds_reached
    if steps is None or examples is None or seconds is None:
        return []
    # The plan's intervals are of its constant batch size; the totals of a schedule that raises it shift them.
    rows = [
        Comparison(
            "steps", plan.steps.scaled(schedule.steps * plan.batch_size / plan.horizon), steps + result.steps_gone_back
        ),
        Comparison("examples", plan.examples.scaled(schedule.examples / plan.horizon), examples + result.gone_back),
    ]
    if plan.seconds is not None and processes.count() == 1:  # a step of several takes another time
        gain = plan.schedule_cost.value / plan.cost.value
        rows.append(Comparison("seconds", plan.seconds.scaled(gain), seconds))
    return rows + _metrics_compared(plan, result)


def _metrics_compared(plan: Plan, result: TrainingResult) -> list[Comparison]:
    """Metrics at the end; those of both signs have no ratio that could be compared."""
    measured = {name: values[-1] for name, values in result.curve.metrics.items()}
    return [
        Comparison(f"{name} at the end", predicted, measured[name])
        for name, predicted in plan.metrics.items()
        if name in measured and predicted.value > 0 and measured[name] >= 0
    ]


def check_reached(plan: Plan, result: TrainingResult, *, adapted: bool = False) -> None:
    """Raise GoalMissedError where a plan's loss was not reached: a command's last act, when all else is written."""
    if not isinstance(plan.goal, ReachLoss):
        return
    decayed = result.schedule.learning_rate_schedule is not None and result.outcome == "finished"
    if result.reached is not None or result.curve.examples_to(plan.goal.loss, is_over=decayed) is not None:
        return
    remedy = "let the run decide when its rate decays (--adapt FORECAST), or probe for longer"
    if adapted:
        remedy = "probe for longer, or plan for a higher loss"
    elif plan.learning_rate_schedule != "wsd":
        remedy = "plan by wsd (--learning-rate-schedule wsd) and " + remedy
    # All that the median was taken of: the last alone may lie below the goal.
    losses = ", ".join(f"{loss:.4g}" for loss in result.curve.losses[-3:])
    raise GoalMissedError(
        f"the plan's loss of {plan.goal.loss:.4g} was not reached: the last evaluated losses are {losses} after "
        f"{result.examples:,} examples, where nine of ten runs were expected to be there: {remedy}"
    )


def show_comparison(result: TrainingResult, rows: list[Comparison], console: Console) -> None:
    """Predicted beside measured."""
    if result.reached is not None:
        compared = ", which is what is compared" if rows else ""
        if rows and result.gone_back:
            compared = f"; with the {result.gone_back:,} that the run went back on this is what is compared"
        console.item(
            f"The loss was reached after {result.reached:,.0f} examples{compared}; "
            f"the run ended at {result.examples:,}, where an evaluation confirmed it."
        )
    if rows:
        console.table(
            ("", "predicted", "measured", "measured / predicted", "in the 90 % interval"),
            [(r.name, r.predicted, r.measured, r.error_ratio, "yes" if r.inside else "no") for r in rows],
        )
    losses = result.curve.losses
    if losses and losses[-1] > HARDLY_FELL * losses[0]:
        fell = "rose" if losses[-1] > losses[0] else "hardly fell"
        console.item(
            f"The loss {fell}, from {losses[0]:.4g} to {losses[-1]:.4g}: the learning rate is too high for this "
            "run. Train at half of it, and probe for longer before the next plan."
        )
    missed = [row.name for row in rows if not row.inside]
    speed = _other_speed(rows)
    if speed is not None:
        console.item(speed)
        missed = [name for name in missed if name != "seconds"]
    if missed:
        console.item(f"Outside of its 90 % interval: {', '.join(missed)}. One in ten is expected to be.")


def _other_speed(rows: list[Comparison]) -> str | None:
    """That the machine was slower or faster than when the probe timed its steps; None where it was not."""
    by_name = {row.name: row for row in rows}
    if not {"steps", "seconds"} <= by_name.keys():
        return None
    steps, seconds = by_name["steps"], by_name["seconds"]
    if min(steps.measured, seconds.measured) <= 0:
        return None
    predicted, measured = seconds.predicted.value / steps.predicted.value, seconds.measured / steps.measured
    ratio = max(measured / predicted, predicted / measured)
    if ratio < OTHER_SPEED:
        return None
    return (
        f"A step took {in_words(measured)}, and {in_words(predicted)} when the probe measured it: the machine was "
        f"{ratio:.2g} times {'slower' if measured > predicted else 'faster'}. Seconds are predicted for the machine as "
        "busy as it was then; steps, examples and losses do not depend on that."
    )
