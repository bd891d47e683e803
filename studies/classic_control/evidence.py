"""What a forecast of CartPole under A2C gains from noise scales: see `rollout_evidence.py`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from problem import task
from rollout_evidence import Comparison, run
from sweep import GRIDS

HERE = Path(__file__).parent

if __name__ == "__main__":
    found = Comparison(task, GRIDS["cartpole"].scores, HERE / "sweep-cartpole.jsonl", examples=12_000)
    run({"cartpole": found}, HERE)
