"""The study that `tune` and `demo` run: its storage, what it searches, and its objective."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import torch
from optuna.trial import TrialState

from batchopt.cli.arguments import STUDY_NAME
from batchopt.errors import EvidenceError, NonFiniteLossError, TaskError
from batchopt.planning.goal import LowestLoss, ReachLoss
from batchopt.schedules.schedule import Schedule
from batchopt.search import TradeoffPruner, TradeoffSampler, check
from batchopt.search.decay import decays
from batchopt.training.train import train

if TYPE_CHECKING:
    from batchopt.cli.console import Console
    from batchopt.forecasting.forecast import Forecast
    from batchopt.planning.plan import Plan
    from batchopt.probing.task import TrainingTask

SPAN = 16.0
"""The search covers this factor on both sides of the plan's batch size and learning rate."""

PATIENCE = 3.0
"""A trial gives up at this many times the examples that the plan predicts."""

EXAMPLES_KEY = "examples"
"""User attribute of a trial: examples that it trained on."""

HEARTBEAT_SECONDS, GRACE_SECONDS = 3, 12
"""A trial whose worker was killed is marked as failed when its last sign of life is older than the grace period."""


@dataclass(frozen=True, slots=True)
class Search:
    """What a study searches, and for how long.

    Attributes:
        plan: its goal is the study's.
        batch_sizes: smallest and largest.
        learning_rates: lowest and highest.
        max_examples: a trial towards a loss gives up after so many; where its rate decays, that is its horizon.
        trials: trials to complete or prune in all, over every run of the command.
        seed: of the sampler.
        first: settings to try before the sampler's own, (batch size, learning rate) each.
    """

    plan: Plan
    batch_sizes: tuple[int, int]
    learning_rates: tuple[float, float]
    max_examples: int
    trials: int
    seed: int = 0
    first: tuple[tuple[int, float], ...] = ()

    @classmethod
    def around(
        cls,
        plan: Plan,
        *,
        largest_batch: int,
        batch_sizes: tuple[int, int] | None = None,
        max_examples: int | None = None,
        trials: int,
        seed: int = 0,
        first: Sequence[tuple[int, float]] = (),
    ) -> Search:
        """A factor of `SPAN` around the plan, and whatever is to be tried first."""
        sizes = [plan.batch_size / SPAN, min(plan.batch_size * SPAN, largest_batch), *(size for size, _ in first)]
        rates = [plan.learning_rate / SPAN, plan.learning_rate * SPAN, *(rate for _, rate in first)]
        return cls(
            plan=plan,
            batch_sizes=batch_sizes or (max(1, int(min(sizes))), int(max(sizes))),
            learning_rates=(min(rates), max(rates)),
            max_examples=max_examples or round(PATIENCE * plan.examples.value),
            trials=trials,
            seed=seed,
            first=tuple(first),
        )


def run_study(
    task: TrainingTask, forecast: Forecast, search: Search, console: Console, *, study: str, name: str = STUDY_NAME
) -> optuna.Study:
    """Begin or go on with a study, until it has its trials."""
    goal = search.plan.goal
    if isinstance(goal, ReachLoss) and isinstance(goal.least, tuple):
        raise EvidenceError("a goal with two objectives has no single cost to search for: plan for least='balanced'")
    _quieten()
    running = optuna.create_study(
        storage=_storage(study),
        study_name=name,
        load_if_exists=True,
        sampler=TradeoffSampler(
            forecast,
            goal=goal,
            batch_size="batch_size",
            learning_rate="learning_rate",
            learning_rate_schedule=task.learning_rate_schedule if rate_decays(task) else "constant",
            # A task's own decay is over all that a trial may see.
            horizon=search.max_examples if isinstance(goal, ReachLoss) and rate_decays(task) else None,
            # The probe may have warmed up by itself, which trials do not.
            warmup_examples=task.warmup_examples if rate_decays(task) else None,
            seed=search.seed,
        ),
        pruner=TradeoffPruner(),
    )
    optuna.storages.fail_stale_trials(running)
    for batch_size, learning_rate in search.first:
        running.enqueue_trial({"batch_size": batch_size, "learning_rate": learning_rate}, skip_if_exists=True)

    def show(study: optuna.Study, _: optuna.trial.FrozenTrial) -> None:
        console.progress("study", min(1.0, _ended(study) / search.trials))
        # Another worker may have run the last ones meanwhile.
        if _ended(study) >= search.trials:
            study.stop()

    left = search.trials - _ended(running)
    if left > 0:
        running.optimize(lambda trial: objective(trial, task, search), n_trials=left, callbacks=[show])
    console.end_progress()
    return running


