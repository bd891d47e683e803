"""The probing phase: what to measure, in which order, and for how much of the budget.

    step time             timed steps of a throw-away run at several batch sizes
    learning-rate range   a run whose rate rises until the loss blows up; skipped where a rate is given
                          that turns out to be good
    learning-rate search  runs of a few steps at rates far apart, or around the rate that is given
    short runs            two batch sizes a factor of 8 apart, three learning rates or more each, a factor of 3 apart
    cooldowns             off the best short runs of each batch size: the rate falls to zero, over a quarter of what the
                          run took
    long runs             the short run of each batch size that cooled down to the lowest loss goes on; that of the
                          larger one is the reference run
    cooldowns             off each long run two, over 10 and 40 % of what it took
    noise scales          after the best run of the search, the short and the long reference run

Runs warm up as their task says, or else over three tenths of a short run, and then keep their rate. A cooldown begins
from the state at a run's end, which stays as it is, and is a branch of its own in the report, with its schedule and
with losses after that point only. A probe that is told its goal plans for it before the long runs, which then are no
longer than the planned run, and are left out where they count for more than they can save.

Each part has a share of the budget, and a leg never spends more than its own, so the whole never does. A step counts
for its examples, and for `per_step` more, or by its measured time where the budget is one of seconds. All parts have
fixed names and are kept in a journal as they finish: the same call goes on where it stopped.
"""

from __future__ import annotations

import platform
import sys
import tempfile
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch

from batchopt._checks import check_count, check_non_negative, check_positive
from batchopt._wording import number
from batchopt.errors import NonFiniteLossError, RecordError, TaskError
from batchopt.evidence import Branch, ProbeReport, Provenance, Spending
from batchopt.learning_rate_schedule import LearningRateSchedule, multiplier_at
from batchopt.planning.goal import Goal, check_goal
from batchopt.probing.aim import Aim, aim_of
from batchopt.probing.branches import SharedTask
from batchopt.probing.budget import (
    SHARES,
    USUAL,
    BatchSizes,
    choose_batch_sizes,
    examples_within,
    price_in_examples,
    price_of,
    short_run_budget,
    warmup_within,
)
from batchopt.probing.cooldowns import cooldowns_of_short_runs
from batchopt.probing.data import available, evaluation_examples
from batchopt.probing.distributed import process_group
from batchopt.probing.evaluation import check_evaluation
from batchopt.probing.finite_data import check_finite_data
from batchopt.probing.journal import Identity, Journal, Part
from batchopt.probing.kinds.preconditioned import is_adaptive, momentum_delay
from batchopt.probing.long_runs import long_runs, noise_of_short_runs
from batchopt.probing.possible_goals import check_possible
from batchopt.probing.rollouts import Rollouts
from batchopt.probing.run import TrainingRun
from batchopt.probing.session import Progress, Session, StopProbe
from batchopt.probing.short_runs import search_learning_rate, short_runs
from batchopt.probing.step_time import LARGEST_UNBOUNDED, measure_step_cost, smallest_batch
from batchopt.probing.task import TrainingTask
from batchopt.step_cost import StepCost

SCHEDULE_POINTS = 64
"""A function of progress is kept by its values at so many steps."""


