"""What a schedule brings in training: the plan's, its best constant batch, the adaptive one, and what people do.

Three problems of `truth/` are trained live, on seeds that no sweep has, until they reach the problem's last loss. Each
seed has a probe of its own (a fifth of them repeats), the plan of its forecast, and the same initialisation and data
order for all contestants. A step of B examples costs 64 + B. Contestants are compared with the plan's best constant
batch by the mean log ratio over seeds; seeds are added until its standard error is below 2 %, or there are forty.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from machine import machine, save
from prediction import cheapest_config, probe_problem
from truth.design import PRICE
from truth.problems import PROBLEMS, make
from truth.tradeoff import tradeoffs_of

from batchopt import (
    AdaptiveSchedule,
    BatchoptError,
    Forecast,
    NonFiniteLossError,
    Plan,
    ReachLoss,
    Schedule,
    Segment,
    train,
)

HERE = Path(__file__).parent
RESULT = HERE / "results" / "schedule_training.json"
CHOSEN = ("digits_mlp", "digits_softmax", "quadratic")
"""Problems that train in seconds."""
PROBE_SHARE, PROBE_SEEDS = 1.0, (10, 11, 12, 13, 14)
FIRST_SEED = 200
MOST_SEEDS, RESOLVED = 40, 0.02
MOST_COSTS = 6.0
"""A run ends after this many times what the tuned oracle's takes."""
REFERENCE = "constant"
CONTESTANTS = (
    REFERENCE, "schedule", "adaptive", "square root from 32", "linear from 32", "doubling every third", "oracle",
)  # fmt: skip


def contest(problem: str, seed: int, probes: Path) -> list[dict[str, Any]]:
    """All contestants on one seed; one row that says why where there is no plan."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    loss = PROBLEMS[problem].losses[-1]
    report = probe_problem(problem, PROBE_SHARE, PROBE_SEEDS[seed % len(PROBE_SEEDS)], probes).report
    try:
        if report is None:
            raise BatchoptError("the probe failed")
        forecast = Forecast.fit(report)
        plan = forecast.plan(ReachLoss(loss, least=PRICE))
    except BatchoptError as error:
        return [{"problem": problem, "seed": seed, "contestant": REFERENCE, "failed": str(error)}]
    oracle_cost, oracle_size, oracle_rate = cheapest_config(problem, loss, PRICE)
    schedules = dict(schedules_of(problem, loss, plan, forecast))
    schedules["oracle"] = Schedule.constant(oracle_size, examples=1, learning_rate=oracle_rate)
    rows = []
    for name in CONTESTANTS:
        schedule = schedules[name]
        promised = plan.schedule_cost.value / plan.cost.value if name == "schedule" else None
        row = trained(problem, schedule, loss, seed, most=MOST_COSTS * oracle_cost)
        rows.append({"problem": problem, "seed": seed, "contestant": name, "promised": promised, **row})
    return rows


def schedules_of(
    problem: str, loss: float, plan: Plan, forecast: Forecast
) -> Iterator[tuple[str, Schedule | AdaptiveSchedule]]:
    """What follows from a plan, by name."""
    size, rate, examples = plan.batch_size, plan.learning_rate, plan.schedule.examples
    yield REFERENCE, Schedule.constant(size, examples=examples, learning_rate=rate)
    yield "schedule", plan.schedule
    yield "adaptive", AdaptiveSchedule(plan, forecast)
    truth = tradeoffs_of(problem)[-1]
    known = float(np.interp(math.log(32), np.log(truth.batch_sizes), np.log(truth.learning_rates)))
    for name, power in (("square root from 32", 0.5), ("linear from 32", 1.0)):
        scaled = math.exp(known) * (size / 32) ** power
        yield name, Schedule.constant(size, examples=examples, learning_rate=scaled)
    thirds = [max(1, size // 2), size, 2 * size]
    rates = [forecast.learning_rate(third, loss).value / rate for third in thirds]
    starts = [0, examples // 3, 2 * examples // 3]
    segments = tuple(Segment(*three) for three in zip(starts, thirds, rates, strict=True))
    yield "doubling every third", Schedule(segments, examples, rate)


def trained(
    problem: str, schedule: Schedule | AdaptiveSchedule, loss: float, seed: int, *, most: float
) -> dict[str, Any]:
    """What a training takes to the loss, or what it had spent when it was given up.

    Every schedule goes on at its last batch size where its end comes before the loss.
    """
    task, _ = make(problem)
    moves = 0
    if isinstance(schedule, AdaptiveSchedule):
        adaptive = schedule
        try:
            schedule = train(task, adaptive, seed=FIRST_SEED + seed, until_loss=loss).schedule
        except NonFiniteLossError:
            return {"reached": False, "cost": most, "moves": len(adaptive.moves)}
        moves = len(adaptive.moves)
    # What the adaptive one did is followed again, without looking, and beyond its end.
    last = schedule.segments[-1].batch_size
    followed = replace(schedule, examples=max(schedule.examples, math.ceil(most / PRICE(last)) * last))

    def give_up(examples: int, _: float) -> None:
        if cost_to(followed, examples) > most:
            raise GivenUpError

    try:
        result = train(task, followed, seed=FIRST_SEED + seed, until_loss=loss, on_evaluation=give_up)
    except (NonFiniteLossError, GivenUpError):
        return {"reached": False, "cost": most, "moves": moves}
    if result.reached is None:
        return {"reached": False, "cost": most, "moves": moves}
    return {
        "reached": True,
        "steps": followed.steps_to(result.reached),
        "examples": result.reached,
        "cost": cost_to(followed, result.reached),
        "moves": moves,
    }


class GivenUpError(Exception):
    """A run has spent too much."""


def cost_to(schedule: Schedule, examples: float) -> float:
    """What a schedule has cost after a number of examples."""
    examples = min(examples, schedule.examples)
    return PRICE.per_step * schedule.steps_to(examples) + PRICE.per_example * examples


class Kept:
    """Rows that are done, one to a line of a file."""

    def __init__(self, path: Path) -> None:
        self._path, self.rows = path, list[dict[str, Any]]()
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(json.JSONDecodeError):  # an interrupted write leaves part of a line
                    self.rows += json.loads(line)

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Keep the rows of a seed."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps(rows) + "\n")
        self.rows += rows

    def seeds(self, problem: str) -> set[int]:
        """Seeds of a problem that are done."""
        return {row["seed"] for row in self.rows if row["problem"] == problem}


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By problem: geometric means, and ratios to the plan's constant batch with their standard errors."""
    found: dict[str, Any] = {}
    for problem in dict.fromkeys(row["problem"] for row in rows):
        by_seed: dict[int, dict[str, dict[str, Any]]] = defaultdict(dict)
        for row in rows:
            if row["problem"] == problem and "failed" not in row:
                by_seed[row["seed"]][row["contestant"]] = row
        seeds = sorted(by_seed)
        failed = sum(row["problem"] == problem and "failed" in row for row in rows)
        told = {name: _compared([by_seed[seed] for seed in seeds], name) for name in CONTESTANTS} if seeds else {}
        found[problem] = {"seeds": len(seeds), "seeds without a plan": failed, "contestants": told}
    return found


