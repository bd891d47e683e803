"""`batchopt tune`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from batchopt.cli.arguments import STUDY_NAME, add_batch_sizes, count, setting
from batchopt.cli.console import LOADING, Console
from batchopt.forecasting.forecast import Forecast
from batchopt.planning.plan import Plan

if TYPE_CHECKING:
    import optuna

    from batchopt.cli.study import Search
    from batchopt.search import StudySummary

SUMMARY = "Search around the plan with Optuna: batch size, learning rate and the task's own hyperparameters."
DETAILS = """\
An Optuna study in an SQLite file. TradeoffSampler proposes by the forecast, check() prunes trials before any compute,
TradeoffPruner stops running ones; every trial says why (batchopt explain). After Ctrl-C or a crash the same command
goes on until the study has --trials trials that completed or were pruned; several may run at once on the same study.

Trials keep their learning rate after the task's warm-up, and the law that judges them is one of constant rates: take
batch size and rate from here, and let the rate decay in the run that follows. A task with a learning_rate_schedule of
its own decays by it in every trial, and is judged by the loss at the end of that: over --max-examples where a loss is
to be reached, all of which such a trial costs, else over the plan's budget. Trials warm up over the task's
warmup_examples, and not at all where that is 0.

  batchopt tune my_task.py:task forecast.json --plan plan.json --trials 20 --study study.db
"""
AFTER_INTERRUPT = "the trials so far are kept, and the same command goes on with the study"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("task", help="path/to/file.py:name of a batchopt.TrainingTask")
    parser.add_argument("forecast", type=Path, help="file of `batchopt forecast`")
    parser.add_argument(
        "--plan", type=Path, required=True, help="file of `batchopt plan`: goal and middle of the search"
    )
    parser.add_argument("--study", default="study.db", help="SQLite file, or the URL of a data base (study.db)")
    parser.add_argument("--name", default=STUDY_NAME, help="name of the study in it")
    parser.add_argument("--trials", type=count, default=20, help="trials in the end (20)")
    parser.add_argument(
        "--max-examples",
        type=count,
        help="a trial towards a loss gives up, or ends its decay, after so many (3 x the plan's)",
    )
    parser.add_argument(
        "--try", dest="first", type=setting, action="append", default=[], metavar="BATCH:RATE",
        help="a setting to try first, 64:0.1 for example; repeatable",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the sampler (0)")
    add_batch_sizes(parser)


def run(args: argparse.Namespace, console: Console) -> None:
    """Run the study and show what it spent and saved."""
    console.progress(LOADING, None)
    from batchopt.cli.study import Search, run_study
    from batchopt.cli.task_file import load_task
    from batchopt.search import summarise

    forecast, plan = Forecast.load(args.forecast), Plan.load(args.plan)
    search = Search.around(
        plan,
        largest_batch=forecast.batch_size_limit,
        batch_sizes=args.batch_sizes,
        max_examples=args.max_examples,
        trials=args.trials,
        seed=args.seed,
        first=args.first,
    )
    study = run_study(load_task(args.task), forecast, search, console, study=args.study, name=args.name)
    show_study(study, search, console)
    console.say(f"\nwhy trials were pruned: batchopt explain {args.study}")
    console.result({"study": args.study, **study_result(study, summarise(study))})


def study_result(study: optuna.Study, counts: StudySummary) -> dict[str, object]:
    """A study in one JSON object."""
    best = study.best_trial if counts.completed else None
    return {
        "trials": counts.proposed,
        "completed": counts.completed,
        "pruned_before_compute": counts.pruned_before_compute,
        "pruned_while_running": counts.pruned_while_running,
        "pruned_otherwise": counts.pruned_otherwise,
        "failed": counts.failed,
        "saved": counts.saved,
        "best": None if best is None else {"number": best.number, "params": best.params, "cost": best.value},
    }


def show_study(study: optuna.Study, search: Search, console: Console) -> None:
    """The trials, and what pruning saved."""
    from batchopt.cli.study import EXAMPLES_KEY, spent
    from batchopt.search import summarise

    trials = study.get_trials(deepcopy=False)
    names = sorted({name for trial in trials for name in trial.params} - {"batch_size", "learning_rate"})
    console.table(
        ("trial", "batch", "learning rate", *names, "examples", "last loss", "cost", "state"),
        [
            (
                trial.number,
                trial.params.get("batch_size"),
                trial.params.get("learning_rate"),
                *(trial.params.get(name) for name in names),
                trial.user_attrs.get(EXAMPLES_KEY, 0),
                trial.intermediate_values.get(trial.last_step) if trial.last_step is not None else None,
                trial.value if trial.state.name == "COMPLETE" else None,
                _state(trial),
            )
            for trial in trials
        ],
    )
    counts, unit = summarise(study), search.plan.price.unit
    console.say(
        f"\n{counts.proposed} proposed: {counts.completed} completed, {counts.pruned_before_compute} pruned before "
        f"compute, {counts.pruned_while_running} while running, {counts.pruned_otherwise} at the cap, "
        f"{counts.failed + counts.running} cut off"
    )
    paid = spent(study, search)
    if counts.saved > 0:
        console.say(
            f"training cost {paid:.3g} {unit}; the pruned trials were predicted to need {counts.saved:.3g} more: "
            f"{counts.saved / (paid + counts.saved):.0%} saved"
        )
    if counts.completed:
        best = study.best_trial
        values = ", ".join(f"{name} {value:.4g}" for name, value in best.params.items())
        console.say(f"best: trial {best.number} ({values}): {best.value:.4g} {unit}")


def _state(trial: optuna.trial.FrozenTrial) -> str:
    if trial.state.name == "PRUNED":
        return "pruned before compute" if trial.last_step is None else "pruned while running"
    return {"COMPLETE": "completed", "FAIL": "cut off"}.get(trial.state.name, trial.state.name.lower())
