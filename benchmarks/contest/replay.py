"""Recorded runs as a search space: a trial becomes the nearest run, and reports at equal costs.

A trial costs what its run cost, at 64 + B for a step of B examples. It ends where the run reached the problem's last
loss, diverged or was given up, and after `MOST_COSTS` times the cost of the best configuration at the latest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import optuna
from truth.curves import Run
from truth.design import DESIGNS, PRICE, DesignRun, unpack_design
from truth.problems import PROBLEMS
from truth.tradeoff import sweep_of
from truth.training import FIRST_EVALUATION_STEPS

MOST_COSTS = 10.0
FIRST_REPORT = 1.0 / 64.0
"""A trial first reports at this share of the best configuration's cost, then twice for every doubling."""
UNITS = 256
"""Costs are told to Optuna's pruners as whole numbers of this part of the best configuration's cost."""
BATCH_SIZE, LEARNING_RATE = "log2_batch_size", "learning_rate"


@dataclass(frozen=True, slots=True)
class Report:
    """What a trial reports: what it has spent, examples seen, and the loss (NaN where it diverged)."""

    cost: float
    examples: int
    loss: float


@dataclass(frozen=True, slots=True)
class Trace:
    """One trial as it would run.

    Attributes:
        reports: rising in cost.
        end: cost at which it ends.
        reached: whether it ends with the goal's loss.
        ratio: its cost over that of the best configuration; infinite where it misses the goal.
        batch_size: what it trains with.
        last_loss: at the end.
    """

    reports: tuple[Report, ...]
    end: float
    reached: bool
    ratio: float
    batch_size: int
    last_loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Arena:
    """A problem to be searched.

    Attributes:
        name: of the problem.
        space: what every contestant searches.
        loss: to be reached.
        best: cost of the best configuration.
        play: the trace of a trial by its parameters.
        place: batch size and learning rate of the best configuration, of a sweep.
    """

    name: str
    space: Mapping[str, optuna.distributions.BaseDistribution]
    loss: float
    best: float
    play: Callable[[Mapping[str, Any]], Trace]
    place: tuple[int, float] = (0, 0.0)


def milestones(best: float) -> list[float]:
    """Costs at which every trial reports."""
    count = 2 * math.ceil(math.log2(MOST_COSTS / FIRST_REPORT))
    return [best * FIRST_REPORT * 2.0 ** (k / 2) for k in range(count + 1)]


def trace_of(run: Run | DesignRun, *, loss: float, best: float, ratio: float) -> Trace:
    """What a trial that becomes this run reports."""
    per_example = PRICE(run.batch_size) / run.batch_size
    examples, losses = np.array(run.examples, float), np.array(run.losses, float)
    reached = Run.examples_to(run, loss)  # type: ignore[arg-type]
    cap = MOST_COSTS * best
    # A run whose loss was never finite again after it began has cost its steps to the first evaluation all the same.
    end = max(min(reached, examples[-1]) * per_example, FIRST_EVALUATION_STEPS * PRICE(run.batch_size))
    log_examples, log_losses = np.log(examples + 1.0), np.log(losses)

    def loss_at(cost: float) -> float:
        return float(np.exp(np.interp(math.log(cost / per_example + 1.0), log_examples, log_losses)))

    # Nobody has seen a loss before the first evaluation.
    first = examples[1] * per_example if len(examples) > 1 and examples[0] == 0 else examples[0] * per_example
    costs = [cost for cost in milestones(best) if first <= cost < min(end, cap)]
    reports = [Report(cost, round(cost / per_example), loss_at(cost)) for cost in costs]
    if run.outcome == "diverged" and end <= cap:
        reports.append(Report(end, math.ceil(end / per_example) + 1, math.nan))
    return Trace(
        tuple(reports),
        min(end, cap),
        math.isfinite(reached) and end <= cap,
        ratio,
        run.batch_size,
        loss_at(min(end, cap)) if run.outcome != "diverged" else 3.0 * losses[0],
    )


def sweep_arena(name: str, seed: int) -> Arena:
    """The sweep of a problem over batch size and learning rate.

    All trials of a study are of one seed of the sweep, as people fix it for a search, and the best configuration is
    that seed's. A sweep grows around its best configuration, so the middle of its ranges would give that away: of each
    range a part is cut off, on one side, by chance. The best configuration stays inside.
    """
    seeds = PROBLEMS[name].seeds
    whole = _whole_sweep(name, seeds[seed % len(seeds)])
    rng = np.random.default_rng([seed, 1])
    size, rate = whole.place
    sizes, rates = whole.space[BATCH_SIZE], whole.space[LEARNING_RATE]
    low, high = _cut(float(sizes.low), float(sizes.high), math.log2(size), 1.0, rng)  # type: ignore[attr-defined]
    coldest, hottest = (math.log(end) for end in (rates.low, rates.high))  # type: ignore[attr-defined]
    coldest, hottest = _cut(coldest, hottest, math.log(rate), 0.5 * math.log(2.0), rng)
    space = {
        BATCH_SIZE: optuna.distributions.IntDistribution(math.ceil(low), math.floor(high)),
        LEARNING_RATE: optuna.distributions.FloatDistribution(math.exp(coldest), math.exp(hottest), log=True),
    }
    return replace(whole, space=space)


