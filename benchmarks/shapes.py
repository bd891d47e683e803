"""Which decay of the learning rate takes the fewest examples: cosine and linear ones beside wsd, in the sweeps.

For every batch size and horizon that ran with all three shapes, the loss at the end of each at its best rate. A
difference in log loss becomes one in examples by how steeply the loss of wsd falls from half the horizon to the whole.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine, save
from truth.curves import FOLDER, unpack
from truth.decaying import SHAPED, SHAPES

RESULT = Path(__file__).parent / "results" / "shapes.json"
ENDED = 0.98
"""A run that was evaluated after this share of its horizon has its end."""

Ends = dict[tuple[str, int, int], dict[float, float]]


def ends_of(name: str) -> Ends:
    """Mean log loss over seeds at the end of runs: by shape, batch size and horizon, then by peak rate."""
    seen: dict[tuple[str, int, int], dict[float, list[float]]] = {}
    for run in unpack(FOLDER / f"{name}-decaying.npz"):
        ended = run.horizon and run.outcome != "diverged" and run.examples[-1] >= ENDED * run.horizon
        if ended and not run.rescaled:
            of_rate = seen.setdefault((run.shape, run.batch_size, run.horizon), {})
            of_rate.setdefault(run.learning_rate, []).append(math.log(run.losses[-1]))
    return {key: {rate: float(np.mean(logs)) for rate, logs in rates.items()} for key, rates in seen.items()}


def beside_wsd(ends: Ends, shape: str) -> list[tuple[float, float]]:
    """Logs of the ratio of examples to a loss and of the ratio of best rates, of a shape over wsd, for each pair."""
    found = []
    for (own, size, horizon), rates in ends.items():
        half, whole = ends.get(("wsd", size, horizon // 2)), ends.get(("wsd", size, horizon))
        if own != shape or half is None or whole is None:
            continue
        steepness = (min(half.values()) - min(whole.values())) / math.log(2.0)
        best, other = min(whole, key=whole.__getitem__), min(rates, key=rates.__getitem__)
        if steepness > 0.0:
            found.append(((rates[other] - whole[best]) / steepness, math.log(other / best)))
    return found


def measured() -> dict[str, Any]:
    """By problem and shape: pairs, ratios of examples (quartiles) and of best rates (geometric mean)."""
    table: dict[str, Any] = {}
    for name in SHAPED:
        ends = ends_of(name)
        for shape in SHAPES:
            pairs = np.array(beside_wsd(ends, shape))
            quartiles = np.exp(np.quantile(pairs[:, 0], (0.25, 0.5, 0.75)))
            table.setdefault(name, {})[shape] = {
                "pairs": len(pairs),
                "examples_over_wsd": quartiles.round(3).tolist(),
                "rate_over_wsd": round(float(np.exp(pairs[:, 1].mean())), 3),
            }
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    table = measured()
    for name, shapes in table.items():
        for shape, row in shapes.items():
            low, middle, high = row["examples_over_wsd"]
            print(
                f"{name:16} {shape:7} {row['pairs']:3} pairs: examples over wsd {middle:.2f} ({low:.2f} to "
                f"{high:.2f}), "
                f"best rate over wsd's {row['rate_over_wsd']:.2f}"
            )
    save(args.output, {"machine": machine(), "problems": table})


if __name__ == "__main__":
    main()
