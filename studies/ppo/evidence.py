"""What forecasts of CartPole and Pendulum under PPO gain from noise scales: see `rollout_evidence.py`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from problem import PER_STEP, pendulum, task
from rollout_evidence import Comparison, run
from sweep import GRIDS

HERE = Path(__file__).parent

if __name__ == "__main__":
    games = (("cartpole", task, 24_000), ("pendulum", pendulum, 60_000))
    found = {
        name: Comparison(chosen, GRIDS[name].scores, HERE / f"sweep-{name}.jsonl", examples=examples, per_step=PER_STEP)
        for name, chosen, examples in games
    }
    run(found, HERE)
