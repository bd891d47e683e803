"""A search whose trials decay: what it spends until a trial ends near the lowest loss of a sweep, by what it is told.

Every trial is a run of the decaying sweeps (`truth/`), of one horizon: a stable part, and a cooldown over its last
fifth. It reports the losses of the stable part, twice for every doubling, and those of the cooldown, and its value is
the loss at the end. The score is all examples that were spent until a completed trial ended within 5 % of the lowest
loss of the sweep at that horizon, in units of a whole trial. Against batchopt told of the decay there are batchopt that
takes the rate for constant, and Optuna's TPE with its median pruner, which compares trials at equal examples.
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
from joblib import Parallel, delayed
from machine import machine, save
from optuna import pruners, samplers
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState
from truth.curves import FOLDER, Run, unpack

import batchopt

RESULT = Path(__file__).parent / "results" / "decayed_search.json"
HORIZONS = {
    "quadratic": 16_384, "digits_softmax": 8_192, "digits_mlp": 16_384, "mnist_cnn_sgd": 32_768,
    "mnist_cnn_adam": 32_768, "lstm": 16_384, "transformer": 16_384,
}  # fmt: skip
"""Of the horizons that a sweep has at 30 settings or more, the longest."""
TOLD, UNTOLD, TPE, RANDOM = "batchopt", "batchopt, untold", "TPE + Median", "Random"
WITHIN = 1.05
MOST_TRIALS = 40
REPORT_RATIO = math.sqrt(2.0)
FIRST_SHARE = 1.0 / 64.0
SIZE, RATE = "log2_batch_size", "learning_rate"


BEYOND = math.sqrt(2.0)
"""A trial's rate may be so much above that of its run."""
Trace = tuple[tuple[int, float], ...]
Traces = dict[tuple[int, float], Trace]


class Job(NamedTuple):
    """One study: its problem, who searches, and the seed of sampler and sweep."""

    problem: str
    contestant: str
    seed: int


@cache
def traces_of(problem: str, seed: int) -> Traces:
    """Reports of every setting that ran to the horizon, the last of them the end, by batch size and peak rate."""
    horizon = HORIZONS[problem]
    runs = [run for run in unpack(FOLDER / f"{problem}-decaying.npz") if run.shape == "wsd" and not run.rescaled]
    seeds = sorted({run.seed for run in runs})
    runs = [run for run in runs if run.seed == seeds[seed % len(seeds)]]
    stable = {(run.batch_size, run.learning_rate): run for run in runs if run.horizon == 0}
    ends = {(run.batch_size, run.learning_rate): run for run in runs if run.horizon == horizon}
    found = {}
    for key, end in ends.items():
        if key in stable and end.outcome != "diverged" and end.examples:
            found[key] = (*_before(stable[key], end.examples[0]), *zip(end.examples, end.losses, strict=True))
    return found


def _before(run: Run, end: int) -> list[tuple[int, float]]:
    """Losses of a stable run up to where it was left, twice for every doubling."""
    reports: list[tuple[int, float]] = []
    at = FIRST_SHARE * end
    for examples, loss in zip(run.examples, run.losses, strict=True):
        if at <= examples < 0.95 * end:
            reports.append((examples, loss))
            at = REPORT_RATIO * examples
    return reports


def study_of(job: Job) -> optuna.Study:
    """A study of one contestant."""
    if job.contestant in (TPE, RANDOM):
        sampler = samplers.TPESampler if job.contestant == TPE else samplers.RandomSampler
        pruner = pruners.MedianPruner(n_startup_trials=1) if job.contestant == TPE else pruners.NopPruner()
        return optuna.create_study(sampler=sampler(seed=job.seed), pruner=pruner)
    told = {"learning_rate_schedule": "wsd"} if job.contestant == TOLD else {}
    sampler = batchopt.TradeoffSampler(
        goal=batchopt.LowestLoss(HORIZONS[job.problem], of="examples"),
        batch_size=SIZE, learning_rate=RATE, seed=job.seed, **told,
    )  # fmt: skip
    return optuna.create_study(sampler=sampler, pruner=batchopt.TradeoffPruner())


def run(job: Job) -> dict[str, Any]:
    """One study, as a row of the result."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    traces = traces_of(job.problem, job.seed)
    sizes, rates = ([key[i] for key in traces] for i in (0, 1))
    space: Mapping[str, Any] = {
        SIZE: IntDistribution(int(math.log2(min(sizes))), int(math.log2(max(sizes)))),
        RATE: FloatDistribution(min(rates), max(rates), log=True),
    }
    study, lowest = study_of(job), min(trace[-1][1] for trace in traces.values())
    spent, trials = 0.0, 0
    ours = job.contestant in (TOLD, UNTOLD)
    for trials in range(1, MOST_TRIALS + 1):
        trial = study.ask(dict(space))
        trace = _played(traces, trial.params[SIZE], trial.params[RATE])
        try:
            if ours:
                batchopt.check(trial)
            for examples, loss in trace:
                trial.report(loss, examples)
                if trial.should_prune() or not math.isfinite(loss):
                    raise optuna.TrialPruned
        except optuna.TrialPruned:
            spent += (trial_end(study, trial.number) or 0) / HORIZONS[job.problem]
            study.tell(trial, state=TrialState.PRUNED)
            continue
        spent += 1.0
        study.tell(trial, trace[-1][1])
        if trace[-1][1] <= WITHIN * lowest:
            return {**job._asdict(), "spent": spent, "trials": trials, "found": True}
    return {**job._asdict(), "spent": spent, "trials": trials, "found": False}


def _played(traces: Traces, log2_size: float, rate: float) -> Trace:
    """The run of a trial: the nearest rate of the nearest batch size.

    A rate beyond those that a batch size has was too high for it in the sweep: such a trial diverges at once.
    """
    size = min({size for size, _ in traces}, key=lambda size: abs(math.log2(size) - log2_size))
    rates = [own for s, own in traces if s == size]
    nearest = traces[size, min(rates, key=lambda own: abs(math.log(own / rate)))]
    return nearest if rate <= BEYOND * max(rates) else ((nearest[0][0], math.nan),)


def trial_end(study: optuna.Study, number: int) -> int | None:
    """Examples of the last report of a trial."""
    return study.get_trials(deepcopy=False)[number].last_step


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """By problem and contestant the median of what was spent, and how often a trial was found."""
    cells: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        cells[row["problem"]][row["contestant"]].append(row)
    return {
        problem: {
            name: {
                "median": float(np.median([row["spent"] for row in group])),
                "geometric mean": float(np.exp(np.mean([math.log(max(row["spent"], 0.01)) for row in group]))),
                "found": sum(row["found"] for row in group),
                "seeds": len(group),
            }
            for name, group in cell.items()
        }
        for problem, cell in cells.items()
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", nargs="+", choices=list(HORIZONS), default=list(HORIZONS))
    every = [TOLD, UNTOLD, TPE, RANDOM]
    parser.add_argument("--contestants", nargs="+", choices=every, default=every)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=2, help="processes, each with one thread")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    jobs = [Job(p, c, s) for p in args.problems for c in args.contestants for s in range(args.seeds)]
    rows = Parallel(n_jobs=args.jobs)(delayed(run)(job) for job in jobs)
    found = summary(rows)
    save(args.output, {"machine": machine(), "optuna": optuna.__version__, "rows": rows, "summary": found})
    for problem, cell in found.items():
        print(problem, json.dumps({name: f"{x['median']:.1f} ({x['found']}/{x['seeds']})" for name, x in cell.items()}))


if __name__ == "__main__":
    main()
