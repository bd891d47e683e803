"""What a probe that is told its goal saves: it ends after its short runs where longer ones are not worth their price.

For every probe of `prediction.py` (which must be done), loss and problem with a known truth: what is spent on the probe
and on the planned run together, a step counted for 64 examples beside its own, with all of the probe's runs and with
those that `probe(goal=...)` would have made. The run is the plan's batch size and peak rate at their own best horizon,
from the sweep. A plan that never arrives counts as eight times the best. Where the probe goes on, its long runs are
counted whole, though the planned run may be shorter.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from figures import finite, geometric_mean, regrets_of
from joblib import Parallel, delayed
from machine import machine, save
from prediction import is_counted, regret
from probes import FOLDER as PROBES
from probes import SEEDS
from truth.decayed import decayed_sweep_of, decayed_tradeoffs_of, has_decays
from truth.problems import PROBLEMS

from batchopt import Forecast, ReachLoss
from batchopt.errors import BatchoptError
from batchopt.evidence import Branch, LossCurve, ProbeReport, TrainingLosses
from batchopt.probing.aim import aim_by
from batchopt.probing.budget import LONG_COOLDOWNS, price_of

RESULT = Path(__file__).parent / "results" / "probe_goal.json"
PRICE = price_of(64.0)
GIVEN_UP = 8.0
LONG = ("long runs", "cooldowns of long runs")


def without_long_runs(report: ProbeReport) -> ProbeReport:
    """The report as it stood when the short runs had cooled down."""
    lengths = {size: _short_length(report, size) for size in {run.batch_size for run in report.runs}}
    kept = []
    for run in report.runs:
        if run.falls is None:
            kept.append(_cut(run, lengths[run.batch_size]))
        elif run.falls[0] <= 1.1 * lengths[run.batch_size]:
            kept.append(run)
    readings = [reading for reading in report.noise_scales if reading is not report.noise_scales[-1]]
    return replace(report, reference=None, branches=tuple(kept), noise_scales=tuple(readings))


def _short_length(report: ProbeReport, batch_size: int) -> float:
    """Of the short runs at a batch size: the second longest, as one went on."""
    lengths = sorted(run.examples for run in report.runs if run.batch_size == batch_size and run.falls is None)
    return lengths[-2] if len(lengths) > 1 else lengths[-1]


def _cut(run: Branch, examples: float) -> Branch:
    last = 1.1 * examples
    curve = [(n, loss) for n, loss in zip(run.curve.examples, run.curve.losses, strict=True) if n <= last]
    training = run.training
    if training is not None:
        count = sum(n <= last for n in training.examples)
        training = TrainingLosses(training.examples[:count], training.losses[:count], training.errors[:count])
    losses = LossCurve(tuple(n for n, _ in curve), tuple(loss for _, loss in curve))
    return replace(run, curve=losses, training=training)


def rows_of(name: str, seed: int, folder: Path) -> list[dict[str, Any]]:
    """Of one probe, a row for each loss."""
    file = folder / f"{name}-1-{seed}.json"
    if not file.exists():
        return []
    report = ProbeReport.load(file)
    if report.stopped is not None:
        return []
    short = without_long_runs(report)
    counted = {part.part: part.examples + PRICE.per_step * part.steps for part in report.spending}
    long = sum(counted[part] for part in LONG)
    longest = max(run.examples for run in short.runs if run.falls is None)
    rows = []
    forecasts = [Forecast.fit(report), Forecast.fit(short)]
    for truth in decayed_tradeoffs_of(name):
        if not is_counted(name, truth):
            continue
        goal, best = ReachLoss(truth.loss, PRICE), decayed_sweep_of(name).cheapest(truth.loss, PRICE).cost
        aim = aim_by(forecasts[1], goal, PRICE)
        enough = aim.horizon <= (1.0 + max(LONG_COOLDOWNS)) * longest or aim.saved < long
        regrets = [_regret(forecast, name, goal) for forecast in forecasts]
        costs = [best * min(GIVEN_UP, 1.0 + each) for each in regrets]
        rows.append({
            "problem": name,
            "seed": seed,
            "loss": truth.loss,
            "best": best,
            "probe": sum(counted.values()),
            "long_runs": long,
            "saved_at_most": finite(aim.saved),
            "ends_early": enough,
            "regret": finite(regrets[0]),
            "regret_of_short": finite(regrets[1]),
            "total": costs[0] + sum(counted.values()),
            "total_with_goal": (costs[1] - long if enough else costs[0]) + sum(counted.values()),
        })  # fmt: skip
    return rows


def _regret(forecast: Forecast, name: str, goal: ReachLoss) -> float:
    sizes = decayed_sweep_of(name).batch_sizes
    try:
        plan = forecast.plan(goal, learning_rate_schedule="wsd", batch_sizes=(sizes[0], sizes[-1]))
    except BatchoptError:
        return math.inf
    found = regret(name, plan.batch_size, plan.learning_rate, goal.loss, PRICE)
    return math.inf if found is None else found


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By problem, and over all of them."""
    found = {}
    for name in [*dict.fromkeys(row["problem"] for row in rows), "all"]:
        own = [row for row in rows if name in (row["problem"], "all")]
        early = [row for row in own if row["ends_early"]]
        found[name] = {
            "cases": len(own),
            "end_early": len(early),
            "total_with_goal_over_total": geometric_mean([row["total_with_goal"] / row["total"] for row in own]),
            "regret": regrets_of([row["regret"] for row in own]),
            "regret_with_goal": regrets_of(
                [row["regret_of_short"] if row["ends_early"] else row["regret"] for row in own]
            ),
            "of_those_total_over_total": geometric_mean([row["total_with_goal"] / row["total"] for row in early]),
        }
    return found


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--probes", type=Path, default=PROBES, help="folder of kept probes")
    parser.add_argument("--workers", type=int, default=2, help="processes, each with one thread")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    names = [name for name in PROBLEMS if has_decays(name)]
    jobs = [(name, seed) for name in names for seed in SEEDS]
    found = Parallel(n_jobs=args.workers)(delayed(rows_of)(name, seed, args.probes) for name, seed in jobs)
    rows = [row for each in found for row in each]
    figures = summary(rows)
    for name, each in figures.items():
        print(name, each)
    save(args.output, {"machine": machine(), "summary": figures, "rows": rows})


if __name__ == "__main__":
    main()
