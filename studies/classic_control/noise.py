"""Noise scales of CartPole and Acrobot under A2C along one run, in steps, plain and in Adam's metric."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from problem import STEPS, acrobot, task
from rollout_noise import noise_along

UPDATES = (0, 10, 20, 40, 80, 160)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "noise.json")
    args = parser.parse_args()
    readings = [
        reading
        for name, chosen in (("cartpole", task), ("acrobot", acrobot))
        for reading in noise_along(
            name, chosen, batch_size=16, rate=3e-3, updates=UPDATES, unit=STEPS, examples=1_500
        )
    ]  # fmt: skip
    args.output.write_text(json.dumps(readings, indent=1) + "\n")