def _compared(seeds: Sequence[dict[str, dict[str, Any]]], name: str) -> dict[str, Any]:
    rows, reference = [seed[name] for seed in seeds], [seed[REFERENCE] for seed in seeds]
    logs = np.log([row["cost"] for row in rows]) - np.log([row["cost"] for row in reference])
    error = float(np.std(logs, ddof=1) / math.sqrt(len(logs))) if len(logs) > 1 else math.inf
    told: dict[str, Any] = {
        "reached": sum(row["reached"] for row in rows),
        "cost": math.exp(float(np.mean(np.log([row["cost"] for row in rows])))),
        "cost over the constant batch's": math.exp(float(np.mean(logs))),
        "standard error": error if math.isfinite(error) else None,
        "resolved": error < RESOLVED,
    }
    for what in ("steps", "examples"):
        values = [row[what] for row in rows if row["reached"]]
        told[what] = math.exp(float(np.mean(np.log(values)))) if values else None
    promised = [row["promised"] for row in rows if row.get("promised") is not None]
    if promised:
        told["promised"] = math.exp(float(np.mean(np.log(promised))))
    if name == "adaptive":
        told["moves"] = float(np.mean([row.get("moves", 0) for row in rows]))
    return told


def is_resolved(rows: Sequence[dict[str, Any]], problem: str) -> bool:
    """Whether no more seeds are needed: of the schedules that are ours."""
    told = summary(rows).get(problem, {}).get("contestants", {})
    return bool(told) and all(told[name]["resolved"] for name in ("schedule", "adaptive"))


def print_summary(found: dict[str, Any]) -> None:
    """Print what was found."""
    for problem, told in found.items():
        print(f"\n{problem}: {told['seeds']} seeds, {told['seeds without a plan']} without a plan")
        for name, row in told["contestants"].items():
            error = row["standard error"]
            mark = "" if row["resolved"] else "   not resolved"
            promised = f"   promised {row['promised']:.3f}" if "promised" in row else ""
            print(
                f"  {name:22} cost {row['cost']:10.0f}   over the constant batch's "
                f"{row['cost over the constant batch' + chr(39) + 's']:.3f} +- "
                f"{math.nan if error is None else error:.3f}{mark}{promised}   reached {row['reached']}"
            )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", nargs="+", choices=sorted(PROBLEMS), default=list(CHOSEN))
    parser.add_argument("--seeds", type=int, default=MOST_SEEDS, help="at most")
    parser.add_argument("--quick", action="store_true", help="two seeds of one problem, to show that all works")
    parser.add_argument("--jobs", type=int, default=2, help="processes, each with one thread")
    parser.add_argument("--kept", type=Path, default=HERE / "out" / "schedule_training.jsonl")
    parser.add_argument("--probes", type=Path, default=HERE / "out" / "probes", help="where probes are kept")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    if args.quick:
        args.problems, args.seeds = args.problems[:1], 2
        args.kept, args.output = (HERE / "out" / f"quick_schedule_training.{end}" for end in ("jsonl", "json"))
    kept = Kept(args.kept)
    for problem in args.problems:
        left = [seed for seed in range(args.seeds) if seed not in kept.seeds(problem)]
        while left and not (len(kept.seeds(problem)) >= 2 * len(PROBE_SEEDS) and is_resolved(kept.rows, problem)):
            batch, left = left[: len(PROBE_SEEDS)], left[len(PROBE_SEEDS) :]
            jobs = (delayed(contest)(problem, seed, args.probes) for seed in batch)
            for rows in Parallel(n_jobs=args.jobs, return_as="generator_unordered")(jobs):
                kept.add(rows)
            print(f"{problem}: {len(kept.seeds(problem))} seeds", flush=True)
    found = summary(kept.rows)
    save(args.output, {"machine": machine(), "price": "64 + B", "summary": found})
    print_summary(found)


if __name__ == "__main__":
    main()
