"""How good the forecast is: against problems whose runs were swept by brute force (`truth/`), and against live runs.

For every problem, budget and seed: probe, forecast, and compare with the sweep of runs whose learning rate decays. A
budget of 1 is the fewest examples with which any constant configuration of the sweep reaches the problem's last loss.
Per loss: the critical batch size, the regret of the plan, and whether its peak rate is good. Then plans are followed
live on new seeds, by their fixed schedule and the adaptive one, and compared with what they said of a single run.
Probes and live runs are kept as they end, and the same call goes on where it stopped.

Beside the forecast stand what people do without it: the simple noise scale taken as the critical batch size, a batch of
32 and the rules that carry its learning rate to another batch, and the largest batch. All of these get the best rate
and horizon of the sweep where they need one, as if they had tuned them for nothing.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import kept
import numpy as np
from figures import errors_of, factor, finite, geometric_mean, interval_of, is_inside, regrets_of, share
from joblib import Parallel, delayed
from live import CHOSEN, KEPT, live_rows
from machine import machine, save
from prediction_table import print_table
from probes import FOLDER as PROBES
from probes import SEEDS, forecast_of, probe_problem
from truth.curves import FOLDER
from truth.decayed import decayed_sweep_of, decayed_tradeoffs_of
from truth.problems import PROBLEMS
from truth.tradeoff import Tradeoff, tradeoffs_of

from batchopt import Forecast, ReachLoss, StepCost
from batchopt.errors import BatchoptError, EvidenceError
from batchopt.evidence import ProbeReport
from batchopt.forecasting.noise_trend import fit_noise_trend

HERE = Path(__file__).parent
RESULT = HERE / "results" / "prediction.json"
WITHOUT_NOISE_SCALES = RESULT.with_stem("prediction_without_noise_scales")
DEFAULT_BATCH = 32
SHARES = (1.0, 0.3)
GOOD_RATE = 0.02
"""Log loss at the end above that of the best rate, up to which a peak rate is good."""
GOALS = {
    "seconds at 64 + B": StepCost(per_step=64.0, per_example=1.0),
    "seconds at 512 + B": StepCost(per_step=512.0, per_example=1.0),
}


def foretold(name: str, budget: float, seed: int, folder: Path, noise_scales: bool = True) -> dict[str, Any]:
    """What a forecast from one probe says of every loss."""
    row: dict[str, Any] = {
        "problem": name, "share": budget, "seed": seed, "noise_scales": noise_scales, "losses": []
    }  # fmt: skip
    try:
        forecast = forecast_of(name, budget, seed, folder, noise_scales=noise_scales)
    except BatchoptError as error:
        return row | {"failure": f"{type(error).__name__}: {error}"}
    report = probe_problem(name, budget, seed, folder).report
    assert report is not None
    row |= {"failure": None, "spent": report.examples_spent, "doubts": list(forecast.doubts)}
    row["lowest_observed"] = forecast.lowest_observed_loss
    asked = {truth.loss for truth in decayed_tradeoffs_of(name) if is_counted(name, truth)}
    for loss in PROBLEMS[name].losses:
        row["losses"].append({
            "loss": loss,
            "wsd": _critical(forecast, loss, "wsd"),
            "constant": _critical(forecast, loss, "constant"),
            "noise": noise_at(report, loss),
            "plans": {goal: _planned(forecast, name, loss, price) for goal, price in GOALS.items() if loss in asked},
        })  # fmt: skip
    return row


def is_counted(name: str, truth: Tradeoff) -> bool:
    """Whether the truth of decayed runs is known well enough to be compared with."""
    return truth.is_certain and decayed_sweep_of(name).is_resolved(truth)


def _critical(forecast: Forecast, loss: float, shape: Literal["wsd", "constant"]) -> list[float | None] | None:
    try:
        return interval_of(forecast.critical_batch_size(loss, learning_rate_schedule=shape))
    except (BatchoptError, ValueError):  # beyond what the forecast reaches, or above the initial loss
        return None


def _planned(forecast: Forecast, name: str, loss: float, price: StepCost) -> dict[str, Any]:
    sizes = decayed_sweep_of(name).batch_sizes
    try:
        plan = forecast.plan(ReachLoss(loss, price), learning_rate_schedule="wsd", batch_sizes=(sizes[0], sizes[-1]))
    except (BatchoptError, ValueError) as error:
        return {"failure": f"{type(error).__name__}: {error}"}
    return {"batch_size": plan.batch_size, "learning_rate": plan.learning_rate, "horizon": plan.horizon}


def judge(row: dict[str, Any]) -> dict[str, Any]:
    """What a forecast said, beside the truth."""
    name = row["problem"]
    said = {each["loss"]: each for each in row["losses"]}
    cells = [_judge_loss(name, truth, said[truth.loss]) for truth in decayed_tradeoffs_of(name) if said]
    constant = [
        _beside(truth, said[truth.loss]["constant"]) | {"counted": truth.is_certain}
        for truth in tradeoffs_of(name)
        if said
    ]
    kept_fields = {key: value for key, value in row.items() if key != "losses"}
    return {**kept_fields, "losses": cells, "constant": constant}


def _beside(truth: Tradeoff, prediction: list[float | None] | None) -> dict[str, Any]:
    return {
        "loss": truth.loss,
        "truth": truth.fit.law.critical_batch_size,
        "truth_interval": list(truth.critical_batch_size),
        "prediction": prediction,
    }


def _judge_loss(name: str, truth: Tradeoff, said: dict[str, Any]) -> dict[str, Any]:
    cell = _beside(truth, said["wsd"]) | {"noise": said["noise"], "counted": is_counted(name, truth)}
    cell["goals"] = {goal: _judge_plan(name, truth.loss, GOALS[goal], plan) for goal, plan in said["plans"].items()}
    cell["baselines"] = {goal: baselines(name, truth.loss, GOALS[goal], said["noise"]) for goal in said["plans"]}
    return cell


def _judge_plan(name: str, loss: float, price: StepCost, plan: dict[str, Any]) -> dict[str, Any]:
    if "failure" in plan:
        return plan | {"regret": None}
    sweep, size, rate = decayed_sweep_of(name), plan["batch_size"], plan["learning_rate"]
    cheapest, own = sweep.cheapest(loss, price), sweep.cheapest(loss, price, size)
    return plan | {
        "best_batch_size": cheapest.batch_size,
        "best_learning_rate": own.learning_rate,
        "batch_regret": own.cost / cheapest.cost - 1.0,
        "rate_ratio": rate / own.learning_rate,
        "rate_excess": finite(sweep.excess(size, rate, plan["horizon"])),
        "regret": regret(name, size, rate, loss, price),
    }


def noise_at(report: ProbeReport, loss: float) -> float | None:
    """The simple noise scale at a loss, carried there by the regression; None with fewer than two readings."""
    trend = fit_noise_trend(report.noise_scales)
    try:
        return None if trend is None else trend(loss).value
    except ValueError:
        return None


def regret(problem: str, batch_size: int, learning_rate: float, loss: float, price: StepCost) -> float | None:
    """What a setting costs at its best horizon, above the cheapest of the sweep; None where it does not arrive."""
    sweep = decayed_sweep_of(problem)
    cost = sweep.examples(batch_size, learning_rate, loss) / batch_size * price(batch_size)
    return finite(cost / sweep.cheapest(loss, price).cost - 1.0)


def baselines(problem: str, loss: float, price: StepCost, noise: float | None) -> dict[str, float | None]:
    """Regrets of what people do without a forecast.

    Args:
        problem: its name.
        loss: to reach.
        price: of a step.
        noise: the simple noise scale at the loss, or None.
    """
    sweep = decayed_sweep_of(problem)
    sizes = sweep.batch_sizes
    size = sweep.cheapest(loss, price).batch_size
    habit = min(max(DEFAULT_BATCH, sizes[0]), sizes[-1])

    def tuned(batch_size: int) -> float:
        return sweep.cheapest(loss, price, batch_size).learning_rate

    try:
        known = tuned(habit)
        settings = {
            "batch 32, tuned rate": (habit, known),
            "best batch, square-root rule from 32": (size, known * math.sqrt(size / habit)),
            "best batch, linear rule from 32": (size, known * size / habit),
            "largest batch, tuned rate": (sizes[-1], tuned(sizes[-1])),
        }
        if noise is not None:
            nearest = min(sizes, key=lambda each: factor(each, noise))
            settings["B_simple, tuned rate"] = (nearest, tuned(nearest))
    except EvidenceError:  # a batch size that never reaches the loss
        return {}
    return {name: regret(problem, *setting, loss, price) for name, setting in settings.items()}


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Over problems: errors, coverage, regrets. A probe that failed has no cells, and is counted."""
    counted = [(row["problem"], cell) for row in rows for cell in row["losses"] if cell["counted"]]
    constant = [(row["problem"], cell) for row in rows for cell in row["constant"] if cell["counted"]]
    goals = [goal for _, cell in counted for goal in cell["goals"].values()]
    regrets = {
        "plan": [goal["regret"] for goal in goals],
        "plan's batch, tuned rate": [goal.get("batch_regret") for goal in goals],
    }
    for _, cell in counted:
        for found in cell["baselines"].values():
            for name, value in found.items():
                regrets.setdefault(name, []).append(value)
    return {
        "probes": len(rows),
        "failed": sum(1 for row in rows if row["failure"]),
        "critical_batch_size": _critical_summary(counted),
        "constant_rates": _critical_summary(constant),
        "noise_scale": errors_of([(p, cell["noise"], cell["truth"]) for p, cell in counted if cell["noise"]]),
        "regrets": {name: regrets_of(values) for name, values in regrets.items()},
        "regret_by_problem": {
            problem: regrets_of([goal["regret"] for p, cell in counted if p == problem for goal in _goals(cell)])
            for problem in dict.fromkeys(problem for problem, _ in counted)
        },
        # A plan that could not be made has no rate, and none is good.
        "rate_within_2_percent": share([_is_good(goal.get("rate_excess")) for goal in goals]),
        "rate_within_10_percent": share([_is_good(goal.get("rate_excess"), 5.0 * GOOD_RATE) for goal in goals]),
        "rate_within_factor_2": share([factor(goal.get("rate_ratio", math.inf), 1.0) <= 2.0 for goal in goals]),
        "rate_ratio": geometric_mean([goal["rate_ratio"] for goal in goals if "rate_ratio" in goal]),
    }


