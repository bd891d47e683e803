"""The schedule law fitted to decaying trials: derivatives, recovery, and a run in the middle of its schedule."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from forecasting.known_law import INITIAL_LOSS, known_law, losses_at

from batchopt.errors import EvidenceError
from batchopt.evidence import Branch, LossCurve
from batchopt.forecasting.decayed_fit import _first_belief, _Misfit, _points_of, fit_decayed
from batchopt.forecasting.decayed_law import DecayedLaw, Ends
from batchopt.forecasting.horizons import schedule_of
from batchopt.forecasting.paced_fit import PacedLaw, pace_covariance
from batchopt.forecasting.schedule_law import frame_of

LAW = known_law()
HORIZON = 32_000
SCHEDULE = schedule_of("wsd", HORIZON, None)
ENDS = Ends("wsd", None, (2_000.0, 256_000.0))
SETTINGS = [(16, 0.1), (16, 0.4), (64, 0.1), (64, 0.4), (64, 1.2), (256, 0.3), (256, 1.2)]


def trial(size: int, rate: float, *, share: float = 1.0, pace: float = 1.0, seed: int = 0) -> Branch:
    """A trial up to a share of its horizon, which makes `1 / pace` of the progress of the law."""
    rng = np.random.default_rng(seed)
    points = [n for n in np.geomspace(10 * size, HORIZON, 10).astype(int).tolist() if n <= share * HORIZON]
    own = schedule_of("wsd", HORIZON / pace, None)
    exact = losses_at(LAW, size, rate, [max(1, round(n / pace)) for n in points], own)
    losses = exact * np.exp(0.01 * rng.standard_normal(len(points)))
    curve = LossCurve((0, *points), (INITIAL_LOSS, *map(float, losses)))
    return Branch(size, rate, curve, learning_rate_schedule=SCHEDULE, seed=seed)


def places_of(runs: list[Branch]) -> np.ndarray:
    return np.array([(math.log2(run.batch_size) / 2.0, math.log2(run.learning_rate) / 1.5) for run in runs])


def fitted(runs: list[Branch]) -> PacedLaw:
    return fit_decayed(runs, places_of(runs), ENDS, spread=0.3, highest_rate=3.0)


def end_of(size: int, rate: float) -> float:
    return float(losses_at(LAW, size, rate, [HORIZON], SCHEDULE)[0])


def test_derivatives_are_those_of_the_residuals() -> None:
    runs = [trial(*setting, seed=i) for i, setting in enumerate(SETTINGS[:3])]
    kept, points = _points_of(runs, INITIAL_LOSS, 0.0)
    frame = frame_of(points.courses, initial_loss=INITIAL_LOSS, lowest_loss=0.1, is_adaptive=True)
    belief = _first_belief(points, frame, 3.0)
    whitening = np.linalg.inv(np.linalg.cholesky(pace_covariance(places_of(runs)[kept], 0.3, np.full(3, 0.06))))
    misfit = _Misfit(points, frame, belief, whitening)
    row = np.append(belief.mean, [0.2, -0.1, 0.0])[None]
    fast = misfit.jacobian(row)
    for k in range(row.shape[1]):
        step = np.zeros_like(row)
        step[0, k] = 1e-4
        slow = (misfit.residuals(row + step) - misfit.residuals(row - step)) / 2e-4
        assert fast[:, :, k] == pytest.approx(slow, rel=2e-3, abs=2e-3)


def test_a_run_in_the_middle_of_its_schedule_says_how_it_would_end() -> None:
    runs = [trial(*setting, seed=i) for i, setting in enumerate(SETTINGS)]
    runs[3] = trial(64, 0.4, share=0.6, seed=3)
    paced = fitted(runs)
    law = paced.law
    assert isinstance(law, DecayedLaw)
    steps = np.full(1, HORIZON / 64.0) * np.exp(-paced.log_paces[:, [3]])
    found = law.losses_after(np.array([64.0]), np.array([0.4]), steps)[:, 0]
    assert runs[3].curve.losses[-1] > 1.5 * end_of(64, 0.4)  # what it has is far above what it will have
    assert np.median(found) == pytest.approx(end_of(64, 0.4), rel=0.15)


def test_a_slow_run_has_a_pace_of_its_own() -> None:
    runs = [trial(*setting, seed=i) for i, setting in enumerate(SETTINGS)]
    runs.append(trial(64, 0.4, pace=2.0, seed=9))
    other = np.array([0.0] * len(SETTINGS) + [3.0])  # another parameter, far from where the other runs have it
    places = np.concatenate([places_of(runs), other[:, None]], axis=1)
    paced = fit_decayed(runs, places, ENDS, spread=0.5, highest_rate=3.0)
    slower = paced.log_paces[0, -1] - paced.log_paces[0, 3]
    assert slower == pytest.approx(math.log(2.0), abs=0.25)
    assert paced.late is not None
    assert paced.late[0, -1] - paced.late[0, 3] == pytest.approx(slower, abs=0.15)


def test_a_forecast_is_a_prior_that_trials_overrule() -> None:
    wrong = DecayedLaw.of_forecast(replace(LAW, scale=10.0 * LAW.scale), ENDS)  # ten times too slow
    doubt = np.full(len(LAW.rows[0]), 0.3)
    runs = [trial(*setting, seed=i) for i, setting in enumerate(SETTINGS)]
    places = places_of(runs)
    paced = fit_decayed(runs, places, ENDS, spread=0.3, highest_rate=3.0, prior=(wrong, doubt), common=1.5)
    law = paced.law
    assert isinstance(law, DecayedLaw)
    log_paces, sd = paced.log_paces_at(np.array([[math.log2(64) / 2.0, math.log2(0.4) / 1.5]]))
    steps = np.full(1, HORIZON / 64.0) * np.exp(-log_paces)
    found = law.losses_after(np.array([64.0]), np.array([0.4]), steps)
    assert np.median(found) == pytest.approx(end_of(64, 0.4), rel=0.2)
    assert sd[0] < 0.2


def test_curves_that_are_too_short_are_refused() -> None:
    with pytest.raises(EvidenceError, match="at least 3 evaluations"):
        fitted([trial(64, 0.4, share=0.02)])
