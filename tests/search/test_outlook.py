"""Extrapolation of a running trial."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from search.landscape import LAW, LOSS, forecast_of, observation, steps_needed

from batchopt.evidence import LossCurve
from batchopt.search import milestones
from batchopt.search.observations import Observation
from batchopt.search.outlook import _model_steps, _weighted_median, outlook

POSTERIOR = forecast_of(LAW, spread=0.4).law


def running(size: int, rate: float, share: float, *, pace: float = 1.0, seed: int = 0) -> Observation:
    """A run that is a share of its way to the goal and takes `pace` times the law's steps."""
    end = round(share * steps_needed(size, rate) * size)
    seen = observation(seed, size, rate, examples=milestones(end))
    return replace(seen, curve=LossCurve(tuple(round(pace * n) for n in seen.curve.examples), seen.curve.losses))


@pytest.mark.parametrize("pace", [0.5, 1.0, 3.0])
def test_a_run_is_carried_on_at_its_own_pace(pace: float) -> None:
    ratios = []
    for seed in range(8):
        ahead = outlook(POSTERIOR, running(64, 0.1, 0.5, pace=pace, seed=seed), LOSS)
        assert ahead is not None
        ratios.append(np.log(ahead.total_steps / (pace * steps_needed(64, 0.1))))
    error = np.std(ratios) / np.sqrt(len(ratios))
    # Draws of the posterior are off by more than the noise of the losses; their median is within a fifth.
    assert abs(np.mean(ratios)) < 4 * error + 0.2


def test_it_sharpens_as_the_run_goes_on() -> None:
    errors = []
    for share in (0.1, 0.4, 0.9):
        runs = [outlook(POSTERIOR, running(64, 0.03, share, pace=2.0, seed=seed), LOSS) for seed in range(8)]
        truth = 2.0 * steps_needed(64, 0.03)
        errors.append(np.mean([abs(np.log(ahead.total_steps / truth)) for ahead in runs if ahead is not None]))
    assert errors[2] < errors[0]
    assert errors[2] < 0.1


def test_nothing_is_said_without_progress() -> None:
    stuck = replace(observation(0, 64, 0.1), curve=LossCurve((100, 200, 300), (2.5, 2.5, 2.5)))
    assert outlook(POSTERIOR, stuck, LOSS) is None
    assert outlook(POSTERIOR, observation(0, 64, 0.1), LOSS) is None
    assert outlook(POSTERIOR, observation(0, 64, 0.1, examples=[1_000]), LOSS) is None


def test_a_loss_beyond_the_law_has_no_end() -> None:
    ahead = outlook(POSTERIOR, running(64, 0.1, 0.5), 1e-12)
    assert ahead is not None
    assert np.isinf(ahead.total_steps)


def test_a_total_is_never_less_than_what_was_spent() -> None:
    ahead = outlook(POSTERIOR, running(64, 0.1, 1.3), LOSS)
    assert ahead is not None
    assert ahead.total_steps >= ahead.steps


def test_the_table_of_steps_is_the_laws_own() -> None:
    run = running(64, 0.1, 0.5)
    losses = [1.5, LOSS, 1e-12]
    one_by_one = np.stack([POSTERIOR.steps_to([64.0], [0.1], loss)[:, 0] for loss in losses], axis=1)
    np.testing.assert_allclose(_model_steps(POSTERIOR, run, losses), one_by_one, rtol=1e-10)


def test_weighted_median() -> None:
    values = np.array([3.0, 1.0, 2.0, np.inf])
    assert _weighted_median(values, np.ones(4)) == 2.0
    assert _weighted_median(values, np.array([10.0, 1.0, 1.0, 1.0])) == 3.0
    assert np.isinf(_weighted_median(values, np.array([1.0, 1.0, 1.0, 10.0])))
