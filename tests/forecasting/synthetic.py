"""Runs drawn from a known law, so that every read-out has a truth."""

from __future__ import annotations

import functools
import math

import numpy as np

from batchopt.evidence import Branch, LossCurve, ProbeReport, Provenance
from batchopt.forecasting.forecast import Forecast
from batchopt.forecasting.law import LawPosterior
from batchopt.noise_scale import MeasuredAt, NoiseScale
from batchopt.step_cost import StepCost
from batchopt.uncertainty import log_normal

INITIAL_LOSS = 2.3
SCALE = 16.0
KNOTS = np.linspace(0.0, 14.0, 21)
V_MID = 5.0


def true_law(
    *,
    b_mid: float = 60.0,
    q: float = 0.5,
    alpha: float = 1.0,
    learning_rate: float = 0.3,
    delay: float = 0.0,
) -> LawPosterior:
    """A law without uncertainty: its loss falls by a growing power of examples."""
    shape = (math.log(b_mid), q, math.log(learning_rate), 0.05, 0.0, 0.0, alpha, 0.0, 0.0)
    row = (*shape, *np.log(np.linspace(0.03, 0.6, 20)))
    return LawPosterior(INITIAL_LOSS, SCALE, delay, tuple(KNOTS), V_MID, row, (row,), (), (1, 1), 0.1)


def simulate(
    law: LawPosterior, batch_size: int, learning_rate: float, examples: int, rng: np.random.Generator
) -> Branch:
    """A run from initialisation with 2 % noise on its losses."""
    points = sorted({round(n / batch_size) * batch_size for n in np.geomspace(5 * batch_size, examples, 14)})
    sizes = [float(batch_size)] * len(points)
    losses = law.losses_at(sizes, [learning_rate] * len(points), [float(n) for n in points])[0]
    losses = losses * np.exp(0.02 * rng.standard_normal(len(points)))
    return Branch(batch_size, learning_rate, LossCurve((0, *points), (INITIAL_LOSS, *map(float, losses))))


def true_b_crit(law: LawPosterior, loss: float) -> float:
    """Critical batch size of a law without uncertainty."""
    steps_min, examples_min = law.hyperbola(loss)
    return float(examples_min[0] / steps_min[0])


def simulated_report(law: LawPosterior, *, seed: int = 0, offset: float = 0.7) -> ProbeReport:
    """A probe of the usual shape whose noise scales are `offset` (log) above the local critical batch size."""
    rng = np.random.default_rng(seed)
    reference = simulate(law, 256, 0.25, 80_000, rng)
    short = [simulate(law, 32, rate, 8_000, rng) for rate in (0.02, 0.06, 0.2, 0.6)]
    short += [simulate(law, 256, rate, 20_000, rng) for rate in (0.06, 0.6)]
    table = law.table(best_guess_only=True)
    readings = []
    for loss in (1.9, 1.4, 1.1, 0.9):
        local = math.exp(float(table.log_b(table.v_of_loss(loss)[:, None])[0, 0]) + offset)
        estimate = log_normal(local * math.exp(0.1 * rng.standard_normal()), 0.1)
        at = MeasuredAt(1_000, loss, 256, 0.25)
        readings.append(NoiseScale("simple", 1.0, local, estimate, 4_000, 1, None, "exact", "width", at))
    return ProbeReport(
        reference=reference,
        branches=tuple(short),
        noise_scales=tuple(readings),
        step_cost=StepCost(1e-3, 1e-5, largest_batch_size=4096),
        spending=(),
        budget_examples=200_000,
        stopped=None,
        provenance=Provenance({}, "cpu", seed, 50_000, 1_000),
    )


@functools.cache
def fitted() -> Forecast:
    """The forecast of the usual probe of the usual law, which takes seconds to fit."""
    return Forecast.fit(simulated_report(true_law()))
