"""Critical batch sizes of PPO on CartPole by brute force, at constant rates."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from problem import task
from rollout_sweep import Grid, sweep, tell

GRID = Grid(
    batch_sizes=(2, 16, 128),
    learning_rates=(3e-3, 1e-2, 3e-2),
    seeds=(0, 1, 2),
    most_steps=300,
    most_examples=6_000,
    scores=(50.0, 100.0, 200.0, 350.0),
)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    tell(sweep(task, GRID, Path(__file__).parent / "sweep.jsonl", workers=args.workers), GRID)
