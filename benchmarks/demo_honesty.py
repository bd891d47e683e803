"""How honest the demo is: of twenty seeds, how often a run takes what the plan printed.

For every seed the demo's flow without its study: probe, forecast, plan, and a training by the plan on another seed.
Steps and examples of the run are compared with the 90 % intervals of the plan. Seconds are left out: they are those of
the machine and of what else runs on it. Seeds are kept as they end, and the same call goes on where it stopped.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kept
import numpy as np
import torch
from machine import machine, save

from batchopt import AdaptiveSchedule, BatchoptError, Forecast, NonFiniteLossError, ReachLoss, probe, train
from batchopt.cli.demo import BUDGET, GOAL_LOSS
from batchopt.cli.digits import make_task
from batchopt.cli.training import compare

HERE = Path(__file__).parent
RESULT = HERE / "results" / "demo_honesty.json"
SEEDS = 20
TARGET = 0.85
"""Share of the runs that should lie in their 90 % interval: 17 of 20."""
COMPARED = ("steps", "examples")


def demo(seed: int) -> dict[str, Any]:
    """One run of the demo's flow."""
    task = make_task()
    try:
        forecast = Forecast.fit(probe(task, examples=BUDGET, seed=seed))
        plan = forecast.plan(ReachLoss(GOAL_LOSS))
    except BatchoptError as error:
        return {"seed": seed, "reached": False, "failure": f"{type(error).__name__}: {error}"}
    adaptive = AdaptiveSchedule(plan, forecast)
    row: dict[str, Any] = {
        "seed": seed,
        "batch_size": plan.batch_size,
        "learning_rate": plan.learning_rate,
        "shape": plan.learning_rate_schedule,
        "doubts": list(forecast.doubts),
        "lowest_observed": forecast.lowest_observed_loss,
        "reached": False,
    }
    try:
        result = train(task, adaptive, seed=seed + 1, until_loss=GOAL_LOSS)
    except NonFiniteLossError as error:
        return row | {"failure": f"{type(error).__name__}: {error}"}
    row |= {"reached": result.reached is not None, "last_loss": result.curve.losses[-1]}
    row["missed_decays"] = len(adaptive.missed)
    for told in compare(plan, plan.schedule, result):
        if told.name in COMPARED:
            interval = [told.predicted.value, told.predicted.low, told.predicted.high]
            row[told.name] = {"predicted": interval, "measured": told.measured, "inside": told.inside}
    return row


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How many runs arrive, and lie in the intervals; a run that does not arrive lies in none."""
    found: dict[str, Any] = {
        "seeds": len(rows),
        "arrived": sum(row["reached"] for row in rows),
        "missed_decays": sum(row.get("missed_decays", 0) for row in rows),
        "target_inside": math.ceil(TARGET * len(rows)),
    }
    for name in COMPARED:
        told = [row[name] for row in rows if name in row]
        ratios = [each["measured"] / each["predicted"][0] for each in told]
        found[name] = {
            "inside": sum(each["inside"] for each in told),
            "measured_over_predicted": [float(q) for q in np.quantile(ratios, (0.1, 0.5, 0.9))] if ratios else None,
        }
    return found


def print_summary(rows: Sequence[dict[str, Any]], found: dict[str, Any]) -> None:
    """Print every run, and the figures."""
    print(f"{'seed':>4}{'batch':>7}{'rate':>9}{'predicted examples':>32}{'measured':>10}  inside")
    for row in rows:
        begin = f"{row['seed']:4}{row.get('batch_size', 0):7}{row.get('learning_rate', 0.0):9.3g}"
        if "examples" not in row:
            print(f"{begin}  did not arrive: {row.get('failure', row.get('last_loss'))}")
            continue
        told = row["examples"]
        value, low, high = told["predicted"]
        shown = f"{value:,.0f} ({low:,.0f} to {high:,.0f})"
        print(f"{begin}{shown:>32}{told['measured']:10,.0f}  {'yes' if told['inside'] else 'no'}")
    print(f"\n{found['arrived']} of {found['seeds']} arrive, after {found['missed_decays']} decays that missed")
    for name in COMPARED:
        quantiles = found[name]["measured_over_predicted"] or [math.nan] * 3
        told = ", ".join(f"{q:.2f}" for q in quantiles)
        print(
            f"{name}: {found[name]['inside']} of {found['seeds']} in the 90 % interval "
            f"(target {found['target_inside']}); measured over predicted, 10 %, median, 90 %: {told}"
        )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="so many, from 0 on")
    parser.add_argument("--kept", type=Path, default=HERE / "out" / "demo_honesty.jsonl")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    done = {row["seed"]: row for row in kept.read(args.kept)}
    for seed in [seed for seed in range(args.seeds) if seed not in done]:
        done[seed] = demo(seed)
        kept.add(args.kept, done[seed])
        print(f"seed {seed}: {'arrived' if done[seed]['reached'] else 'did not arrive'}", flush=True)
    rows = [done[seed] for seed in range(args.seeds)]
    found = summary(rows)
    save(args.output, {"machine": machine(), "goal_loss": GOAL_LOSS, "budget": BUDGET, "summary": found, "rows": rows})
    print_summary(rows, found)


if __name__ == "__main__":
    main()