def objective(trial: optuna.Trial, task: TrainingTask, search: Search) -> float:
    """One trial: the cost at which the goal's loss is reached, or the loss at the end of the goal's budget.

    Where the task's learning rate decays, a trial towards a loss goes on to its horizon, and that is its cost.
    """
    batch_size = trial.suggest_int("batch_size", *search.batch_sizes, log=search.batch_sizes[0] < search.batch_sizes[1])
    learning_rate = trial.suggest_float("learning_rate", *search.learning_rates, log=True)
    others = {
        name: trial.suggest_float(name, low, high, log=scale == "log")
        for name, (low, high, scale) in task.search.items()
    }
    check(trial)

    def report(examples: int, loss: float) -> None:
        trial.set_user_attr(EXAMPLES_KEY, examples)
        trial.report(loss, step=examples)
        if trial.should_prune():
            raise optuna.TrialPruned

    try:
        return _value(task, search, batch_size, learning_rate, others, report)
    except NonFiniteLossError as error:
        raise optuna.TrialPruned(str(error)) from error
    except TaskError as error:
        if not isinstance(error.__cause__, torch.OutOfMemoryError):
            raise
        trial.set_constraint("batchopt:memory", 1.0)
        raise optuna.TrialPruned(str(error)) from error


def _value(
    task: TrainingTask,
    search: Search,
    batch_size: int,
    learning_rate: float,
    others: Mapping[str, float],
    report: Callable[[int, float], None],
) -> float:
    goal, price = search.plan.goal, search.plan.price
    if isinstance(goal, LowestLoss):
        steps = int(goal.within / price(batch_size))
        if steps < 1:
            raise optuna.TrialPruned(
                f"the budget of {goal.within:.4g} does not pay a single step of {batch_size} examples"
            )
        schedule = Schedule.constant(batch_size, examples=steps * batch_size, learning_rate=learning_rate)
        return train(task, schedule, hyperparameters=others, on_evaluation=report).curve.losses[-1]
    examples = max(search.max_examples, batch_size)
    schedule = Schedule.constant(batch_size, examples=examples, learning_rate=learning_rate)
    if rate_decays(task):
        # The loss counts where the decay ends, and a trial costs its horizon: the surrogate takes it so.
        end = train(task, schedule, hyperparameters=others, on_evaluation=report).curve.losses[-1]
        if end > goal.loss:
            raise optuna.TrialPruned(f"the loss is {end:.4g} at the end of the decay, after {examples} examples")
        return price.of_run(batch_size=batch_size, steps=examples / batch_size)
    result = train(task, schedule, hyperparameters=others, until_loss=goal.loss, on_evaluation=report)
    if result.reached is None:
        raise optuna.TrialPruned(f"the loss was not reached within {search.max_examples} examples")
    return price.of_run(batch_size=batch_size, steps=result.reached / batch_size)


def rate_decays(task: TrainingTask) -> bool:
    """Whether every trial follows a decay of the task's own."""
    return task.learning_rate_schedule is not None and decays(task.learning_rate_schedule)


def spent(study: optuna.Study, search: Search) -> float:
    """What all trials spent, in the goal's unit."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if "batch_size" in trial.params]
    return sum(
        search.plan.price.of_run(
            batch_size=trial.params["batch_size"],
            steps=trial.user_attrs.get(EXAMPLES_KEY, 0) / trial.params["batch_size"],
        )
        for trial in trials
    )


def load_study(study: str, name: str) -> optuna.Study:
    """An existing study.

    Raises:
        EvidenceError: there is none of that name.
    """
    _quieten()
    if "://" not in study and not Path(study).is_file():
        raise EvidenceError(f"there is no study file {study!r}: run batchopt tune first")
    try:
        return optuna.load_study(study_name=name, storage=_storage(study))
    except KeyError:
        names = optuna.get_all_study_names(_storage(study))
        if name == STUDY_NAME and len(names) == 1:
            return optuna.load_study(study_name=names[0], storage=_storage(study))
        held = f"it holds {', '.join(map(repr, names))}" if names else "it holds none"
        raise EvidenceError(f"{study} holds no study named {name!r}: {held}; give a name with --name") from None


def _storage(study: str) -> optuna.storages.RDBStorage:
    """The storage that a file name or an URL means.

    Raises:
        EvidenceError: the file or the data base cannot be opened.
    """
    from sqlalchemy.exc import SQLAlchemyError

    if "://" not in study and not Path(study).absolute().parent.is_dir():
        raise EvidenceError(f"there is no folder for the study file {study!r}: make it first")
    url = study if "://" in study else f"sqlite:///{study}"
    try:
        return optuna.storages.RDBStorage(url, heartbeat_interval=HEARTBEAT_SECONDS, grace_period=GRACE_SECONDS)
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error)
        raise EvidenceError(f"{study} cannot be opened as an Optuna storage: {reason}") from error


def _quieten() -> None:
    """What the command shows is its own; heartbeats are experimental in Optuna, and that is ours to know."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def _ended(study: optuna.Study) -> int:
    # Failed trials were killed: they are run again.
    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))
