"""What a trial costs beside its training: our sampler, TPE and the Gaussian process, by the length of the study.

Each study is filled with finished trials, then asked and told a few more, in memory, with a batch size and a learning
rate as the README has them. Times are means, refits included. Memory is the peak of a fresh process above what its own
imports took.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from machine import machine, save
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import create_trial

import batchopt

RESULT = Path(__file__).parent / "results" / "sampler_overhead.json"
LENGTHS = (10, 100, 1_000, 10_000)
TRIALS = 12
"""Trials that are timed, after one that is not."""
REPORTS = 8
LOSS, BEST = 0.1, 50_000.0
SPACE = {"batch_size": IntDistribution(8, 4096, log=True), "lr": FloatDistribution(1e-4, 1.0, log=True)}
PRICE = batchopt.StepCost(per_step=64.0, per_example=1.0)
SAMPLERS: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
    "TPE": lambda: optuna.samplers.TPESampler(seed=0),
    "GP": lambda: optuna.samplers.GPSampler(seed=0),
    "batchopt": lambda: batchopt.TradeoffSampler(
        goal=batchopt.ReachLoss(LOSS, least=PRICE), batch_size="batch_size", learning_rate="lr", seed=0
    ),
}
LONGEST_OF_GP = 100
"""Beyond this the Gaussian process takes minutes a trial."""


def cost(batch_size: int, rate: float) -> float:
    """A smooth landscape with its best at 256 and 0.03."""
    return BEST * float(np.exp(0.1 * np.log(batch_size / 256) ** 2 + 0.3 * np.log(rate / 0.03) ** 2))


def finished(rng: np.random.Generator, number: int) -> optuna.trial.FrozenTrial:
    """A trial that completed, or one of three that was pruned on the way."""
    size, rate = int(2 ** rng.uniform(3, 12)), float(10 ** rng.uniform(-4, 0))
    total = cost(size, rate) / PRICE(size) * size
    share = 1.0 if number % 3 else 0.2
    examples = sorted({max(size, round(share * total * 1.7**-k)) for k in range(REPORTS)})
    reports = {n: 2.3 * (LOSS / 2.3) ** (n / total) ** 0.5 for n in examples}
    pruned = share < 1.0
    return create_trial(
        state=optuna.trial.TrialState.PRUNED if pruned else optuna.trial.TrialState.COMPLETE,
        value=None if pruned else cost(size, rate),
        params={"batch_size": size, "lr": rate},
        distributions=SPACE,
        intermediate_values=reports,
    )


def measure(name: str, length: int) -> dict[str, Any]:
    """Seconds of ask, both suggestions and tell, and the memory that the study took."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    sampler = SAMPLERS[name]()  # with its imports
    before = peak()
    study = optuna.create_study(sampler=sampler)
    rng = np.random.default_rng(0)
    study.add_trials([finished(rng, number) for number in range(length)])
    times = []
    for _ in range(TRIALS + 1):
        begun = time.perf_counter()
        trial = study.ask()
        size = trial.suggest_int("batch_size", 8, 4096, log=True)
        rate = trial.suggest_float("lr", 1e-4, 1.0, log=True)
        study.tell(trial, cost(size, rate))
        times.append(time.perf_counter() - begun)
    return {
        "sampler": name,
        "length": length,
        "mean": float(np.mean(times[1:])),
        "first": times[0],
        "megabytes": (peak() - before) / 1024.0,
    }


def peak() -> int:
    """Largest resident set of this process so far, in kB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def verdicts(rows: list[dict[str, Any]]) -> dict[str, bool]:
    """Which targets hold."""
    mean = {(row["sampler"], row["length"]): row["mean"] for row in rows}
    memory = {(row["sampler"], row["length"]): row["megabytes"] for row in rows}
    held = {
        "at 100 no more than TPE and 50 ms": mean["batchopt", 100] <= mean["TPE", 100] + 0.05,
        "at 1,000 no more than TPE": mean["batchopt", 1_000] <= mean["TPE", 1_000],
        "at 10,000 a third of TPE": mean["batchopt", 10_000] <= mean["TPE", 10_000] / 3.0,
    }
    worst = max(memory["batchopt", n] - memory["TPE", n] for n in LENGTHS)
    return held | {"memory at most TPE's and 50 MB": worst <= 50.0}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=2, metavar=("SAMPLER", "LENGTH"), help="one cell, as JSON")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], int(args.one[1]))))
        return
    rows = []
    print(f"{'sampler':10}{'finished':>10}{'ms a trial':>12}{'the first':>12}{'MB':>8}")
    for length in LENGTHS:
        for name in SAMPLERS:
            if name == "GP" and length > LONGEST_OF_GP:
                continue
            told = subprocess.run(
                [sys.executable, __file__, "--one", name, str(length)], capture_output=True, text=True, check=True
            )
            row = json.loads(told.stdout.splitlines()[-1])
            rows.append(row)
            milliseconds, first = 1e3 * row["mean"], 1e3 * row["first"]
            print(f"{name:10}{length:10,}{milliseconds:12.1f}{first:12.1f}{row['megabytes']:8.0f}", flush=True)
    held = verdicts(rows)
    for what, holds in held.items():
        print(f"{'held' if holds else 'MISSED':8}{what}")
    save(args.output, {"machine": machine(), "optuna": optuna.__version__, "rows": rows, "targets": held})


if __name__ == "__main__":
    main()
