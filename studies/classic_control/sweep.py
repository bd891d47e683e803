"""Critical batch sizes of CartPole and Acrobot by brute force, at constant rates."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from problem import acrobot, task
from rollout_sweep import Grid, run_sweeps

GRIDS = {
    "cartpole": Grid(
        learning_rates=dict.fromkeys((4, 16, 64, 256), (3e-3, 1e-2, 3e-2)),
        seeds=(0, 1, 2, 3, 4),
        most_steps=4_000,
        most_examples=30_000,
        scores=(50.0, 100.0, 200.0, 350.0),
    ),
    "acrobot": Grid(
        learning_rates=dict.fromkeys((4, 16, 64, 256), (3e-3, 1e-2)),
        seeds=(0, 1),
        most_steps=2_000,
        most_examples=30_000,
        scores=(-300.0, -200.0, -120.0, -95.0),
    ),
}

if __name__ == "__main__":
    run_sweeps(__doc__, Path(__file__).parent, {"cartpole": task, "acrobot": acrobot}, GRIDS)
