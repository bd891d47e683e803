"""How well laws describe and predict loss curves: the schedule law beside the present one, on the sweeps of `truth/`.

Constant rates: half of a sweep's runs, drawn once, are fitted, and all losses of the other half predicted. Decays: the
constant runs, the stable parts and a few cooldowns are fitted, and the final losses of all other cooldowns predicted,
for settings within `NEAR` of the best one of their batch size and horizon; and of the rates that were run, the one that
the law would choose is compared with the best one. Beside it two laws of others on the same runs, where they say
something: the Multi-Power Law at batch sizes and rates of which a cooldown was fitted, and the three-term law of the
best decayed loss of each batch size and horizon. Also the processor's time of a fit and of 1,000 predictions, 64 draws
each.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from machine import machine, save
from rivals.decays import multi_power_errors, three_term_errors
from truth.curves import FOLDER, Run, unpack
from truth.decaying import COOLDOWN, SHAPED, SHAPES, WARMUP_OF_SHAPES, multiplier, warmup_of
from truth.problems import PROBLEMS

from batchopt.evidence import Branch, LossCurve
from batchopt.forecasting.law_fit import fit_law
from batchopt.forecasting.schedule_fit import Points, ScheduleLaw, fit_schedule_law
from batchopt.forecasting.schedule_law import Courses, course, frame_of, losses

RESULT = Path(__file__).parent / "results" / "law.json"
ADAPTIVE = ("mnist_cnn_adam", "imagenette_cnn", "autoencoder", "vae", "lstm", "transformer")
MOMENTUM_DELAY = {"cifar_cnn": 9.0}
POINTS = 10
"""Of each run, evenly over the logarithm of examples."""
NEAR = 0.3
"""Log loss above the best setting of a batch size and horizon, up to which a prediction matters."""
LEAST_STEPS = 48
"""Of a horizon whose loss is predicted."""
SHOCK = 0.05
"""Losses are left out until the last that is so far above the initial one, in logarithms."""
BEYOND = 0.35
"""A cooldown that ends so far above that of a lower rate, in log loss, is of a run that broke; it is left out."""
DECAY_PIECES, SHAPE_PIECES = 6, 24
"""Of a cooldown, and of a whole run whose rate changes all the time."""


class Sample:
    """Runs with the points of each that are used."""

    def __init__(self, name: str) -> None:
        self.name, self.runs, self.edges, self.chosen = name, [], [], []
        self._courses: list[Any] = []
        self._problem, self._constant = PROBLEMS[name], unpack(FOLDER / f"{name}.npz")
        self.initial = float(np.median([run.losses[0] for run in self._constant]))

    def add(self, run: Run, *, ends: bool = False) -> None:
        """A run at some of its evaluations, or at its last one."""
        steps, logs = np.array(run.examples) / run.batch_size, np.log(run.losses)
        above = np.flatnonzero(logs > math.log(self.initial) + SHOCK)
        usable = np.arange(above[-1] + 1 if len(above) else 0, len(steps))
        usable = usable[(steps[usable] > 0)]
        if not len(usable):
            return
        picks = np.searchsorted(np.log(steps[usable]), np.linspace(*np.log(steps[usable[[0, -1]]]), POINTS) - 1e-9)
        picks = usable[[-1]] if ends else np.unique(usable[np.minimum(picks, len(usable) - 1)])
        edges = self._edges(run, steps[picks])
        self.runs.append(run)
        self.chosen.append((np.searchsorted(edges, steps[picks]) - 1, logs[picks]))
        rate = None
        if run.shape != "constant":
            is_wsd = run.shape == "wsd"
            warmup = self.warmup_steps(run.batch_size) if is_wsd else WARMUP_OF_SHAPES * run.horizon / run.batch_size
            rate = np.vectorize(
                lambda n: multiplier(run.shape, n * run.batch_size, run.horizon, warmup * run.batch_size)
            )
        self._courses.append(
            course(run.batch_size, run.learning_rate, edges, rate, delay=MOMENTUM_DELAY.get(self.name, 0.0))
        )

    def _edges(self, run: Run, points: np.ndarray) -> np.ndarray:
        last = points[-1]
        grids = [[0.0], points, np.geomspace(min(1.0, last), last, 14)]
        if run.shape == "wsd":
            grids.append(np.linspace(0.0, min(self.warmup_steps(run.batch_size), last), 4))
        if run.shape in SHAPES:
            grids.append(np.linspace(0.0, last, SHAPE_PIECES + 1))
        elif run.horizon:
            grids.append(np.linspace((1.0 - COOLDOWN) * last, last, DECAY_PIECES + 1))
        edges = np.unique(np.concatenate(grids))
        # A grid point next to one that is needed only makes a piece of no length.
        keep = np.concatenate([[True], np.diff(edges) > 1e-3 * edges[1:]]) | np.isin(edges, points)
        return edges[keep]

    def warmup_steps(self, batch_size: int) -> float:
        """Of stable runs at this batch size."""
        return warmup_of(self._problem, batch_size, self._constant) / batch_size

    @property
    def points(self) -> Points:
        """All of them."""
        run = np.repeat(np.arange(len(self.runs)), [len(pieces) for pieces, _ in self.chosen])
        pieces, logs = (np.concatenate([each[k] for each in self.chosen]) for k in (0, 1))
        return Points(Courses(self._courses), run, pieces, logs, np.zeros(len(run)))


def fitted(sample: Sample) -> tuple[ScheduleLaw, float]:
    """The schedule law of a sample, and the seconds of its fit."""
    points = sample.points
    frame = frame_of(
        points.courses,
        initial_loss=sample.initial,
        lowest_loss=float(np.exp(points.log_losses.min())),
        is_adaptive=sample.name in ADAPTIVE,
    )
    begin = time.process_time()
    law = fit_schedule_law(points, frame)
    return law, time.process_time() - begin


def constant_rates(name: str) -> dict[str, Any]:
    """Errors over the half of a sweep that was not fitted."""
    runs = [run for run in unpack(FOLDER / f"{name}.npz") if run.outcome != "diverged" and len(run.examples) > 4]
    order = np.random.default_rng(0).permutation(len(runs))
    told, held = ([runs[i] for i in part] for part in np.split(order, [len(runs) // 2]))
    sample, other = Sample(name), Sample(name)
    for run in told:
        sample.add(run)
    for run in held:
        other.add(run)
    law, seconds = fitted(sample)
    wanted = other.points
    errors = law.log_losses(wanted)[0] - wanted.log_losses
    bare = wanted.of(losses(law.rows[:1], law.frame, wanted.courses))[0] - wanted.log_losses
    last = np.cumsum(np.bincount(wanted.run)) - 1
    begin = time.process_time()
    present = _present_law(name, told, held, sample.initial, other)
    return {
        "fitted_runs": len(sample.runs),
        "schedule_law": _medians(errors, last) | {"seconds": seconds},
        "schedule_law_alone": _medians(bare, last),
        "present_law": _medians(present, last) | {"seconds": time.process_time() - begin},
    }


def _medians(errors: np.ndarray, last: np.ndarray) -> dict[str, float]:
    absolute = np.abs(errors)
    return {"all_points": float(np.median(absolute)), "last_point": float(np.median(absolute[last]))}


def _present_law(name: str, told: Sequence[Run], held: Sequence[Run], initial: float, other: Sample) -> np.ndarray:
    branches = [
        Branch(run.batch_size, run.learning_rate, LossCurve(run.examples, run.losses), seed=run.seed) for run in told
    ]
    law = fit_law(branches, initial_loss=initial, adaptive=name in ADAPTIVE, delay=MOMENTUM_DELAY.get(name, 0.0))
    points = other.points
    sizes = np.array([float(run.batch_size) for run in other.runs])[points.run]
    rates = np.array([run.learning_rate for run in other.runs])[points.run]
    examples = np.cumsum(points.courses.steps * points.courses.batch_sizes, axis=1)[points.run, points.piece]
    found = np.log(law.losses_at(sizes, rates, examples)[0]) - points.log_losses
    return np.nan_to_num(found, posinf=10.0)


def decays(name: str) -> dict[str, Any] | None:
    """Errors of final losses that were held back, and what choosing the rate by the law costs; None without a sweep."""
    path = FOLDER / f"{name}-decaying.npz"
    if not path.exists():
        return None
    every = [run for run in unpack(path) if run.shape == "wsd" and not run.rescaled and run.examples]
    every = [run for run in every if run.outcome != "diverged"]
    ends = {run.key: math.log(run.losses[-1]) for run in every if run.horizon}
    broken = {run.key for run in every if run.horizon and _broke(run, every)}
    bad = {key[:3] for key in broken}
    shown = _few_cooldowns([run for run in every if run.horizon and run.key[:3] not in bad], ends)
    sample = Sample(name)
    for run in unpack(FOLDER / f"{name}.npz"):
        if run.outcome != "diverged" and len(run.examples) > 4:
            sample.add(run)
    for run in every:
        if (not run.horizon and run.key[:3] not in bad) or run.key in shown:
            sample.add(run)
    law, seconds = fitted(sample)
    held = [
        run for run in every
        if run.horizon >= LEAST_STEPS * run.batch_size and run.horizon and run.key not in shown | broken
    ]  # fmt: skip
    other = Sample(name)
    for run in held:
        other.add(run, ends=True)
    wanted = other.points
    found = law.log_losses(wanted)[0]
    cells: dict[tuple[int, int], dict[float, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for run, value in zip(other.runs, found, strict=True):
        cells[run.batch_size, run.horizon][run.learning_rate].append((ends[run.key], float(value)))
    errors, regrets = _errors_and_regrets(cells)
    bare = wanted.of(losses(law.rows[:1], law.frame, wanted.courses))[0] - wanted.log_losses
    own = {run.key: float(value) - ends[run.key] for run, value in zip(other.runs, found, strict=True)}
    near = {
        run.key for run in other.runs
        if ends[run.key] < min(end for pairs in cells[run.batch_size, run.horizon].values() for end, _ in pairs) + NEAR
    }  # fmt: skip
    return {
        "fitted_runs": len(sample.runs),
        "cooldowns_fitted": len(shown),
        "cooldowns_predicted": len(held),
        "median_error": float(np.median(np.abs(errors))),
        "bias": float(np.median(errors)),
        "median_error_alone": float(np.median(np.abs(bare))),
        "error_90th_percentile": float(np.quantile(np.abs(errors), 0.9)),
        "rate_regret_median": float(np.median(regrets)),
        "rate_regret_90th_percentile": float(np.quantile(regrets, 0.9)),
        "rate_within_2_percent": float(np.mean(np.array(regrets) < 0.02)),
        "seconds": seconds,
        "seconds_of_1000_predictions": _seconds_of_predictions(law, name, held),
        "other_shapes": {shape: _other_shape(law, name, shape) for shape in SHAPES} if name in SHAPED else None,
        "multi_power_law": _beside_multi_power(sample, [run for run in held if run.key in near], ends, own),
        "three_term_law": _beside_three_term(sample, cells, ends),
    }


def _other_shape(law: ScheduleLaw, name: str, shape: str) -> dict[str, float]:
    """Errors of the final losses of cosine or linear runs, of which none was fitted."""
    sample, ends = Sample(name), []
    cells: dict[tuple[int, int], dict[float, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for run in unpack(FOLDER / f"{name}-decaying.npz"):
        if run.shape == shape and run.outcome != "diverged" and run.horizon >= LEAST_STEPS * run.batch_size:
            before = len(sample.runs)
            sample.add(run, ends=True)
            ends += [math.log(run.losses[-1])] * (len(sample.runs) - before)
    for run, end, value in zip(sample.runs, ends, law.log_losses(sample.points)[0], strict=True):
        cells[run.batch_size, run.horizon][run.learning_rate].append((end, float(value)))
    errors, regrets = _errors_and_regrets(cells)
    return {
        "predicted": len(errors),
        "median_error": float(np.median(np.abs(errors))),
        "bias": float(np.median(errors)),
        "rate_regret_median": float(np.median(regrets)),
    }


def _seconds_of_predictions(law: ScheduleLaw, name: str, runs: Sequence[Run]) -> float:
    """Of the final losses of 1,000 settings by 64 draws."""
    many = Sample(name)
    for i in range(1_000):
        many.add(runs[i % len(runs)], ends=True)
    thousand = many.points
    drawn = replace(
        law,
        rows=np.resize(law.rows, (65, law.rows.shape[1])),
        weights=np.resize(law.weights, (65, law.weights.shape[1])),
    )
    begin = time.process_time()
    drawn.log_losses(thousand)
    return time.process_time() - begin


def _beside_multi_power(
    sample: Sample, held: Sequence[Run], ends: dict[Any, float], own: dict[Any, float]
) -> dict[str, Any] | None:
    """Where a cooldown of the same batch size and rate was fitted: its error, and that of our law for the same runs."""
    points = sample.points
    steps = np.cumsum(points.courses.steps, axis=1)[points.run, points.piece]
    fitted = [(sample.runs[i], n, y) for i, n, y in zip(points.run, steps, points.log_losses, strict=True)]
    errors = multi_power_errors(fitted, [(run, ends[run.key]) for run in held], sample.warmup_steps)
    return _both(list(errors.values()), [own[key] for key in errors])


def _beside_three_term(sample: Sample, cells: dict[Any, Any], ends: dict[Any, float]) -> dict[str, Any] | None:
    """The best loss of each batch size and horizon of which none was fitted: its error, and ours."""
    fitted: dict[tuple[int, int], float] = {}
    for run in sample.runs:
        if run.horizon:
            cell = run.batch_size, run.horizon
            fitted[cell] = min(fitted.get(cell, math.inf), ends[run.key])
    best = {
        cell: tuple(min(float(np.mean([pair[k] for pair in pairs])) for pairs in rates.values()) for k in (0, 1))
        for cell, rates in cells.items()
        if cell not in fitted
    }
    errors = three_term_errors(fitted, {cell: true for cell, (true, _) in best.items()})
    return _both(list(errors.values()), [best[cell][1] - best[cell][0] for cell in errors])


def _both(rival: Sequence[float], own: Sequence[float]) -> dict[str, Any] | None:
    if not rival:
        return None
    return {
        "predicted": len(rival),
        "median_error": float(np.median(np.abs(rival))),
        "error_90th_percentile": float(np.quantile(np.abs(rival), 0.9)),
        "schedule_law": float(np.median(np.abs(own))),
        "schedule_law_90th_percentile": float(np.quantile(np.abs(own), 0.9)),
    }


def same_end(run: Run, other: Run) -> bool:
    """Whether two runs have one batch size and horizon."""
    return (run.batch_size, run.horizon) == (other.batch_size, other.horizon)


def _broke(run: Run, every: Sequence[Run]) -> bool:
    lower = [
        math.log(other.losses[-1]) for other in every
        if same_end(other, run) and other.learning_rate < run.learning_rate
    ]  # fmt: skip
    return bool(lower) and math.log(run.losses[-1]) > min(lower) + BEYOND


def _few_cooldowns(runs: Sequence[Run], ends: dict[Any, float]) -> set[Any]:
    """Two neighbouring horizons of the best rate and of one a step below, at three batch sizes."""
    sizes = sorted({run.batch_size for run in runs})
    shown = set()
    for size in (sizes[1], sizes[len(sizes) // 2], sizes[-2]):
        own = [run for run in runs if run.batch_size == size and run.seed == 0]
        horizons = sorted({run.horizon for run in own})
        middle = len(horizons) // 2
        rates = {run.learning_rate: ends[run.key] for run in own if run.horizon == horizons[middle]}
        best = min(rates, key=lambda rate: rates[rate])
        below = max((rate for rate in rates if rate < best), default=best)
        shown |= {
            run.key for run in own
            if run.learning_rate in (best, below) and run.horizon in horizons[max(0, middle - 1) : middle + 1]
        }  # fmt: skip
    return shown


def _errors_and_regrets(cells: dict[Any, dict[float, list[tuple[float, float]]]]) -> tuple[list[float], list[float]]:
    errors, regrets = [], []
    for rates in cells.values():
        true = {rate: float(np.mean([end for end, _ in pairs])) for rate, pairs in rates.items()}
        told = {rate: float(np.mean([value for _, value in pairs])) for rate, pairs in rates.items()}
        best = min(true.values())
        errors += [told[rate] - true[rate] for rate in true if true[rate] < best + NEAR]
        if len(true) > 2:
            regrets.append(true[min(told, key=lambda rate: told[rate])] - best)
    return errors, regrets


def row_of(name: str) -> dict[str, Any]:
    """All that is measured of one problem."""
    torch.set_num_threads(1)
    return {"problem": name, "constant": constant_rates(name), "decays": decays(name)}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("problems", nargs="*", default=list(PROBLEMS), help="all that are swept if none is named")
    parser.add_argument("--workers", type=int, default=1, help="processes; times are of one that has a core to itself")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    rows = []
    for row in Parallel(n_jobs=args.workers, return_as="generator")(delayed(row_of)(name) for name in args.problems):
        rows.append(row)
        print(_line(row), flush=True)
    save(args.output, {"machine": machine(), "rows": rows})


def _line(row: dict[str, Any]) -> str:
    parts = [f"{row['problem']:16}"]
    for law in ("schedule_law", "schedule_law_alone", "present_law"):
        found = row["constant"][law]
        parts.append(f"{law.replace('_', ' ')} {found['all_points']:.3f} / {found['last_point']:.3f}")
    if row["decays"]:
        found = row["decays"]
        parts.append(f"decays {found['median_error']:.3f} (90 %: {found['error_90th_percentile']:.3f})")
        parts.append(f"without what is missed {found['median_error_alone']:.3f}")
        for rival in ("multi_power_law", "three_term_law"):
            if own := found[rival]:
                parts.append(f"{rival.replace('_', ' ')} {own['median_error']:.3f} (ours {own['schedule_law']:.3f})")
        parts.append(f"rate {found['rate_regret_median']:.3f} (90 %: {found['rate_regret_90th_percentile']:.3f})")
        parts.append(f"fit {found['seconds']:.1f} s, 1,000 in {found['seconds_of_1000_predictions']:.2f} s")
    return "  ".join(parts)


if __name__ == "__main__":
    main()
