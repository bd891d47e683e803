"""Live trainings by plans, on seeds that no sweep has and no probe: kept as they end, one to a line of a file.

Three ways to follow a plan to a loss, at a price of 64 + B for a step of B examples: its fixed schedule to the end, of
which the plan predicts the last loss; the adaptive schedule, of which it predicts the examples; and its batch size at
the constant rate that the forecast thinks best.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kept
import torch
from figures import interval_of
from joblib import Parallel, delayed
from probes import SEEDS, forecast_of
from truth.decayed import decayed_sweep_of
from truth.design import PRICE
from truth.problems import PROBLEMS, make

from batchopt import AdaptiveSchedule, Forecast, NonFiniteLossError, Plan, ReachLoss, Schedule, train
from batchopt.errors import BatchoptError
from batchopt.forecasting.horizons import schedule_of
from batchopt.training.train import TrainingResult

HERE = Path(__file__).parent
KEPT = HERE / "out" / "live.jsonl"
CHOSEN = ("quadratic", "digits_softmax", "digits_mlp", "mnist_cnn_adam", "autoencoder", "lstm")
"""Problems that train in seconds."""
PROBE_SHARE = 1.0
FIRST_SEED = 200
MOST_COSTS = 6.0
"""A run at a constant rate ends after this many times what the sweep's cheapest setting takes."""
WAYS = ("schedule", "adaptive", "constant rate")


@dataclass(frozen=True)
class Live:
    """One training to make: the seeds of trainings take those of the probes in turns."""

    problem: str
    seed: int
    way: str

    @property
    def loss(self) -> float:
        """The last of the sweep."""
        return PROBLEMS[self.problem].losses[-1]

    @property
    def probe_seed(self) -> int:
        """Of the probe that the plan comes from."""
        return SEEDS[self.seed % len(SEEDS)]


def trained(live: Live, probes: Path) -> dict[str, Any]:
    """What came of one training."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    row: dict[str, Any] = {
        "problem": live.problem,
        "loss": live.loss,
        "seed": live.seed,
        "probe_seed": live.probe_seed,
        "way": live.way,
        "reached": False,
    }
    try:
        forecast = forecast_of(live.problem, PROBE_SHARE, live.probe_seed, probes)
        sizes = PROBLEMS[live.problem].batch_sizes
        goal, bounds = ReachLoss(live.loss, least=PRICE), (sizes[0], sizes[-1])
        plan = forecast.plan(goal, learning_rate_schedule="wsd", batch_sizes=bounds)
        row |= {"batch_size": plan.batch_size, "learning_rate": plan.learning_rate, "horizon": plan.horizon}
        follow = {"schedule": _fixed, "adaptive": _adaptive, "constant rate": _constant}[live.way]
        return row | follow(live, plan, forecast)
    except (BatchoptError, NonFiniteLossError, ValueError) as error:
        return row | {"failure": f"{type(error).__name__}: {error}"}


def _fixed(live: Live, plan: Plan, forecast: Forecast) -> dict[str, Any]:
    rates = schedule_of("wsd", plan.horizon, forecast.warmup_examples)
    schedule = Schedule.constant(
        plan.batch_size, examples=plan.horizon, learning_rate=plan.learning_rate, learning_rate_schedule=rates
    )
    result = train(make(live.problem)[0], schedule, seed=FIRST_SEED + live.seed)
    reached = result.curve.examples_to(live.loss, is_over=True)
    return {"last_loss": result.curve.losses[-1], "predicted_loss": interval_of(plan.loss), **_arrival(result, reached)}


def _adaptive(live: Live, plan: Plan, forecast: Forecast) -> dict[str, Any]:
    adaptive = AdaptiveSchedule(plan, forecast)
    result = train(make(live.problem)[0], adaptive, seed=FIRST_SEED + live.seed)
    row = _arrival(result, result.reached)
    if "cost" in row:
        # What the run went back on is paid as well; its own examples leave that out, and the plan's do not.
        row["spent"] = row["cost"] + PRICE.per_step * result.steps_gone_back + PRICE.per_example * result.gone_back
        row["spent_examples"] = row["examples"] + result.gone_back
    return row | {
        "missed_decays": len(adaptive.missed),
        "diverged": len(adaptive.diverged),
        # The plan's interval is of its constant batch size; the total of a schedule that raises it shifts it.
        "predicted_examples": interval_of(plan.examples.scaled(plan.schedule.examples / plan.horizon)),
        "predicted_cost": plan.schedule_cost.value,
    }


def _constant(live: Live, plan: Plan, forecast: Forecast) -> dict[str, Any]:
    size = plan.batch_size
    rate = forecast.learning_rate(size, live.loss, learning_rate_schedule="constant").value
    most = MOST_COSTS * decayed_sweep_of(live.problem).cheapest(live.loss, PRICE).cost
    examples = math.ceil(most / PRICE(size)) * size
    schedule = Schedule.constant(size, examples=examples, learning_rate=rate)
    result = train(make(live.problem)[0], schedule, seed=FIRST_SEED + live.seed, until_loss=live.loss)
    return {"constant_rate": rate, **_arrival(result, result.reached)}


def _arrival(result: TrainingResult, reached: float | None) -> dict[str, Any]:
    if reached is None:
        return {"reached": False}
    steps = result.schedule.steps_to(reached)
    return {"reached": True, "examples": reached, "cost": PRICE.per_step * steps + PRICE.per_example * reached}


def live_rows(
    problems: Sequence[str], ways: Sequence[str], *, seeds: int, probes: Path, done: Path = KEPT, workers: int = 1
) -> list[dict[str, Any]]:
    """The rows of these trainings, of which those that are not kept yet are made."""
    rows = {key_of(row): row for row in kept.read(done)}
    wanted = [Live(name, seed, way) for name in problems for seed in range(seeds) for way in ways]
    jobs = (delayed(trained)(live, probes) for live in wanted if live not in rows)
    for row in Parallel(n_jobs=workers, return_as="generator_unordered")(jobs):
        kept.add(done, row)
        rows[key_of(row)] = row
        print(f"{row['problem']} {row['seed']} {row['way']}: {'arrived' if row['reached'] else 'missed'}", flush=True)
    return [rows[live] for live in wanted]


def key_of(row: dict[str, Any]) -> Live:
    """The training of a row."""
    return Live(row["problem"], row["seed"], row["way"])
