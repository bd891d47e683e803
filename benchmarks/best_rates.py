"""How far from the best peak rate the law's choice is.

For every batch size and horizon of the sweeps of decaying rates whose best rate lies between others: the rate of the
grid that the law of a probe takes for the best, by the mean log loss over its draws, and what its true final loss costs
over the best one's, in log examples (the difference of log losses over how fast the best loss falls there). Probes are
those of `prediction.py`, which must be done.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from machine import machine, save
from probes import FOLDER as PROBES
from probes import SEEDS
from truth.decayed import decayed_sweep_of, has_decays
from truth.problems import PROBLEMS

from batchopt.evidence import ProbeReport
from batchopt.forecasting.horizons import LEAST_STEPS, schedule_of
from batchopt.forecasting.posterior import LossPosterior
from batchopt.planning.choice import DIVERGED

RESULT = Path(__file__).parent / "results" / "best_rates.json"
FAR = 4.0
"""Horizons beyond this multiple of a probe's longest run are far."""
LEAST_RATES = 4
MOST = 4.0
"""Log examples that a choice costs at most."""


class Cell(NamedTuple):
    """A batch size and horizon of a sweep: its rates, and what each costs over the best in log examples."""

    batch_size: int
    horizon: int
    rates: tuple[float, ...]
    excess: np.ndarray


def cells_of(name: str) -> list[Cell]:
    """Of the sweep of a problem, those whose best rate lies between others."""
    sweep = decayed_sweep_of(name)
    ends: dict[tuple[int, int], dict[float, float]] = {}
    for (size, rate), ladder in sweep.ladders.items():
        for horizon, log_loss in ladder.items():
            if math.isfinite(log_loss):
                ends.setdefault((size, horizon), {})[rate] = log_loss
    best = {key: min(table.values()) for key, table in ends.items()}
    found = []
    for (size, horizon), table in sorted(ends.items()):
        around = [best[size, other] for other in (horizon // 2, horizon, 2 * horizon) if (size, other) in best]
        rates = tuple(sorted(table))
        logs = np.array([table[rate] for rate in rates])
        inside = 0 < int(np.argmin(logs)) < len(rates) - 1
        if len(rates) >= LEAST_RATES and inside and len(around) > 1 and horizon >= 2 * LEAST_STEPS * size:
            fall = (around[0] - around[-1]) / (math.log(2.0) * (len(around) - 1))
            found.append(Cell(size, horizon, rates, (logs - logs.min()) / max(0.02, fall)))
    return found


def costs(name: str, report: ProbeReport) -> dict[str, list[float]]:
    """What the law's choices cost, in log examples: near to the probe's horizon, and far beyond it."""
    told = report.provenance
    law = LossPosterior.fit(
        report.runs,
        initial_loss=report.initial_loss,
        adaptive=told.adaptive,
        delay=told.delay,
        noise_scales=report.noise_scales,
    )
    cells = cells_of(name)
    wanted = [(cell.batch_size, rate, cell.horizon) for cell in cells for rate in cell.rates]
    sizes, rates, horizons = zip(*wanted, strict=True)
    logs = law.losses_at_end(sizes, rates, [schedule_of("wsd", horizon, None) for horizon in horizons], horizons)
    mean = np.minimum(logs, math.log(DIVERGED * law.initial_loss))[1:].mean(axis=0)
    found: dict[str, list[float]] = {"near": [], "far": []}
    for cell, own in zip(cells, np.split(mean, np.cumsum([len(cell.rates) for cell in cells])[:-1]), strict=True):
        cost = min(MOST, float(cell.excess[int(np.argmin(own))]))
        found["far" if cell.horizon > FAR * law.longest else "near"].append(cost)
    return found


def measured(names: list[str], seeds: list[int], probes: Path) -> dict[str, Any]:
    """Means and medians over cells, of all problems and of each."""
    by_problem: dict[str, dict[str, list[float]]] = {}
    for name in names:
        rows = by_problem.setdefault(name, {"near": [], "far": []})
        for path in (probes / f"{name}-1-{seed}.json" for seed in seeds):
            if path.exists():
                for part, values in costs(name, ProbeReport.load(path)).items():
                    rows[part] += values
        if not any(rows.values()):  # nobody probed it
            del by_problem[name]
            continue
        print(f"{name}: " + ", ".join(f"{part} {np.mean(v):.2f}" for part, v in rows.items() if v), flush=True)
    every = {part: [value for rows in by_problem.values() for value in rows[part]] for part in ("near", "far")}
    summary: dict[str, Any] = {
        part: {"mean": float(np.mean(values)), "median": float(np.median(values)), "cells": len(values)}
        for part, values in every.items()
    }
    means = {
        name: {part: float(np.mean(values)) if values else None for part, values in rows.items()}
        for name, rows in by_problem.items()
    }
    return {**summary, "problems": means}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    swept = [name for name in PROBLEMS if has_decays(name)]
    parser.add_argument("--problems", nargs="+", choices=swept, default=swept)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--probes", type=Path, default=PROBES, help="where probes are kept")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    save(args.output, {"machine": machine(), **measured(args.problems, args.seeds, args.probes)})


if __name__ == "__main__":
    main()
