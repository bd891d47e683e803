"""How the best peak rate of the sweeps moves with batch size and length: the powers of `forecasting/carried_rates.py`.

For every batch size and horizon of a sweep of decaying rates (`truth/`) whose best rate lies between others, the best
rate is the minimum of a parabola through three of them, over the log of the rate. Its log is fitted by a plane over the
logs of batch size and steps, up to the critical batch size of the last loss and beyond it.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
from law import ADAPTIVE
from machine import machine, save
from prediction import decayed_tradeoffs_of, is_counted
from truth.decayed import DecayedSweep, decayed_sweep_of, has_decays
from truth.problems import PROBLEMS

RESULT = Path(__file__).parent / "results" / "rate_slopes.json"
LEAST_CELLS = 5


def best_rates_of(sweep: DecayedSweep) -> list[tuple[int, int, float]]:
    """(batch size, horizon, best peak rate) of all cells whose best rate lies between others."""
    ends: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for (size, rate), ladder in sorted(sweep.ladders.items()):
        for horizon, log_loss in ladder.items():
            if math.isfinite(log_loss):
                ends.setdefault((size, horizon), []).append((math.log(rate), log_loss))
    found = []
    for (size, horizon), points in sorted(ends.items()):
        at = int(np.argmin([loss for _, loss in points]))
        if 0 < at < len(points) - 1:
            logs, losses = np.array(points[at - 1 : at + 2]).T
            bend, slope, _ = np.polyfit(logs - logs[1], losses, 2)
            found.append((size, horizon, math.exp(logs[1] - slope / (2.0 * bend))))
    return found


def slopes(cells: list[tuple[int, int, float]]) -> dict[str, Any] | None:
    """Powers of batch size and steps, and the standard deviation of what is left; None where cells are few."""
    if len(cells) < LEAST_CELLS:
        return None
    sizes, horizons, rates = np.array(cells).T
    plane = np.stack([np.ones(len(cells)), np.log(sizes), np.log(horizons / sizes)], axis=1)
    found = np.linalg.lstsq(plane, np.log(rates), rcond=None)[0]
    left = float(np.std(np.log(rates) - plane @ found))
    return {"batch_size": float(found[1]), "steps": float(found[2]), "left": left, "cells": len(cells)}


def measured(names: list[str]) -> dict[str, Any]:
    """Of each problem, and the means over those of one kind of optimizer."""
    rows = {}
    for name in names:
        sweep = decayed_sweep_of(name)
        last = [truth for truth in decayed_tradeoffs_of(name) if is_counted(name, truth)][-1]
        critical, cells = last.fit.law.critical_batch_size, best_rates_of(sweep)
        rows[name] = {
            "adaptive": name in ADAPTIVE,
            "critical_batch_size": critical,
            "up to it": slopes([cell for cell in cells if cell[0] <= critical]),
            "beyond": slopes([cell for cell in cells if cell[0] > critical]),
        }
    means = {}
    for kind, adaptive in (("SGD", False), ("adaptive", True)):
        for part in ("up to it", "beyond"):
            own = [row[part] for row in rows.values() if row["adaptive"] == adaptive and row[part]]
            if own:
                means[f"{kind}, {part}"] = {
                    key: [float(np.mean([each[key] for each in own])), float(np.std([each[key] for each in own]))]
                    for key in ("batch_size", "steps")
                }
    return {"means and deviations": means, "problems": rows}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    swept = [name for name in PROBLEMS if has_decays(name)]
    parser.add_argument("--problems", nargs="+", choices=swept, default=swept)
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    found = measured(args.problems)
    save(args.output, {"machine": machine(), **found})
    for name, row in found["problems"].items():
        print(name, *(f"{part}: {_shown(row[part])}" for part in ("up to it", "beyond")), sep="  ")
    for name, row in found["means and deviations"].items():
        print(name, *(f"{key} {mean:.2f} +- {sd:.2f}" for key, (mean, sd) in row.items()), sep="  ")


def _shown(row: dict[str, Any] | None) -> str:
    return "-" if row is None else f"B^{row['batch_size']:.2f} steps^{row['steps']:.2f} (left {row['left']:.2f})"


if __name__ == "__main__":
    main()
