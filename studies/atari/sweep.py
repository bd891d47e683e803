"""Critical batch sizes of Atari games under A2C by brute force, at constant rates: hours for a run, days for a grid."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from problem import breakout, task
from rollout_sweep import Grid, run_sweeps

GRIDS = {
    "pong": Grid(
        batch_sizes=(4, 16, 64, 256),
        learning_rates=(3e-4, 7e-4, 2e-3),
        seeds=(0, 1),
        most_steps=100_000,
        most_examples=800_000,
        scores=(-19.0, -15.0, 0.0),
        evaluation_ratio=1.3,
    ),
    "breakout": Grid(
        batch_sizes=(4, 16, 64, 256),
        learning_rates=(3e-4, 7e-4, 2e-3),
        seeds=(0, 1),
        most_steps=100_000,
        most_examples=800_000,
        scores=(3.0, 6.0, 12.0),
        evaluation_ratio=1.3,
    ),
}

if __name__ == "__main__":
    run_sweeps(__doc__, Path(__file__).parent, {"pong": task, "breakout": breakout}, GRIDS)
