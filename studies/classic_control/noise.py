"""Noise scales of CartPole and Acrobot along one run, plain and in Adam's metric.

Policy and value are trained by one loss. The value's errors are as large as the rewards of an episode, so the plain
noise scale is the value's; Adam divides every coordinate by the size of its own gradient, and so does its metric.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from problem import STEPS, acrobot, task

from batchopt.probing.measure import measure_run
from batchopt.probing.run import TrainingRun

BATCH_SIZE, RATE = 16, 3e-3
UPDATES = (0, 10, 20, 40, 80, 160)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "noise.json")
    args = parser.parse_args()
    readings = []
    for game, chosen in (("cartpole", task), ("acrobot", acrobot)):
        run = TrainingRun(chosen, learning_rate=RATE, seed=0)
        for updates in UPDATES:
            while run.steps < updates:
                run.step(BATCH_SIZE)
            told = {"game": game, "updates": updates, "score": chosen.data.score_of(run.evaluate())}
            for kind in ("simple", "preconditioned"):
                if kind == "preconditioned" and not updates:
                    continue  # Adam has no metric yet
                found = measure_run(run, kind=kind, relative_width=0.5, max_examples=1_500).batch_size
                told[kind] = [STEPS * each for each in (found.value, found.low, found.high)]
            readings.append(told)
            print(json.dumps(told), flush=True)
    args.output.write_text(json.dumps(readings, indent=1) + "\n")
