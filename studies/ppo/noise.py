"""Noise scales under PPO along one run, plain and in Adam's metric: in episodes, of Pendulum in steps."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from problem import LONGEST, lander, pendulum, task
from rollout_noise import noise_along

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "noise.json")
    args = parser.parse_args()
    readings = noise_along("cartpole", task, batch_size=16, rate=1e-2, updates=(0, 2, 5, 10, 20), unit=1, examples=400)
    readings += noise_along(
        "pendulum", pendulum, batch_size=80, rate=6e-2, updates=(0, 5, 10, 20, 30, 45), unit=LONGEST, examples=1_000
    )
    readings += noise_along(
        "lander", lander, batch_size=16, rate=1e-2, updates=(0, 5, 10, 15, 20, 25), unit=1, examples=400
    )
    args.output.write_text(json.dumps(readings, indent=1) + "\n")
