"""How good the forecast is: against problems whose trade-off was found by brute force (`truth/`).

For every problem, budget and seed: probe, forecast, and compare. A budget of 1 is the fewest examples with which any
configuration of the sweep reaches the problem's last loss. Probes are kept as they end, and the same call goes on where
it stopped.

Beside the forecast stand what people do without it: noise scales taken as the critical batch size, a batch of 32 and
the rules that carry its learning rate to another batch, and the largest batch. All of these get the best learning rate
of the sweep where they need one, as if they had tuned it for nothing.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from joblib import Parallel, delayed
from machine import machine, save
from truth.curves import FOLDER
from truth.problems import PROBLEMS, make
from truth.tradeoff import Tradeoff, sweep_of, tradeoffs_of

from batchopt import Forecast, ReachLoss, StepCost, probe
from batchopt.errors import BatchoptError
from batchopt.evidence import ProbeReport
from batchopt.forecasting.noise_trend import fit_noise_trend

HERE = Path(__file__).parent
RESULT = HERE / "results" / "prediction.json"
KINDS = ("simple", "preconditioned", "hessian")
DEFAULT_BATCH = 32
SHARES = (1.0, 0.3, 0.1)
SEEDS = (10, 11, 12, 13, 14)
"""Not those of the sweep: a probe must not run what the truth was taken from."""
UNSEEN = ("lstm", "vae", "imagenette_cnn")
"""Problems whose forecasts nobody had seen when the law's constants were chosen; the others informed the choice."""
GOALS: dict[str, StepCost | str] = {
    "seconds at 64 + B": StepCost(per_step=64.0, per_example=1.0),
    "balanced": "balanced",
    "seconds at 512 + B": StepCost(per_step=512.0, per_example=1.0),
}


class Probed(NamedTuple):
    """One probe: where its report is, or why there is none."""

    problem: str
    share: float
    seed: int
    report: ProbeReport | None
    failure: str | None


def probe_problem(name: str, share: float, seed: int, folder: Path) -> Probed:
    """Probe a problem, or read the report of a probe that was done before."""
    torch.set_num_threads(1)
    path = folder / f"{name}-{share:g}-{seed}.json"
    budget = round(share * sweep_of(name).fewest_examples)
    if path.exists() and (kept := ProbeReport.load(path)).budget_examples == budget:
        return Probed(name, share, seed, kept, None)
    try:
        report = probe(make(name)[0], examples=budget, seed=seed)
    except BatchoptError as error:
        return Probed(name, share, seed, None, f"{type(error).__name__}: {error}")
    folder.mkdir(parents=True, exist_ok=True)
    report.save(path)
    return Probed(name, share, seed, report, None)


def judge(probed: Probed) -> dict[str, Any]:
    """What a forecast from one probe says, beside the truth."""
    row: dict[str, Any] = {"problem": probed.problem, "share": probed.share, "seed": probed.seed}
    if probed.report is None:
        return row | {"failure": probed.failure, "losses": []}
    try:
        forecast = Forecast.fit(probed.report)
    except BatchoptError as error:
        return row | {"failure": f"{type(error).__name__}: {error}", "losses": []}
    row |= {"failure": None, "spent": probed.report.examples_spent, "doubts": list(forecast.doubts)}
    row["losses"] = [_judge_loss(forecast, probed, probed.report, truth) for truth in tradeoffs_of(probed.problem)]
    return row


def _judge_loss(forecast: Forecast, probed: Probed, report: ProbeReport, truth: Tradeoff) -> dict[str, Any]:
    law = truth.fit.law
    cell: dict[str, Any] = {
        "loss": truth.loss,
        "truth": law.critical_batch_size,
        "truth_interval": list(truth.critical_batch_size),
        "certain": truth.is_certain,
        "prediction": None,
    }
    try:
        estimate = forecast.critical_batch_size(truth.loss)
        cell["prediction"] = [estimate.value, estimate.low, _finite(estimate.high)]
    except (BatchoptError, ValueError) as error:
        cell["failure"] = f"{type(error).__name__}: {error}"
    cell["lowest_observed"] = forecast.lowest_observed_loss
    decaying = sweep_of(probed.problem).decaying_tradeoff(truth.loss)
    cell["decaying"] = None if decaying is None else [decaying.law.critical_batch_size, decaying.law.examples_min]
    cell["examples_min"] = law.examples_min
    cell["noise"] = {kind: noise_at(report, kind, truth.loss) for kind in KINDS}
    cell["goals"] = {name: _judge_goal(forecast, probed.problem, truth, least) for name, least in GOALS.items()}
    cell["baselines"] = {
        name: baselines(probed.problem, truth, least, cell["noise"]["simple"]) for name, least in GOALS.items()
    }
    return cell


