"""`batchopt tune`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from batchopt.cli.arguments import add_batch_sizes, count
from batchopt.cli.console import Console
from batchopt.errors import EvidenceError
from batchopt.forecasting.forecast import Forecast
from batchopt.planning.goal import ReachLoss
from batchopt.planning.plan import Plan

if TYPE_CHECKING:
    import optuna

    from batchopt.probing.task import TrainingTask

SUMMARY = "Search around the plan with Optuna: batch size, learning rate and the task's own hyperparameters."
DETAILS = """\
An Optuna study in an SQLite file. TradeoffSampler proposes by the forecast, check() prunes trials before any compute,
TradeoffPruner stops running ones; every trial says why (batchopt explain). After Ctrl-C or a crash the same command goes
on until the study has --trials finished trials.

  batchopt tune my_task.py:task forecast.json --plan plan.json --trials 20 --study study.db
"""

LEARNING_RATE_SPAN = 16.0
"""The search covers this factor around the plan's learning rate, and as much around its batch size."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("task", help="path/to/file.py:name of a batchopt.TrainingTask")
    parser.add_argument("forecast", type=Path, help="file of `batchopt forecast`")
    parser.add_argument("--plan", type=Path, required=True, help="file of `batchopt plan`: the goal and the middle of the search")
    parser.add_argument("--study", default="study.db", help="SQLite file, or a storage URL that Optuna takes (study.db)")
    parser.add_argument("--name", default="batchopt", help="name of the study in it")
    parser.add_argument("--trials", type=count, default=20, help="finished trials in the end (20)")
    parser.add_argument("--max-examples", type=count, help="examples after which a trial gives up (3 x the plan's)")
    parser.add_argument("--seed", type=int, default=0)
    add_batch_sizes(parser)


def run(args: argparse.Namespace, console: Console) -> None:
    """Run the study and show what it spent and saved."""
    from batchopt.cli.task_file import load_task

    forecast, plan = Forecast.load(args.forecast), Plan.load(args.plan)
    study = tune(
        load_task(args.task),
        forecast,
        plan,
        console,
        storage=storage_url(args.study),
        name=args.name,
        trials=args.trials,
        max_examples=args.max_examples,
        batch_sizes=args.batch_sizes,
        seed=args.seed,
    )
    summary = summarise(study)
    show_study(study, summary, console)
    console.say(f"\nwhy each trial was proposed or pruned: batchopt explain {args.study}")
    best = study.best_trial if summary.completed else None
    console.result(
        {
            "study": args.study,
            "trials": len(study.trials),
            "completed": summary.completed,
            "pruned_before_compute": summary.pruned_before,
            "pruned_while_running": summary.pruned_running,
            "examples_spent": summary.spent,
            "examples_without_pruning": summary.unpruned,
            "best": None if best is None else {"params": best.params, "cost": best.value},
        }
    )


def tune(
    task: TrainingTask,
    forecast: Forecast,
    plan: Plan,
    console: Console,
    *,
    storage: str,
    name: str = "batchopt",
    trials: int = 20,
    max_examples: int | None = None,
    batch_sizes: tuple[int, int] | None = None,
    seed: int = 0,
) -> optuna.Study:
    """Run or continue the study of a plan's goal."""
    import optuna

    from batchopt.search import TradeoffPruner, TradeoffSampler

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    goal = plan.goal
    if not isinstance(goal, ReachLoss) or isinstance(goal.least, tuple):
        raise EvidenceError("tune searches for the least cost to a loss: plan with --reach-loss")
    space = _Space.around(plan, batch_sizes or (1, forecast.batch_size_limit), max_examples)
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        load_if_exists=True,
        sampler=TradeoffSampler(forecast, goal=goal, batch_size="batch_size", learning_rate="learning_rate", seed=seed),
        pruner=TradeoffPruner(),
    )
    _end_zombies(study)
    finished = _finished(study)
    if finished < trials:
        study.optimize(
            lambda trial: _objective(trial, task, plan, space),
            n_trials=trials - finished,
            callbacks=[lambda study, _: console.progress("study", min(1.0, _finished(study) / trials))],
        )
    console.end_progress()
    return study


@dataclass(frozen=True, slots=True)
class _Space:
    """Where the search looks, and when a trial gives up."""

    batch_sizes: tuple[int, int]
    learning_rates: tuple[float, float]
    max_examples: int

    @classmethod
    def around(cls, plan: Plan, bounds: tuple[int, int], max_examples: int | None) -> _Space:
        size, rate, span = plan.batch_size, plan.learning_rate, LEARNING_RATE_SPAN
        return cls(
            batch_sizes=(max(bounds[0], int(size / span)), min(bounds[1], int(size * span))),
            learning_rates=(rate / span, rate * span),
            max_examples=max_examples or round(3 * plan.examples.value),
        )