def probe(
    task: TrainingTask,
    *,
    examples: int | None = None,
    seconds: float | None = None,
    per_step: float = 0.0,
    seed: int = 0,
    goal: Goal | None = None,
    learning_rate: float | None = None,
    batch_sizes: tuple[int, int] | None = None,
    journal: str | Path | None = None,
    progress: Progress | None = None,
) -> ProbeReport:
    """Measure what a forecast needs: noise scales, short runs and their cooldowns, step cost.

    Under torchrun the first process probes, on its device, and all of them get its report; what is to be written is
    written by that process alone. A model that the task makes sharded (FSDP2) is probed by all processes together: its
    noise scales by groups of examples, and without a search for the largest batch that fits. The journal must then be
    in a folder that all of them see.

    Args:
        task: what to train; a data set, not a stream.
        examples: ceiling on all examples that get a gradient, evaluation forwards counted a third each.
        seconds: ceiling on wall-clock time; turned into examples by the measured step cost. One of the two is needed.
        per_step: examples that a step counts for beside its own, so that many steps on few examples are not free:
            divide the time of a step at batch size 1 by the time that one more example adds. Without `examples` steps
            count by their measured time.
        seed: of everything random.
        goal: what the forecast is for. The probe then makes no run longer than the planned one, and ends early where
            longer runs would cost more than they can save; without one it spends its budget.
        learning_rate: a rate known to be good at the larger batch size; that of the task's prior if None, and without
            one all rates are searched.
        batch_sizes: smallest and largest batch size to run.
        journal: folder in which finished parts are kept; the same call with the same folder goes on where it
            stopped. A temporary folder if None.
        progress: called with a part's name and the share of the budget that is spent (0 to 1).

    Returns:
        The report. Where a loss became NaN or the time ran out, it holds what was measured and says so in `stopped`.

    Raises:
        BudgetError: the budget is too small for the runs of the learning-rate search.
        TaskError: the task cannot be trained as written (a stream, a wrong loss, no trainable parameter, ...).
        NonFiniteLossError: a loss is NaN or infinite before any training.
        UnreachableGoalError: no run can reach the goal, or one that is not trained at all has.
        RecordError: the journal belongs to another probe.
    """
    _check_arguments(task, examples, seconds, per_step, goal, learning_rate, batch_sizes)
    told = progress or _silent
    arguments = (task, examples, seconds, per_step, seed, goal, learning_rate, batch_sizes, journal, told)
    group = process_group(task.torch_device)
    if group is None or TrainingRun(task, learning_rate=learning_rate or 1.0, seed=seed).is_sharded:
        return _probe(*arguments)
    return ProbeReport.from_json(group.from_first(lambda: _probe(*arguments).to_json()))


def _probe(
    task: TrainingTask,
    examples: int | None,
    seconds: float | None,
    per_step: float,
    seed: int,
    goal: Goal | None,
    learning_rate: float | None,
    batch_sizes: tuple[int, int] | None,
    journal: str | Path | None,
    progress: Progress,
) -> ProbeReport:
    run = TrainingRun(task, learning_rate=learning_rate or 1.0, seed=seed)
    parameters = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    if task.is_stream:
        raise TaskError(
            "a stream of batches cannot be run twice from one point: give a function that opens a stream of examples "
            "by a seed, or measure it with measure_noise_scale"
        )
    population = available(task.data)
    given = (examples, seconds, seed, learning_rate, batch_sizes, population, parameters, per_step, task.prior, goal)
    identity = Identity(*given, metrics=tuple(task.metrics))
    with tempfile.TemporaryDirectory(prefix="batchopt-") as private:
        place = str(Path(private) / "journal" if journal is None else Path(journal).absolute())
        folder = Path(place if run.group is None else run.group.from_first(lambda: place))
        kept = Journal.open(folder, identity, run.group)
        session = Session(
            task=task,
            shared=SharedTask(task, Path(private)),
            journal=kept,
            seed=seed,
            progress=progress if run.group is None or run.group.rank == 0 else _silent,
            deadline=None if seconds is None else time.time() + seconds - kept.seconds_spent(),
            price=price_of(per_step),
            prior=task.prior,
        )
        provenance = _provenance(task, seed, parameters, run.optimizer)
        # A sharded model's largest batch is not sought, so none is taken to fit that nobody has asked for.
        largest = min(population, LARGEST_UNBOUNDED) if run.is_sharded else population
        bounds = batch_sizes or (smallest_batch(run), largest)
        check_finite_data(task, run.model)
        doubt = None if goal is None else check_possible(task, run.model, goal)
        session.notes += [] if doubt is None else [doubt]
        check_evaluation(task, run.model)
        return _run(session, examples, seconds, goal, learning_rate, bounds, provenance)


