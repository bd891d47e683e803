"""Probes with a prior: the prior is near the best rate of the sweep, and the same every time."""

from __future__ import annotations

import prior_probes
import pytest
from prediction import GOALS
from truth.decayed import decayed_sweep_of
from truth.problems import PROBLEMS


@pytest.mark.parametrize("seed", [10, 11])
def test_a_prior_is_within_its_factor_of_the_best_rate(seed: int) -> None:
    size, rate = prior_probes.prior_of("quadratic", seed)
    best = decayed_sweep_of("quadratic").cheapest(PROBLEMS["quadratic"].losses[-2], GOALS["seconds at 64 + B"], size)
    assert 1.0 / prior_probes.SPREAD <= rate / best.learning_rate <= prior_probes.SPREAD
    assert prior_probes.prior_of("quadratic", seed) == (size, rate)
    assert prior_probes.prior_of("quadratic", seed + 1) != (size, rate)
