"""How the best peak learning rate changes with the horizon on other problems, as evidence for a law.

Notation
    H       horizon of a probe's longest run
    c       curvature: second derivative of y, the log loss at the end of a run, by the log rate, at the best rate,
            over the steepness of y over log examples at H
    a       distance from the best rate at which the loss is looked at, in logs

Short runs tell which rate is best for short runs. Whether the noise of a hot one is soon forgotten, so that hotter
rates are best for longer runs, or stays, they hardly tell. Problems are alike in it, so runs of a longer horizon that
nobody made are compared: those at rates a above and below a rate that ought to be the best end alike, and by c a^2 / 2
higher than that rate's. By `benchmarks/best_rates.py` the best rate by the law then costs 0.15 log examples over the
true best one within 4 H, and 0.43 beyond, means over 30 probes; without this evidence 0.16 and 0.49.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from batchopt.forecasting.schedule_fit import Contrasts
from batchopt.forecasting.schedule_law import Course, Courses
from batchopt.forecasting.schedule_points import NearBest, course_of, edges_of
from batchopt.learning_rate_schedule import WARMUP, LearningRateSchedule

HORIZON_EXPONENT, HORIZON_EXPONENT_SD = -0.2, 0.2
"""Of the horizon in the best peak rate of a batch size, over problems: -0.59, -0.34, -0.31, -0.22, -0.16, -0.13, -0.04
and 0.07 in eight decaying sweeps of `benchmarks/truth`, -0.19 to 0 in language models (Step Law, arXiv 2503.04715).
The deviation is theirs; half as much again chose worse rates. A belief about the exponent of the batch size changed
nothing: probes run two batch sizes."""
CURVATURE, CURVATURE_SD = 1.05, 0.5
"""c, and its standard deviation as a share. In the same sweeps y was 0.2 to 0.5 steepnesses higher an octave from the
best rate, 0.3 to 1.1 two octaves from it, medians of problems, which differ by a third; steepness at a longer horizon
differs from that at H by another third. Curvature is relative to the steepness at H, which runs tell: relative to that
at the longer horizon, which nothing else determines, a fit met the belief by letting losses fall too little there."""
NEAR_SD = 0.4
"""How far the best rate at H is from the best of those that were run, in logs: 0.32 where these are a factor of three
apart, and more by their seeds."""
FURTHER = 8.0
"""Horizons that are compared, over H: where a user's run ends is seldom nearer."""
ASIDE = 1.5 * math.log(2.0)
"""a: beyond what seeds blur, and short of where stability ends."""
BEFORE = 4.0
"""The steepness at H is read from H over this on: where the longest runs are."""
LEAST_STEPS = 32
"""Of the longest run at H, at least: the best rate of fewer is another matter."""

Weights = dict[int, float]
"""Of runs, by their number: what a contrast counts each log loss with."""


def drifts_of(best: Sequence[NearBest], longest: float, *, delay: float = 0.0) -> Contrasts:
    """What is believed of the best rates at longer horizons.

    Args:
        best: the best of the rates that were run, of some batch sizes.
        longest: H, examples.
        delay: steps that momentum lags behind.
    """
    runs = _Runs(delay)
    tilt_sd, bend = 2.0 * CURVATURE * ASIDE, CURVATURE * ASIDE**2
    beliefs: list[tuple[Weights, float]] = []
    for size, rate, is_between in best:
        here = max(longest, LEAST_STEPS * size)
        there, later = here * FURTHER, rate * FURTHER**HORIZON_EXPONENT
        if is_between:
            beliefs.append((runs.tilt(size, rate, here), tilt_sd * NEAR_SD))
        drift = _sum(runs.tilt(size, later, there), runs.tilt(size, rate, here), -1.0)
        beliefs.append((drift, tilt_sd * HORIZON_EXPONENT_SD * math.log(FURTHER)))
        curved = _sum(runs.bend(size, later, there), runs.fall(size, rate, here), -bend)
        beliefs.append((curved, CURVATURE_SD * bend))
    differences = np.zeros((len(beliefs), len(runs.courses)))
    for row, (weights, _) in zip(differences, beliefs, strict=True):
        row[list(weights)] = list(weights.values())
    return Contrasts(Courses(runs.courses), differences, np.array([sd for _, sd in beliefs]))


class _Runs:
    """Runs that warm up, keep their rate and cool down, and differences of their log losses."""

    def __init__(self, delay: float) -> None:
        self.delay, self.courses, self._numbers = delay, list[Course](), dict[tuple[int, float, float], int]()

    def tilt(self, size: int, rate: float, horizon: float) -> Weights:
        """How much higher a run at a hotter rate ends than one at a cooler rate."""
        return {self._end(size, rate, horizon, ASIDE): 1.0, self._end(size, rate, horizon, -ASIDE): -1.0}

    def bend(self, size: int, rate: float, horizon: float) -> Weights:
        """How much higher both of these end than one at the rate itself."""
        hot, cool = self._end(size, rate, horizon, ASIDE), self._end(size, rate, horizon, -ASIDE)
        return {hot: 1.0, cool: 1.0, self._end(size, rate, horizon): -2.0}

    def fall(self, size: int, rate: float, horizon: float) -> Weights:
        """Steepness: how much log loss falls over log examples before a horizon."""
        per = 1.0 / math.log(BEFORE)
        return {self._end(size, rate, horizon / BEFORE): per, self._end(size, rate, horizon): -per}

    def _end(self, size: int, rate: float, horizon: float, aside: float = 0.0) -> int:
        """The number of a run."""
        key = (size, rate * math.exp(aside), horizon)
        if key not in self._numbers:
            self._numbers[key] = len(self.courses)
            schedule = LearningRateSchedule.of("wsd", examples=round(horizon), warmup_examples=round(WARMUP * horizon))
            edges = edges_of(size, schedule, np.array([horizon / size]))
            self.courses.append(course_of(size, key[1], schedule, edges, delay=self.delay))
        return self._numbers[key]


def _sum(first: Weights, second: Weights, share: float) -> Weights:
    return {run: first.get(run, 0.0) + share * second.get(run, 0.0) for run in {**first, **second}}