def _run(
    session: Session,
    examples: int | None,
    seconds: float | None,
    goal: Goal | None,
    learning_rate: float | None,
    bounds: tuple[int, int],
    provenance: Provenance,
) -> ProbeReport:
    stopped = None
    low, high = bounds
    try:
        session.budget = examples or 0
        sizes = None if examples is None else _batch_sizes(session, (low, high))
        cost = _step_cost(session, examples, seconds, high)
        high = min(high, cost.largest_batch_size or high)
        if seconds is not None:
            session.price = price_in_examples(cost) if examples is None else session.price
            session.budget = min(examples or sys.maxsize, examples_within(seconds, cost, session.price))
        if sizes is None or seconds is not None or sizes.large > high:
            sizes = _batch_sizes(session, (low, high))
        if isinstance(session.task.data, Rollouts):
            session.decisions.append(f"Losses are the best score, {session.task.data.best_score:g}, minus the score.")
        session.decisions.append(_why_batch_sizes(session, sizes))
        session.warm_up(warmup_within(short_run_budget(session.budget), session.price, sizes))
        found = search_learning_rate(session, learning_rate, sizes.search)
        large = [] if found is None else short_runs(session, "large", sizes.large, found)
        if found is None or not large:
            raise StopProbe(_why_all_diverged(session, sizes.large if found else sizes.search))
        small = short_runs(session, "small", sizes.small, found)
        large, small = cooldowns_of_short_runs(session, large, small)
        noise_of_short_runs(session, found, large[0])
        aim = None if goal is None else _aim(session, goal, provenance)
        long_runs(session, small, large, aim)
        if not small:
            raise StopProbe(_why_all_diverged(session, sizes.small))
    except StopProbe as stop:
        stopped = str(stop)
    return _report(session, stopped, provenance)


def _aim(session: Session, goal: Goal, provenance: Provenance) -> Aim | None:
    """What is known of the planned run; of several processes the first works it out."""
    session.check_time()

    def known() -> str:
        return aim_of(_report(session, None, provenance), goal, session.price).to_json()

    def work() -> Part:
        began, group = time.perf_counter(), session.journal.group
        aim = Aim.from_json(known() if group is None else group.from_first(known))
        return Part(Spending("forecast for the goal", 0.0, 0, time.perf_counter() - began), aim=aim)

    aim = session.do("aim", work).aim
    session.decisions += [] if aim is None else [aim.words]
    session.check_time()
    return aim


def _why_all_diverged(session: Session, batch_size: int) -> str:
    """That no run of a batch size is alive, and what ended the one with the lowest rate."""
    told = f"no run at batch size {batch_size} ended below the initial loss, at any learning rate that was tried"
    ended = {
        part.branch.learning_rate: part.failure
        for part in session.parts.values()
        if part.branch is not None and part.branch.batch_size == batch_size and part.failure is not None
    }
    if not ended:
        return f"{told}: give a learning rate that works, or a larger budget"
    return f"{told}, and at the lowest, {min(ended):.3g}, {ended[min(ended)]}"


def _why_batch_sizes(session: Session, sizes: BatchSizes) -> str:
    price = session.price(sizes.large)
    steps = short_run_budget(session.budget) / price
    return (
        f"Batch sizes {sizes.small} and {sizes.large}: at the larger one a short run has {steps:.0f} steps within its "
        f"share of the budget, each of which counts for {number(price)} examples."
    )


def _batch_sizes(session: Session, bounds: tuple[int, int]) -> BatchSizes:
    return choose_batch_sizes(
        session.budget,
        session.price,
        bounds=bounds,
        population=available(session.task.data),
    )


def _step_cost(session: Session, examples: int | None, seconds: float | None, high: int) -> StepCost:
    share = SHARES["step time"]

    def work() -> Part:
        cost, spending, initial_loss = measure_step_cost(
            session.task,
            learning_rate=1e-6,
            max_batch_size=high,
            seconds=2.0 if seconds is None else min(2.0, share * seconds),
            max_examples=None if examples is None else int(share * examples),
            per_step=session.price.per_step,
            seed=session.seed,
        )
        if examples is None:
            spending = replace(spending, counted=spending.seconds * USUAL / cost(USUAL))
        return Part(spending, step_cost=cost, initial_loss=initial_loss)

    try:
        part = session.do("step-time", work)
    except NonFiniteLossError as error:
        what = str(error).partition(": ")[0]
        where = "the data, or in the loss"
        if isinstance(session.task.data, Rollouts):
            where = "the environments' rewards and observations, or in the loss"
        raise NonFiniteLossError(
            f"losses must be finite before any training, and {what}: look for NaN or infinite values in {where}"
        ) from None
    if part.step_cost is None:
        raise RecordError("the journal's part step-time holds no step cost: delete the journal and begin anew")
    return part.step_cost


