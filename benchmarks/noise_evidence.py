"""Whether the noise scale that a law needs is the one that gradients show (`truth/`, and probes of `probes.py`).

The law is fitted to the losses of a whole sweep, at constant and decaying rates, without a noise scale. What it then
says of b, the batch size at which noise and signal of the gradient are equal, is compared with the simple noise scales
that probes measured, at the same point of the same run: the mean and the deviation of the log of reading over b. This
is the claim of McCandlish et al. 2018, and the source of `READING_SD` in `forecasting/schedule_fit.py`. Where a law
needs no noise that slows it, which its saturation far above all rates shows, b is not determined; such problems are
counted apart. Likewise kappa, the power of the loss with which the noise of the law rises, is compared with the slope
of log tr(Sigma) of the same readings over the log of the loss.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from law import ADAPTIVE, MOMENTUM_DELAY, Sample
from machine import machine, save
from probes import FOLDER as PROBES
from probes import SEEDS, probe_problem
from truth.curves import FOLDER, unpack
from truth.problems import PROBLEMS

from batchopt.evidence import ProbeReport
from batchopt.forecasting.schedule_fit import ScheduleLaw, fit_schedule_law
from batchopt.forecasting.schedule_law import SHAPE, frame_of
from batchopt.forecasting.schedule_points import readings_of
from batchopt.forecasting.schedule_slopes import log_noise_scale_slopes

RESULT = Path(__file__).parent / "results" / "noise_evidence.json"
NEAR = 0.5
"""Log loss above the best of a batch size and horizon, up to which the end of a decay is fitted."""
LEAST_STEPS = 16
LEAST_READINGS = 3
SLOWED = math.e
"""A law is slowed by noise whose saturation is below this multiple of the middle rate that was fitted."""


def law_of_sweep(name: str) -> ScheduleLaw:
    """The law of all losses of a sweep."""
    sample = Sample(name)
    for run in unpack(FOLDER / f"{name}.npz"):
        if run.outcome != "diverged" and len(run.examples) > 4 and run.seed == 0:
            sample.add(run)
    every = [
        run for run in unpack(FOLDER / f"{name}-decaying.npz")
        if run.shape == "wsd" and not run.rescaled and run.examples and run.outcome != "diverged" and run.horizon
    ]  # fmt: skip
    best: dict[tuple[int, int], float] = defaultdict(lambda: math.inf)
    for run in every:
        cell = run.batch_size, run.horizon
        best[cell] = min(best[cell], math.log(run.losses[-1]))
    for run in every:
        is_near = math.log(run.losses[-1]) < best[run.batch_size, run.horizon] + NEAR
        if is_near and run.horizon >= LEAST_STEPS * run.batch_size:
            sample.add(run, ends=True)
    points = sample.points
    frame = frame_of(
        points.courses,
        initial_loss=sample.initial,
        lowest_loss=float(np.exp(points.log_losses.min())),
        is_adaptive=name in ADAPTIVE,
    )
    return fit_schedule_law(points, frame, draws=1)


def compared(law: ScheduleLaw, reports: list[ProbeReport], delay: float) -> dict[str, float] | None:
    """Readings over the law's b; None where too few were resolved."""
    off, at = [], []
    for report in reports:
        readings = readings_of(report.noise_scales, report.runs, delay=delay)
        if readings is not None:
            log_scales = log_noise_scale_slopes(law.rows[:1], law.frame, readings.courses)[0][0]
            off += (readings.log_scales - log_scales).tolist()
            at += log_scales.tolist()
    if len(off) < LEAST_READINGS:
        return None
    return {
        "readings": len(off),
        "noise_scale_by_losses": math.exp(float(np.mean(at))),
        "log_ratio": float(np.mean(off)),
        "log_ratio_sd": float(np.std(off)),
    }


def slope_of_noise(reports: list[ProbeReport]) -> dict[str, float] | None:
    """Slope of log tr(Sigma) over the log of the loss, of all simple readings, and its standard error."""
    read = [
        (math.log(scale.at.loss), math.log(scale.noise))
        for report in reports
        for scale in report.noise_scales
        if scale.kind == "simple" and scale.at is not None and scale.noise > 0
    ]
    if len(read) < LEAST_READINGS:
        return None
    logs, noises = np.array(read).T
    spread = float(np.sum((logs - logs.mean()) ** 2))
    slope = float(np.sum((logs - logs.mean()) * noises)) / spread
    left = noises - noises.mean() - slope * (logs - logs.mean())
    return {"slope": slope, "error": math.sqrt(float(left @ left) / (len(read) - 2) / spread)}


def row_of(name: str, folder: Path) -> dict[str, Any]:
    """All that is measured of one problem."""
    torch.set_num_threads(1)
    probed = [probe_problem(name, 1.0, seed, folder) for seed in SEEDS if (folder / f"{name}-1-{seed}.json").exists()]
    reports = [each.report for each in probed if each.report is not None]
    law, delay = law_of_sweep(name), MOMENTUM_DELAY.get(name, 0.0)
    middle = float(np.exp(np.mean(np.log(law.points.courses.peaks))))
    saturation = float(np.exp(law.rows[0, SHAPE.index("log_saturation")])) / middle
    return {
        "problem": name,
        "saturation_over_middle_rate": saturation,
        "noise_scale": compared(law, reports, delay),
        "kappa": float(law.rows[0, SHAPE.index("kappa")]),
        "slope_of_noise": slope_of_noise(reports),
    }


def summary_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Over problems: all, and those that noise slows."""
    slowed = [row for row in rows if row["saturation_over_middle_rate"] < SLOWED]
    return {"all": _mean_of(rows), "slowed": _mean_of(slowed)}


def _mean_of(rows: list[dict[str, Any]]) -> dict[str, float] | None:
    logs = [row["noise_scale"]["log_ratio"] for row in rows if row["noise_scale"] is not None]
    if len(logs) < 2:
        return None
    return {
        "problems": len(logs),
        "mean": float(np.mean(logs)),
        "sd": float(np.std(logs, ddof=1)),
        "factor": math.exp(float(np.mean(np.abs(logs)))),
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    swept = [name for name in PROBLEMS if (FOLDER / f"{name}-decaying.npz").exists()]
    parser.add_argument("problems", nargs="*", default=swept, help="all with decays if none is named")
    parser.add_argument("--probes", type=Path, default=PROBES, help="where probes are kept, by prediction.py")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    rows = Parallel(n_jobs=args.workers)(delayed(row_of)(name, args.probes) for name in args.problems)
    found = {"machine": machine(), "summary": summary_of(rows), "rows": rows}
    save(args.output, found)
    for row in rows:
        if (own := row["noise_scale"]) is not None:
            ratio = f"{own['log_ratio']:+.2f} +- {own['log_ratio_sd']:.2f}"
            print(
                f"{row['problem']:16s} b by losses {own['noise_scale_by_losses']:>7.1f}, log of reading over b {ratio}"
            )
        if (slope := row["slope_of_noise"]) is not None:
            print(f"{'':16s} kappa {row['kappa']:+.2f}, slope of noise {slope['slope']:+.2f} +- {slope['error']:.2f}")
    for group, own in found["summary"].items():
        if own is not None:
            print(f"{group:8s} {own['mean']:+.2f} +- {own['sd']:.2f} over {own['problems']}: {own['factor']:.2f}")


if __name__ == "__main__":
    main()
