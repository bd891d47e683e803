"""Critical batch sizes of PPO on CartPole, Pendulum and LunarLander by brute force, at constant rates."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from problem import lander, pendulum, task
from rollout_sweep import Grid, run_sweeps

GRIDS = {
    "cartpole": Grid(
        learning_rates=dict.fromkeys((2, 16, 128), (3e-3, 1e-2, 3e-2)),
        seeds=(0, 1, 2),
        most_steps=300,
        most_examples=6_000,
        scores=(50.0, 100.0, 200.0, 350.0),
    ),
    "pendulum": Grid(
        learning_rates=dict.fromkeys((4, 16, 80, 320, 1_280, 5_120), (6e-2, 2e-2)),
        seeds=(0, 1),
        most_steps=300,
        most_examples=250_000,
        scores=(-1_000.0, -600.0, -300.0, -200.0),
    ),
    "lander": Grid(
        learning_rates=dict.fromkeys((4, 16, 64, 256), (1e-2, 3e-3)),
        seeds=(0, 1),
        most_steps=200,
        most_examples=10_000,
        scores=(-120.0, -60.0, 0.0),
    ),
}

if __name__ == "__main__":
    run_sweeps(__doc__, Path(__file__).parent, {"cartpole": task, "pendulum": pendulum, "lander": lander}, GRIDS)