def _report(session: Session, stopped: str | None, provenance: Provenance) -> ProbeReport:
    runs: dict[tuple[int, float, LearningRateSchedule | None], Branch] = {}
    for part in session.parts.values():
        # A later leg of the same run holds the whole curve; one that began when the time was up holds nothing.
        if part.branch is not None and part.branch.examples > 0:
            branch = part.branch
            runs[branch.batch_size, branch.learning_rate, branch.learning_rate_schedule] = branch
    last = None if session.reference is None else session.parts.get(session.reference)
    reference = None if last is None else last.branch
    spending: dict[str, Spending] = {}
    for part in session.parts.values():
        name, before = part.spending.part, spending.get(part.spending.part)
        spending[name] = part.spending if before is None else before + part.spending
    costs = [part.step_cost for part in session.parts.values() if part.step_cost is not None]
    timings = [
        (part.branch.batch_size, part.step_seconds)
        for part in session.parts.values()
        if part.branch is not None and part.step_seconds is not None
    ]
    initial = [part.initial_loss for part in session.parts.values() if part.initial_loss is not None]
    return ProbeReport(
        reference=reference,
        branches=tuple(branch for branch in runs.values() if branch != reference),
        noise_scales=tuple(part.noise_scale for part in session.parts.values() if part.noise_scale is not None),
        step_cost=costs[0].retimed(timings) if costs else None,
        spending=tuple(spending.values()),
        budget_examples=session.budget,
        stopped=stopped,
        provenance=replace(provenance, prior=session.prior),
        initial_loss=initial[0] if initial else None,
        notes=tuple(session.notes),
        decisions=tuple(session.decisions),
    )


def _provenance(task: TrainingTask, seed: int, parameters: int, optimizer: torch.optim.Optimizer) -> Provenance:
    packages = ("batchopt", "torch", "numpy", "scipy")
    device = str(task.torch_device)
    if task.torch_device.type == "cuda":
        device = f"{device} ({torch.cuda.get_device_name(task.torch_device)})"
    versions = {name: version(name) for name in packages} | {"python": platform.python_version()}
    return Provenance(
        versions=versions,
        device=device,
        seed=seed,
        population=task.population,
        parameters=parameters,
        adaptive=is_adaptive(optimizer),
        delay=momentum_delay(optimizer),
        warmup_examples=task.warmup_examples,
        learning_rate_schedule=_schedule_of(task),
        evaluated=evaluation_examples(task),
    )


def _schedule_of(task: TrainingTask) -> str | tuple[float, ...] | None:
    """The task's own schedule as a name, or as multipliers at even progress."""
    shape = task.learning_rate_schedule
    if shape is None or isinstance(shape, str):
        return shape
    LearningRateSchedule.of(shape, examples=SCHEDULE_POINTS)  # refuses what is no schedule
    return tuple(multiplier_at(shape, k / SCHEDULE_POINTS) for k in range(SCHEDULE_POINTS + 1))


def _check_arguments(
    task: TrainingTask,
    examples: int | None,
    seconds: float | None,
    per_step: float,
    goal: Goal | None,
    learning_rate: float | None,
    batch_sizes: tuple[int, int] | None,
) -> None:
    if not isinstance(task, TrainingTask):
        raise TypeError(f"task must be a TrainingTask, got {type(task).__name__}")
    if examples is None and seconds is None:
        raise ValueError("a probe needs a budget: give examples=..., or seconds=...")
    if examples is not None:
        check_count("examples", examples)
    if seconds is not None:
        check_positive("seconds", seconds)
    check_non_negative("per_step", per_step)
    if goal is not None:
        check_goal(goal, task.metrics)
    if per_step and examples is None:
        raise ValueError("per_step needs examples=...: a budget of seconds counts steps by their measured time")
    if learning_rate is not None:
        check_positive("learning_rate", learning_rate)
    if batch_sizes is not None:
        check_count("smallest batch size", batch_sizes[0])
        check_count("largest batch size", batch_sizes[1], least=batch_sizes[0])


def _silent(part: str, done: float) -> None:
    """Progress that nobody watches."""