def _objective(trial: optuna.Trial, task: TrainingTask, plan: Plan, space: _Space) -> float:
    """Cost at which the trial reaches the goal's loss."""
    import optuna

    from batchopt.errors import NonFiniteLossError
    from batchopt.schedules.schedule import Schedule
    from batchopt.search import check
    from batchopt.training.train import train

    batch_size = trial.suggest_int("batch_size", *space.batch_sizes, log=True)
    learning_rate = trial.suggest_float("learning_rate", *space.learning_rates, log=True)
    others = {
        name: trial.suggest_float(name, low, high, log=scale == "log") for name, (low, high, scale) in task.search.items()
    }
    trial.set_user_attr("examples", 0)
    check(trial)
    goal = plan.goal
    assert isinstance(goal, ReachLoss)  # noqa: S101  (`tune` has checked it)

    def report(examples: int, loss: float) -> None:
        trial.report(loss, step=examples)
        trial.set_user_attr("examples", examples)
        if trial.should_prune():
            raise optuna.TrialPruned

    schedule = Schedule.constant(batch_size, examples=max(space.max_examples, batch_size), learning_rate=learning_rate)
    try:
        result = train(task, schedule, hyperparameters=others, until_loss=goal.loss, on_evaluation=report)
    except NonFiniteLossError as error:
        raise optuna.TrialPruned(str(error)) from error
    if result.reached is None:
        raise optuna.TrialPruned(f"the loss was not reached within {space.max_examples} examples")
    return plan.price.of_run(batch_size=batch_size, steps=result.reached / batch_size)


@dataclass(frozen=True, slots=True)
class Summary:
    """What a study did.

    Attributes:
        completed: trials that reached the loss.
        pruned_before: trials pruned before any compute.
        pruned_running: trials stopped while running.
        spent: examples that all trials trained on.
        unpruned: examples that they would have trained on, had each pruned one taken as many as the dearest completed.
    """

    completed: int
    pruned_before: int
    pruned_running: int
    spent: int
    unpruned: int


def summarise(study: optuna.Study) -> Summary:
    """Count a study's trials and their examples."""
    from optuna.trial import TrialState

    completed = [t for t in study.trials if t.state == TrialState.COMPLETE]
    pruned = [t for t in study.trials if t.state == TrialState.PRUNED]
    before = [t for t in pruned if not t.intermediate_values]
    spent = sum(int(t.user_attrs.get("examples", 0)) for t in completed + pruned)
    dearest = max((int(t.user_attrs.get("examples", 0)) for t in completed), default=0)
    saved = sum(max(0, dearest - int(t.user_attrs.get("examples", 0))) for t in pruned)
    return Summary(len(completed), len(before), len(pruned) - len(before), spent, spent + saved)


def show_study(study: optuna.Study, summary: Summary, console: Console) -> None:
    """The trials and what pruning saved."""
    rows = []
    for trial in study.trials:
        params = {name: f"{value:.3g}" for name, value in trial.params.items() if name != "batch_size"}
        state = trial.state.name.lower()
        if state == "pruned":
            state = "pruned while running" if trial.intermediate_values else "pruned before compute"
        examples = int(trial.user_attrs.get("examples", 0))
        rows.append((trial.number, trial.params.get("batch_size"), *params.values(), state, examples, trial.value))
    names = [name for name in (study.trials[0].params if study.trials else {}) if name != "batch_size"]
    complete = [row for row in rows if len(row) == 5 + len(names)]
    console.table(("trial", "batch_size", *names, "state", "examples", "cost"), complete)
    console.say(
        f"\n{len(study.trials)} proposed: {summary.completed} completed, {summary.pruned_before} pruned before compute, "
        f"{summary.pruned_running} pruned while running"
    )
    if summary.unpruned:
        console.say(
            f"trained on {summary.spent:,} examples instead of {summary.unpruned:,} (every pruned trial at the price of the "
            f"dearest completed one): {1 - summary.spent / summary.unpruned:.0%} saved"
        )
    if summary.completed:
        best = study.best_trial
        values = ", ".join(f"{name} {value:.4g}" for name, value in best.params.items())
        console.say(f"best: trial {best.number} ({values}) at a cost of {best.value:.4g}")


def storage_url(study: str) -> str:
    """The storage that a file name or URL means."""
    return study if "://" in study else f"sqlite:///{study}"


def load_study(study: str, name: str) -> optuna.Study:
    """An existing study.

    Raises:
        EvidenceError: there is none of that name.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if "://" not in study and not Path(study).is_file():
        raise EvidenceError(f"there is no study file {study!r}: run batchopt tune first")
    try:
        return optuna.load_study(study_name=name, storage=storage_url(study))
    except KeyError:
        raise EvidenceError(f"{study} holds no study named {name!r}: give its name with --name") from None


def _finished(study: optuna.Study) -> int:
    return sum(1 for trial in study.get_trials(deepcopy=False) if trial.state.is_finished())


def _end_zombies(study: optuna.Study) -> None:
    """Trials that a killed run left as running would repel the sampler for ever."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
