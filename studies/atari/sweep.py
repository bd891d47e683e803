"""Critical batch sizes of Atari games under A2C by brute force, at constant rates.

Breakout to low scores takes hours of one core; the long grids, whose runs are 4,000,000 steps each, take days.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from problem import breakout, task
from rollout_sweep import Grid, run_sweeps

LONG = Grid(
    learning_rates=dict.fromkeys((4, 16, 64, 256), (3e-4, 7e-4, 2e-3)),
    seeds=(0, 1),
    most_steps=100_000,
    most_examples=800_000,
    scores=(-19.0, -15.0, 0.0),
    evaluation_ratio=1.3,
)
GRIDS = {
    "breakout": Grid(
        learning_rates={
            4: (3.5e-4, 7e-4),
            16: (7e-4,),
            64: (1.4e-3,),
            256: (2.8e-3, 5.6e-3),
        },
        seeds=(0,),
        most_steps=15_000,
        most_examples=60_000,
        scores=(2.0, 2.5, 3.0),
        evaluation_ratio=1.2,
        first_evaluation=6_000,
    ),
    "breakout-long": replace(LONG, scores=(3.0, 6.0, 12.0)),
    "pong-long": LONG,
}
TASKS = {
    # Scores of 2 and 3 are told apart by many episodes, which are short as long as scores are low.
    "breakout": replace(breakout, data=replace(breakout.data, episodes=32)),
    "breakout-long": breakout,
    "pong-long": task,
}

if __name__ == "__main__":
    run_sweeps(__doc__, Path(__file__).parent, TASKS, GRIDS)