def noise_at(report: ProbeReport, kind: str, loss: float) -> float | None:
    """The noise scale of one kind at a loss, carried there by the regression; None with fewer than two readings."""
    trend = fit_noise_trend([reading for reading in report.noise_scales if reading.kind == kind])
    try:
        return None if trend is None else trend(loss).value
    except ValueError:
        return None


def _judge_goal(forecast: Forecast, problem: str, truth: Tradeoff, least: StepCost | str) -> dict[str, Any]:
    sizes = PROBLEMS[problem].batch_sizes
    price = _price(truth, least)
    cheapest = cheapest_config(problem, truth.loss, price)
    try:
        plan = forecast.plan(ReachLoss(truth.loss, least), batch_sizes=(sizes[0], sizes[-1]))
    except (BatchoptError, ValueError) as error:
        return {"failure": f"{type(error).__name__}: {error}", "regret": None}
    sweep = sweep_of(problem)
    steps = sweep.steps(plan.batch_size, plan.learning_rate, truth.loss)
    return {
        "batch_size": plan.batch_size,
        "learning_rate": plan.learning_rate,
        "best_batch_size": cheapest[1],
        "rate_ratio": plan.learning_rate / tuned_rate(truth, plan.batch_size),
        "regret": _finite(steps * price(plan.batch_size) / cheapest[0] - 1.0),
    }


def tuned_rate(truth: Tradeoff, batch_size: float) -> float:
    """The best learning rate of the sweep, interpolated over the batch size."""
    return math.exp(float(np.interp(math.log(batch_size), np.log(truth.batch_sizes), np.log(truth.learning_rates))))


def baselines(problem: str, truth: Tradeoff, least: StepCost | str, noise: float | None) -> dict[str, float | None]:
    """Regrets of what people do without a forecast.

    Args:
        problem: its name.
        truth: the trade-off to the loss.
        least: the goal.
        noise: the simple noise scale there, or None.
    """
    sizes, price = truth.batch_sizes, _price(truth, least)
    cost, size, _ = cheapest_config(problem, truth.loss, price)
    habit = min(max(DEFAULT_BATCH, sizes[0]), sizes[-1])
    known = tuned_rate(truth, habit)
    settings = {
        "batch 32, tuned rate": (float(habit), known),
        "best batch, square-root rule from 32": (float(size), known * math.sqrt(size / habit)),
        "best batch, linear rule from 32": (float(size), known * size / habit),
        "largest batch, tuned rate": (float(sizes[-1]), truth.learning_rates[-1]),
    }
    if noise is not None:
        batch = min(max(noise, sizes[0]), sizes[-1])
        settings["B_simple, tuned rate"] = (batch, tuned_rate(truth, batch))
    sweep = sweep_of(problem)
    return {
        name: _finite(sweep.steps(batch, rate, truth.loss) * price(batch) / cost - 1.0)
        for name, (batch, rate) in settings.items()
    }


def _price(truth: Tradeoff, least: StepCost | str) -> StepCost:
    if isinstance(least, StepCost):
        return least
    law = truth.fit.law
    return StepCost(per_step=1.0 / law.steps_min, per_example=1.0 / law.examples_min)