def _goals(cell: dict[str, Any]) -> list[dict[str, Any]]:
    return list(cell["goals"].values())


def _is_good(excess: float | None, least: float = GOOD_RATE) -> bool:
    return excess is not None and excess <= least


def _critical_summary(cells: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    answered = [(problem, cell) for problem, cell in cells if cell["prediction"]]
    told = [(problem, cell["prediction"][0], cell["truth"]) for problem, cell in answered]
    return {
        "cells": len(cells),
        "unanswered": len(cells) - len(answered),
        "coverage": share([is_inside(cell["prediction"], cell["truth"]) for _, cell in answered]),
        "signed": geometric_mean([prediction / truth for _, prediction, truth in told]),
        **errors_of(told),
    }


def live_summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By problem and over all: what plans said of single runs, beside what these did."""
    names = dict.fromkeys(row["problem"] for row in rows)
    groups = {name: [row for row in rows if row["problem"] == name] for name in names}
    return {name: _live_summary(group) for name, group in {**groups, "all": list(rows)}.items()}


def _live_summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    fixed = [row for row in rows if "predicted_loss" in row]
    adaptive = [row for row in rows if row["way"] == "adaptive"]
    arrived = [row for row in adaptive if row["reached"]]
    logs = [math.log(row["last_loss"] / row["predicted_loss"][0]) for row in fixed]
    spent = [row["spent"] / row["predicted_cost"] for row in arrived]
    return {
        "final_loss": {
            "runs": len(fixed),
            "without_a_plan": sum(row["way"] == "schedule" for row in rows) - len(fixed),
            "median_absolute_log_error": float(np.median(np.abs(logs))) if logs else None,
            "median_log_error": float(np.median(logs)) if logs else None,
            "coverage": share([is_inside(row["predicted_loss"], row["last_loss"]) for row in fixed]),
            "arrived": sum(row["reached"] for row in fixed),
        },
        "adaptive": {
            "runs": len(adaptive),
            "arrived": len(arrived),
            "examples_in_interval": sum(is_inside(row["predicted_examples"], row["spent_examples"]) for row in arrived),
            "cost_over_predicted": [float(q) for q in np.quantile(spent, (0.1, 0.5, 0.9))] if spent else None,
            "missed_decays": sum(row.get("missed_decays", 0) for row in adaptive),
        },
    }


def summaries_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of each budget."""
    budgets = dict.fromkeys(row["share"] for row in rows)
    return {f"{budget:g}": summary([row for row in rows if row["share"] == budget]) for budget in budgets}


def forecasts(jobs: Sequence[tuple[str, float, int, Path, bool]], done: Path, workers: int) -> list[dict[str, Any]]:
    """What the forecasts of these probes say; those that are not kept yet are made."""
    rows = {_key(row): row for row in kept.read(done)}
    left = (delayed(foretold)(*job) for job in jobs if (*job[:3], job[4]) not in rows)
    for row in Parallel(n_jobs=workers, return_as="generator_unordered")(left):
        kept.add(done, row)
        rows[_key(row)] = row
        print(f"{row['problem']} {row['share']:g} {row['seed']}: {row['failure'] or 'forecast'}", flush=True)
    return [rows[*job[:3], job[4]] for job in jobs]


def _key(row: dict[str, Any]) -> tuple[str, float, int, bool]:
    return row["problem"], row["share"], row["seed"], row["noise_scales"]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    swept = [name for name in PROBLEMS if (FOLDER / f"{name}.npz").exists()]
    parser.add_argument("--problems", nargs="+", choices=swept, default=swept)
    parser.add_argument("--shares", nargs="+", type=float, default=SHARES, help="budgets of the probe")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--live", nargs="*", choices=CHOSEN, default=list(CHOSEN), help="problems to follow plans of")
    parser.add_argument("--live-seeds", type=int, default=len(SEEDS), help="runs of each")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kept-probes", action="store_true", help="judge the probes that are done, and make no others")
    parser.add_argument(
        "--without-noise-scales", action="store_true", help="see what they are worth; no plan is followed"
    )
    parser.add_argument("--probes", type=Path, default=PROBES, help="where probes are kept")
    parser.add_argument("--kept", type=Path, default=KEPT, help="where live runs are kept")
    parser.add_argument("--forecasts", type=Path, default=HERE / "out" / "forecasts.jsonl", help="where these are kept")
    parser.add_argument("--output", type=Path, help="results/prediction.json, or prediction_without_noise_scales.json")
    args = parser.parse_args()
    how = args.probes, not args.without_noise_scales
    jobs = [(name, part, seed, *how) for part in args.shares for name in args.problems for seed in args.seeds]
    if args.kept_probes:
        jobs = [job for job in jobs if (args.probes / f"{job[0]}-{job[1]:g}-{job[2]}.json").exists()]
    rows = [judge(row) for row in forecasts(jobs, args.forecasts, args.workers)]
    ways, seeds = ("schedule", "adaptive"), args.live_seeds
    followed = [] if args.without_noise_scales else args.live
    live = live_rows(followed, ways, seeds=seeds, probes=args.probes, done=args.kept, workers=args.workers)
    found = {"machine": machine(), "summary": summaries_of(rows), "live": live_summary(live)}
    default = WITHOUT_NOISE_SCALES if args.without_noise_scales else RESULT
    save(args.output or default, {**found, "rows": rows, "live_rows": live})
    print_table(rows, found)


if __name__ == "__main__":
    main()
