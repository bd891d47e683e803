"""Whether weight decay and beta2 should follow the batch size: examples to a loss with and without the rules.

The transformer of `truth/` under AdamW (beta2 0.95, weight decay 0.1). The settings are taken as chosen for a batch of
32; runs are at an eighth of it and at eight times it, the best of three learning rates each.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from joblib import Parallel, delayed
from machine import machine, save
from truth.problems import PROBLEMS, make

from batchopt.errors import NonFiniteLossError
from batchopt.evidence import LossCurve
from batchopt.probing.evaluation import evaluation_points
from batchopt.probing.run import TrainingRun

RESULT = Path(__file__).parent / "results" / "rescaling.json"
PROBLEM = "transformer"
BASE = 32
RATES = {4: (0.001, 0.002, 0.004), 256: (0.002, 0.004, 0.008)}
RULES: dict[str, tuple[str, ...]] = {
    "neither": (),
    "weight decay": ("weight_decay",),
    "beta2": ("beta2",),
    "both": ("weight_decay", "beta2"),
}
SEEDS = (0, 1)


def examples_to(loss: float, batch_size: int, rate: float, rules: str, seed: int, most: int) -> float:
    """Examples that one run takes to a loss; infinite where it does not get there."""
    torch.set_num_threads(1)
    task = replace(make(PROBLEM)[0], rescale=RULES[rules], base_batch_size=BASE)
    run = TrainingRun(task, learning_rate=rate, seed=seed)
    curve: dict[int, float] = {}
    try:
        for point in evaluation_points(most, first=8 * batch_size, ratio=1.1):
            while run.examples_seen < point:
                run.step(batch_size)
            curve[run.examples_seen] = run.evaluate()
            if sum(value <= loss for value in curve.values()) > 2:
                break
    except NonFiniteLossError:
        return math.inf
    found = LossCurve(tuple(curve), tuple(curve.values())).examples_to(loss)
    return math.inf if found is None else found


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loss", type=float, default=PROBLEMS[PROBLEM].losses[-1])
    parser.add_argument("--most", type=int, nargs=2, default=(25_000, 110_000), help="examples, small and large batch")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    most = dict(zip(RATES, args.most, strict=True))
    cells = [(size, rules, rate) for size in RATES for rules in RULES for rate in RATES[size]]
    jobs = [(args.loss, size, rate, rules, seed, most[size]) for size, rules, rate in cells for seed in SEEDS]
    found = Parallel(n_jobs=args.workers)(delayed(examples_to)(*job) for job in jobs)
    means = np.exp(np.log(np.array(found)).reshape(len(cells), len(SEEDS)).mean(axis=1))
    by_cell = dict(zip(cells, map(float, means), strict=True))
    rows = []
    for size in RATES:
        plain = min(by_cell[size, "neither", rate] for rate in RATES[size])
        for rules in RULES:
            examples, rate = min((by_cell[size, rules, rate], rate) for rate in RATES[size])
            rows.append(
                {
                    "batch_size": size,
                    "rescaled": rules,
                    "examples": examples if math.isfinite(examples) else None,
                    "learning_rate": rate,
                    "over_neither": examples / plain if math.isfinite(examples) else None,
                }
            )
            print(f"batch {size:4d}  rescaled {rules:13} {examples:9.0f} examples at {rate:g}: {examples / plain:.2f}")
    save(args.output, {"machine": machine(), "problem": PROBLEM, "loss": args.loss, "base": BASE, "rows": rows})


if __name__ == "__main__":
    main()