def cheapest_config(problem: str, loss: float, price: StepCost) -> tuple[float, int, float]:
    """Cost, batch size and learning rate of the cheapest configuration of the sweep."""
    found = sweep_of(problem).examples_to(loss)
    costs = {
        (size, rate): math.exp(float(np.mean(np.log(np.maximum(values, 1.0))))) / size * price(size)
        for (size, rate), values in found.items()
        if np.all(np.isfinite(values))
    }
    size, rate = min(costs, key=lambda key: costs[key])
    return costs[size, rate], size, rate


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def factor(a: float, b: float) -> float:
    """How many times one positive number is the other, at least 1."""
    return max(a / b, b / a)


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Over problems: errors of every method, coverage, regrets. A probe that failed has no cells, and is counted."""
    cells = [(row["problem"], cell) for row in rows for cell in row["losses"]]
    counted = [(problem, cell) for problem, cell in cells if cell["certain"]]
    answered = [(problem, cell) for problem, cell in counted if cell["prediction"]]
    goals = [goal for _, cell in counted for goal in cell["goals"].values()]
    ratios = [goal["rate_ratio"] for goal in goals if "rate_ratio" in goal]
    regrets = {"plan": [goal["regret"] for goal in goals]}
    for _, cell in counted:
        for found in cell["baselines"].values():
            for name, regret in found.items():
                regrets.setdefault(name, []).append(regret)
    errors = {"forecast": errors_of([(problem, cell["prediction"][0], cell["truth"]) for problem, cell in answered])}
    for kind in KINDS:
        told = [(problem, cell["noise"][kind], cell["truth"]) for problem, cell in counted if cell["noise"][kind]]
        errors[f"{kind} noise scale"] = errors_of(told)
    decayed = [(problem, cell["prediction"][0], cell["decaying"][0]) for problem, cell in answered if cell["decaying"]]
    errors["forecast, truth with cosine decay"] = errors_of(decayed)
    return {
        "probes": len(rows),
        "failed": sum(1 for row in rows if row["failure"]),
        "cells": len(counted),
        "unanswered": len(counted) - len(answered),
        "errors": errors,
        "examples_under_decay": _geometric_mean(
            [cell["decaying"][1] / cell["examples_min"] for _, cell in counted if cell["decaying"]]
        ),
        "coverage": float(np.mean([_inside(cell) for _, cell in answered])) if answered else None,
        "regrets": {name: regrets_of(values) for name, values in regrets.items()},
        "rate_within_2": float(np.mean([factor(ratio, 1.0) <= 2.0 for ratio in ratios])) if ratios else None,
    }


def errors_of(told: Sequence[tuple[str, float, float]]) -> dict[str, Any]:
    """Geometric-mean error over problems (of each problem's own), and the worst.

    Args:
        told: problem, prediction, truth.
    """
    by_problem: dict[str, list[float]] = defaultdict(list)
    for problem, prediction, truth in told:
        by_problem[problem].append(factor(prediction, truth))
    own = {name: _geometric_mean(errors) for name, errors in by_problem.items()}
    return {
        "geometric_mean": _geometric_mean(list(own.values())),
        "worst": max((max(errors) for errors in by_problem.values()), default=None),
        "by_problem": own,
    }


def regrets_of(values: Sequence[float | None]) -> dict[str, Any]:
    """Median and worst regret, and the share beyond 40 %; None stands for infinite."""
    finite = [math.inf if value is None else value for value in values]
    return {
        "median": _finite(float(np.median(finite))) if finite else None,
        "worst": _finite(max(finite)) if finite else None,
        "beyond_40_percent": float(np.mean([value > 0.4 for value in finite])) if finite else None,
        "cases": len(finite),
    }


def _inside(cell: dict[str, Any]) -> bool:
    _, low, high = cell["prediction"]
    return bool(low <= cell["truth"] <= (math.inf if high is None else high))


def _geometric_mean(values: Sequence[float]) -> float | None:
    return math.exp(float(np.mean(np.log(values)))) if len(values) else None


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    swept = [name for name in PROBLEMS if (FOLDER / f"{name}.npz").exists()]
    parser.add_argument("--problems", nargs="+", choices=swept, default=swept)
    parser.add_argument("--shares", nargs="+", type=float, default=SHARES, help="budgets of the probe")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--probes", type=Path, default=HERE / "out" / "probes", help="where probes are kept")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    jobs = [(name, share, seed, args.probes) for share in args.shares for name in args.problems for seed in args.seeds]
    probes = Parallel(n_jobs=args.workers)(delayed(probe_problem)(*job) for job in jobs)
    rows = Parallel(n_jobs=args.workers)(delayed(judge)(probed) for probed in probes)
    summaries = summaries_of(rows)
    save(args.output, {"machine": machine(), "summary": summaries, "rows": rows})
    print_table(rows, summaries)


def summaries_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of each budget, and of the problems that nothing was tuned on."""
    found = {}
    for share in dict.fromkeys(row["share"] for row in rows):
        own = [row for row in rows if row["share"] == share]
        unseen = [row for row in own if row["problem"] in UNSEEN]
        found[f"{share:g}"] = summary(own)
        if unseen:
            found[f"{share:g}, unseen problems"] = summary(unseen)
    return found


def print_table(rows: Sequence[dict[str, Any]], summaries: dict[str, Any]) -> None:
    """Print what was found."""
    print(f"{'problem':16}{'probe':>6}{'loss':>8}{'truth':>8}  predictions / truth, by seed (o: outside its interval)")
    cells: dict[tuple[str, float, float], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        for cell in row["losses"]:
            cells[row["problem"], row["share"], cell["loss"]].append(cell)
    for (name, share, loss), group in cells.items():
        ratios = " ".join(_shown(cell) for cell in group)
        regrets = [goal["regret"] for cell in group for goal in cell["goals"].values()]
        median = float(np.median([math.inf if regret is None else regret for regret in regrets]))
        certain = " " if group[0]["certain"] else "?"
        print(f"{name:16}{share:6g}{loss:8g}{group[0]['truth']:8.0f}{certain} {ratios}   regret {median:.0%}")
    for share, found in summaries.items():
        print_summary(share, found)
    for row in rows:
        if row["failure"]:
            print(f"{row['problem']} {row['share']:g} {row['seed']}: {row['failure']}")
    print("\nmisses by more than a factor of 2 (median over seeds), and what the forecast says of them")
    for line in misses(rows):
        print(line)


def misses(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each problem, budget and loss whose typical prediction is off by more than a factor of 2."""
    cells: dict[tuple[str, float, float], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        for cell in row["losses"]:
            if cell["certain"] and cell["prediction"]:
                cells[row["problem"], row["share"], cell["loss"]].append(cell | {"doubts": row["doubts"]})
    lines = []
    for (name, share, loss), group in cells.items():
        ratio = float(np.median([cell["prediction"][0] / cell["truth"] for cell in group]))
        if factor(ratio, 1.0) <= 2.0:
            continue
        beyond = float(np.median([cell["lowest_observed"] / loss for cell in group]))
        held = sum(_inside(cell) for cell in group)
        doubted = sum(bool(cell["doubts"]) for cell in group)
        lines.append(
            f"{name:16}{share:6g}{loss:8g}  {ratio:.2f} of the truth; the lowest loss seen was {beyond:.1f} times "
            f"the loss; in the interval {held} of {len(group)}, doubts raised in {doubted}"
        )
    return lines


def print_summary(share: str, found: dict[str, Any]) -> None:
    """Print one budget's figures."""
    print(f"\nprobe of {share}: {found['probes']} probes, {found['failed']} failed", end="; ")
    print(f"{found['cells']} cells, {found['unanswered']} unanswered")
    print(f"  {'critical batch size':40}{'geometric mean':>16}{'worst':>8}")
    for name, errors in found["errors"].items():
        print(f"  {name:40}{_number(errors['geometric_mean']):>16}{_number(errors['worst']):>8}")
    if found["examples_under_decay"] is not None:
        ratio = found["examples_under_decay"]
        print(f"  a run with warm-up and cosine decay takes {ratio:.2f} times the fewest examples of a constant rate")
    print(f"  90 % intervals hold the truth in {_percent(found['coverage'])}")
    print(f"  {'regret':40}{'median':>16}{'worst':>8}{'beyond 40 %':>14}")
    for name, regrets in found["regrets"].items():
        median, worst = _percent(regrets["median"]), _percent(regrets["worst"])
        print(f"  {name:40}{median:>16}{worst:>8}{_percent(regrets['beyond_40_percent']):>14}")
    print(f"  learning rate within a factor 2 of the best for the chosen batch: {_percent(found['rate_within_2'])}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "inf" if value is None else f"{value:.0%}"


def _shown(cell: dict[str, Any]) -> str:
    if not cell["prediction"]:
        return "  -   "
    return f"{cell['prediction'][0] / cell['truth']:5.2f}{' ' if _inside(cell) else 'o'}"


if __name__ == "__main__":
    main()