def _cut(low: float, high: float, best: float, margin: float, rng: np.random.Generator) -> tuple[float, float]:
    """A range with a part cut off on one side, at least a margin from the best."""
    share = rng.uniform()
    if rng.uniform() < 0.5:
        return low + share * max(0.0, best - margin - low), high
    return low, high - share * max(0.0, high - best - margin)


@cache
def _whole_sweep(name: str, seed: int) -> Arena:
    loss = PROBLEMS[name].losses[-1]
    runs = {(run.batch_size, run.learning_rate): run for run in sweep_of(name).runs if run.seed == seed}
    costs = {key: run.examples_to(loss) / key[0] * PRICE(key[0]) for key, run in runs.items()}
    place = min(costs, key=lambda key: costs[key])
    best = costs[place]
    sizes, rates = sorted({size for size, _ in runs}), sorted({rate for _, rate in runs})
    traces = {key: trace_of(run, loss=loss, best=best, ratio=costs[key] / best) for key, run in runs.items()}

    def play(params: Mapping[str, Any]) -> Trace:
        size = min(sizes, key=lambda size: abs(math.log2(size) - params[BATCH_SIZE]))
        own = [rate for s, rate in traces if s == size]
        return traces[size, min(own, key=lambda rate: abs(math.log(rate / params[LEARNING_RATE])))]

    return Arena(
        name=name,
        space={
            BATCH_SIZE: optuna.distributions.IntDistribution(sizes[0].bit_length() - 1, sizes[-1].bit_length() - 1),
            LEARNING_RATE: optuna.distributions.FloatDistribution(rates[0], rates[-1], log=True),
        },
        loss=loss,
        best=best,
        play=play,
        place=place,
    )


EXTRAS = {1: ("weight_decay",), 3: ("weight_decay", "memory", "width")}
DEFAULTS = {"weight_decay": 1e-4, "width": 64}


@cache
def design_arena(name: str, extras: int) -> Arena:
    """The random design of a problem, with one or three parameters beside batch size and learning rate.

    A trial becomes the run that is nearest, each parameter in units of its range; a parameter that is not searched
    is asked for at its default.
    """
    design, problem, runs = DESIGNS[name], PROBLEMS[name], unpack_design(name)
    loss, uniform = problem.losses[-1], design.memory == "momentum"
    float_, int_ = optuna.distributions.FloatDistribution, optuna.distributions.IntDistribution
    every: dict[str, optuna.distributions.BaseDistribution] = {
        BATCH_SIZE: int_(problem.batch_sizes[0].bit_length() - 1, problem.batch_sizes[-1].bit_length() - 1),
        LEARNING_RATE: float_(*design.learning_rate, log=True),
        "weight_decay": float_(*design.weight_decay, log=True),
        "memory": float_(*design.memory_range, log=not uniform),
        "width": int_(*design.width, log=True),
    }
    defaults = {**DEFAULTS, "memory": 0.0 if uniform else 0.001}

    def place(params: Mapping[str, Any]) -> np.ndarray:
        at = []
        for key, distribution in every.items():
            low, high, value = distribution.low, distribution.high, params[key]  # type: ignore[attr-defined]
            logarithmic = distribution.log  # type: ignore[attr-defined]
            low, high, value = (math.log(x) if logarithmic else float(x) for x in (low, high, value))
            at.append((value - low) / (high - low))
        return np.array(at)

    points = np.array(
        [
            place({BATCH_SIZE: math.log2(run.batch_size), LEARNING_RATE: run.learning_rate,
                   "weight_decay": run.weight_decay, "memory": run.memory, "width": run.width})
            for run in runs
        ]
    )  # fmt: skip
    names = (BATCH_SIZE, LEARNING_RATE, *EXTRAS[extras])

    def nearest(params: Mapping[str, Any]) -> int:
        return int(np.argmin(np.sum((points - place({**defaults, **params})) ** 2, axis=1)))

    reach = {nearest(_drawn(every, names, seed)) for seed in range(4_000)}
    costs = [Run.examples_to(run, loss) / run.batch_size * PRICE(run.batch_size) for run in runs]  # type: ignore[arg-type]
    best = min(costs[i] for i in reach)
    traces = [trace_of(run, loss=loss, best=best, ratio=cost / best) for run, cost in zip(runs, costs, strict=True)]

    return Arena(
        name=f"{name} +{extras}",
        space={key: every[key] for key in names},
        loss=loss,
        best=best,
        play=lambda params: traces[nearest(params)],
    )


def _drawn(
    space: Mapping[str, optuna.distributions.BaseDistribution], names: tuple[str, ...], seed: int
) -> dict[str, Any]:
    """Parameters at random, as Optuna would draw them."""
    rng = np.random.default_rng(seed)
    params: dict[str, Any] = {}
    for name in names:
        distribution = space[name]
        low, high = float(distribution.low), float(distribution.high)  # type: ignore[attr-defined]
        value = rng.uniform()
        drawn = low * (high / low) ** value if distribution.log else low + (high - low) * value  # type: ignore[attr-defined]
        params[name] = round(drawn) if isinstance(distribution, optuna.distributions.IntDistribution) else drawn
    return params
