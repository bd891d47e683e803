"""Critical batch sizes of CartPole and Acrobot by brute force, at constant rates."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from problem import acrobot, task
from rollout_sweep import Grid, sweep, tell

HERE = Path(__file__).parent
GRIDS = {
    "cartpole": Grid(
        batch_sizes=(4, 16, 64, 256),
        learning_rates=(3e-3, 1e-2, 3e-2),
        seeds=(0, 1, 2, 3, 4),
        most_steps=4_000,
        most_examples=30_000,
        scores=(50.0, 100.0, 200.0, 350.0),
    ),
    "acrobot": Grid(
        batch_sizes=(4, 16, 64, 256),
        learning_rates=(3e-3, 1e-2),
        seeds=(0, 1),
        most_steps=2_000,
        most_examples=30_000,
        scores=(-300.0, -200.0, -120.0, -95.0),
    ),
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--games", nargs="*", default=list(GRIDS), choices=list(GRIDS))
    args = parser.parse_args()
    for name in args.games:
        chosen = {"cartpole": task, "acrobot": acrobot}[name]
        tell(sweep(chosen, GRIDS[name], HERE / f"sweep-{name}.jsonl", workers=args.workers), GRIDS[name])
