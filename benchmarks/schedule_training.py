"""What plans bring in training: cost to the loss over that of the best run of the sweep.

Plans of probes are followed live (`live.py`) to the last loss of their problem, on seeds that no sweep has: by their
fixed schedule, by the adaptive one, and with their batch size at a constant rate. A step of B examples costs 64 + B.
The oracle is the cheapest setting of the sweep of decayed runs, at the horizon with which its runs end at the loss in
the mean over seeds; beside it a batch of 32 with the best rate and horizon of the sweep. Half of such runs end just
above the loss, which is not held against them.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from figures import finite, number
from live import CHOSEN, KEPT, WAYS, live_rows
from machine import machine, save
from probes import FOLDER as PROBES
from probes import SEEDS
from truth.decayed import decayed_sweep_of
from truth.design import PRICE
from truth.problems import PROBLEMS

HERE = Path(__file__).parent
RESULT = HERE / "results" / "schedule_training.json"
TARGET = 1.15
TARGET_PROBLEMS, NOT_DIGITS = 5, 2
"""The target is to be held on so many problems, so many of them not digits."""
HABIT = 32


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By problem: what every contestant takes, over the oracle."""
    found: dict[str, Any] = {}
    for name in dict.fromkeys(row["problem"] for row in rows):
        own = [row for row in rows if row["problem"] == name]
        loss, sweep = PROBLEMS[name].losses[-1], decayed_sweep_of(name)
        oracle = sweep.cheapest(loss, PRICE)
        habit = sweep.cheapest(loss, PRICE, HABIT)
        found[name] = {
            "loss": loss,
            "oracle": oracle._asdict(),
            "contestants": {way: compared([row for row in own if row["way"] == way], oracle.cost) for way in WAYS},
            "batch 32 tuned": habit.cost / oracle.cost,
        }
    held = [name for name, told in found.items() if is_held(told)]
    enough = len(held) >= TARGET_PROBLEMS and sum("digits" not in name for name in held) >= NOT_DIGITS
    return {"problems": found, "target": TARGET, "held_on": held, "target_held": enough}


def compared(rows: Sequence[dict[str, Any]], oracle: float) -> dict[str, Any]:
    """Costs of one way's runs over the oracle's; a run that does not arrive costs infinitely much in the median."""
    ratios = [row.get("spent", row["cost"]) / oracle if row["reached"] else math.inf for row in rows]
    arrived = [ratio for ratio in ratios if math.isfinite(ratio)]
    return {
        "runs": len(rows),
        "arrived": len(arrived),
        "median": finite(float(np.median(ratios))) if ratios else None,
        "geometric_mean_of_arrived": math.exp(float(np.mean(np.log(arrived)))) if arrived else None,
        "ratios": [finite(ratio) for ratio in ratios],
    }


def is_held(told: dict[str, Any]) -> bool:
    """Whether the better of the plan's schedules takes at most what the target says."""
    medians = [told["contestants"][way]["median"] for way in ("schedule", "adaptive")]
    return any(median is not None and median <= TARGET for median in medians)


def print_summary(found: dict[str, Any]) -> None:
    """Print what was found."""
    print("cost over the oracle's: median of all runs (geometric mean of those that arrived; arrived of all)")
    print(f"{'problem':16}{'oracle: batch, rate, examples':>32}" + "".join(f"{way:>24}" for way in WAYS) + "  batch 32")
    for name, told in found["problems"].items():
        oracle = told["oracle"]
        setting = f"{oracle['batch_size']}, {oracle['learning_rate']:.3g}, {oracle['examples']:,.0f}"
        cells = "".join(f"{_shown(told['contestants'][way]):>24}" for way in WAYS)
        print(f"{name:16}{setting:>32}{cells}{told['batch 32 tuned']:10.2f}")
    verdict = "held" if found["target_held"] else "missed"
    print(
        f"\nat most {found['target']} on {len(found['held_on'])} problems ({', '.join(found['held_on']) or 'none'}); "
        f"the target of {TARGET_PROBLEMS}, {NOT_DIGITS} of them not digits, is {verdict}"
    )


def _shown(told: dict[str, Any]) -> str:
    median = "inf" if told["median"] is None else f"{told['median']:.2f}"
    return f"{median} ({number(told['geometric_mean_of_arrived'])}; {told['arrived']} of {told['runs']})"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", nargs="+", choices=CHOSEN, default=list(CHOSEN))
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="trainings of each problem and way")
    parser.add_argument("--quick", action="store_true", help="two seeds of one problem, to show that all works")
    parser.add_argument("--workers", type=int, default=2, help="processes, each with one thread")
    parser.add_argument("--kept", type=Path, default=KEPT, help="where live runs are kept")
    parser.add_argument("--probes", type=Path, default=PROBES, help="where probes are kept")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    if args.quick:
        args.problems, args.seeds, args.output = ["digits_softmax"], 2, HERE / "out" / "quick_schedule_training.json"
    rows = live_rows(args.problems, WAYS, seeds=args.seeds, probes=args.probes, done=args.kept, workers=args.workers)
    found = summary(rows)
    save(args.output, {"machine": machine(), "price": "64 + B", "seeds": args.seeds, **found, "rows": rows})
    print_summary(found)


if __name__ == "__main__":
    main()
