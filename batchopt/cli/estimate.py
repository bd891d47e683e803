"""What a probe will spend, before it does: examples, steps and seconds, from the timing of a few steps."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchopt._wording import seconds as in_words
from batchopt.cli.budgets import Budget
from batchopt.cli.console import Console
from batchopt.errors import TaskError
from batchopt.probing.branches import EVALUATION_SHARE, MOST_EVALUATIONS
from batchopt.probing.budget import (
    COOLED_RATES,
    FINE_RATES,
    LONG_COOLDOWNS,
    RATES,
    SHARES,
    BatchSizes,
    choose_batch_sizes,
    examples_within,
    price_in_examples,
    price_of,
)
from batchopt.step_cost import StepCost

if TYPE_CHECKING:
    from batchopt.probing.task import TrainingTask

TIMED_SECONDS = 2.0
"""How long steps are timed."""
RUNS = {
    "learning-rate search": RATES,
    "short runs, large batch": FINE_RATES,
    "short runs, small batch": FINE_RATES,
    "cooldowns of short runs": 2 * COOLED_RATES,
    "long runs": 2,
    "cooldowns of long runs": 2 * len(LONG_COOLDOWNS),
}
"""Runs of each part, where it goes as a rule."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a part of a probe takes."""

    part: str
    examples: float
    steps: float
    evaluations: float
    seconds: float


def show_estimate(task: TrainingTask, budget: Budget | None, args: argparse.Namespace, console: Console) -> None:
    """Time a few steps and an evaluation, and print what the probe will spend."""
    from batchopt.probing.data import evaluation_cost, evaluation_examples

    if budget is None:
        console.say(f"{args.out / 'probe.json'} is there already: nothing would be probed, only planned")
        console.result({"examples": 0, "steps": 0, "seconds": 0.0, "parts": []})
        return
    cost, evaluation = _timed(task, args.seed)
    examples, price, sizes = _sizes(task, budget, args.batch_sizes, cost)
    works = expected(examples, price, sizes, cost, evaluation=evaluation, charged=evaluation_cost(task))
    total = [sum(getattr(work, name) for work in works) for name in ("examples", "steps", "evaluations", "seconds")]
    console.say(f"the probe has {budget}; it would spend about")
    rows = [(w.part, round(w.examples), round(w.steps), round(w.evaluations), in_words(w.seconds)) for w in works]
    rows.append(("in all, at most", *map(round, total[:3]), in_words(total[3])))
    console.table(("part", "examples", "steps", "evaluations", "time"), rows, chosen=len(rows) - 1)
    console.say(f"\nbatch sizes {sizes.small} and {sizes.large}; a step takes {cost.in_words()}")
    console.say(f"an evaluation of {evaluation_examples(task):,} examples takes {in_words(evaluation)}")
    console.say("after the probe, forecast and plan take about ten seconds; nothing was written")
    console.result(
        {
            "examples": round(total[0]),
            "steps": round(total[1]),
            "evaluations": round(total[2]),
            "seconds": total[3],
            "batch_sizes": [sizes.small, sizes.large],
            "parts": [{"part": w.part, "examples": w.examples, "steps": w.steps, "seconds": w.seconds} for w in works],
        }
    )


def expected(
    budget: int, price: StepCost, sizes: BatchSizes, cost: StepCost, *, evaluation: float, charged: float
) -> list[Work]:
    """What each part takes where it spends its whole share.

    Args:
        budget: of the probe, in examples.
        price: what a step counts for of it.
        sizes: batch sizes that it runs.
        cost: of a step, in seconds.
        evaluation: seconds of one.
        charged: examples that one counts for.
    """
    at = {"short runs, large batch": (sizes.large,), "short runs, small batch": (sizes.small,)}
    at |= {"learning-rate search": (sizes.search,), "learning-rate range": (sizes.search,)}
    works = []
    for part, share in SHARES.items():
        looked = min(MOST_EVALUATIONS * RUNS.get(part, 0), EVALUATION_SHARE * share * budget / charged)
        left = share * budget - looked * charged
        where = at.get(part, (sizes.small, sizes.large))
        steps = [left / len(where) / price(size) for size in where]
        examples = sum(n * size for n, size in zip(steps, where, strict=True)) + looked * charged
        seconds = sum(n * cost(size) for n, size in zip(steps, where, strict=True)) + looked * evaluation
        if part == "step time":
            steps, seconds = [0.0], min(TIMED_SECONDS, seconds)
        if part == "noise scales":  # single examples take about twice as long as in a batch, and no step is made
            steps, seconds = [0.0], 2.0 * examples / sizes.large * cost(sizes.large)
        works.append(Work(part, examples, sum(steps), looked, seconds))
    return works


def _timed(task: TrainingTask, seed: int) -> tuple[StepCost, float]:
    """The step cost, and the seconds of an evaluation."""
    from batchopt.probing.evaluation import evaluated
    from batchopt.probing.state import OwnRandomness
    from batchopt.probing.step_time import measure_step_cost

    if task.is_stream:
        raise TaskError(
            "a stream of batches cannot be probed: give a function that opens a stream of examples by a seed"
        )
    cost, _, _ = measure_step_cost(task, learning_rate=1e-6, seconds=TIMED_SECONDS, seed=seed)
    with OwnRandomness(seed, device=task.torch_device, host=True).active():
        model = task.make_model()
    evaluated(task, model)  # the first loads what is loaded late
    began = time.perf_counter()
    evaluated(task, model)
    return cost, time.perf_counter() - began


def _sizes(
    task: TrainingTask, budget: Budget, bounds: tuple[int, int] | None, cost: StepCost
) -> tuple[int, StepCost, BatchSizes]:
    """The budget in examples, what a step counts for of it, and the batch sizes that the probe will choose."""
    from batchopt.probing.data import available

    price, examples = price_of(0.0), budget.examples
    if budget.seconds is not None:
        price = price_in_examples(cost) if examples is None else price
        within = examples_within(budget.seconds, cost, price)
        examples = within if examples is None else min(examples, within)
    if examples is None:
        raise ValueError("a budget holds examples or seconds")
    population = available(task.data)
    low, high = bounds or (1, population)
    high = min(high, cost.largest_batch_size or high)
    return examples, price, choose_batch_sizes(examples, price, bounds=(low, high), population=population)
