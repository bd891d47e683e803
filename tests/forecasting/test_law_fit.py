"""The fit against runs drawn from a known law."""

from __future__ import annotations

import math

import numpy as np
import pytest
from forecasting.synthetic import simulated_report, true_b_crit, true_law

from batchopt.errors import EvidenceError
from batchopt.evidence import Branch, LossCurve
from batchopt.forecasting.law_fit import fit_law


@pytest.mark.parametrize(
    "b_mid", [pytest.param(20.0, marks=pytest.mark.slow), 60.0, pytest.param(200.0, marks=pytest.mark.slow)]
)
def test_recovers_the_critical_batch_size(b_mid: float) -> None:
    truth = true_law(b_mid=b_mid)
    errors, covered = [], 0
    for seed in range(6):
        report = simulated_report(truth, seed=seed)
        law = fit_law(report.runs)
        steps_min, examples_min = law.hyperbola(1.0)
        # A draw that does not get there counts as a critical batch size without limit.
        reached = np.isfinite(steps_min)
        assert reached[0]
        ratios = np.full(len(reached), np.inf)
        ratios[reached] = examples_min[reached] / steps_min[reached] / true_b_crit(truth, 1.0)
        errors.append(math.log(ratios[0]))
        low, high = np.quantile(ratios[1:], [0.05, 0.95], method="nearest")
        covered += low <= 1.0 <= high
    assert math.exp(np.mean(np.abs(errors))) < 1.5
    assert covered >= 4  # of 6 at 90 %: fewer has a probability of 1.6 %


def test_a_wrong_law_is_noticed_by_the_recovery_test() -> None:
    # The planted error: runs whose batch sizes are mislabelled by a factor of eight.
    truth = true_law()
    report = simulated_report(truth)
    wrong = [
        Branch(b.batch_size * (8 if b.batch_size == 32 else 1), b.learning_rate, b.curve, seed=b.seed)
        for b in report.runs
    ]
    law = fit_law(wrong)
    steps_min, examples_min = law.hyperbola(1.0)
    assert abs(math.log(examples_min[0] / steps_min[0] / true_b_crit(truth, 1.0))) > math.log(1.5)


def test_too_little_evidence() -> None:
    short = Branch(32, 0.1, LossCurve((0, 32, 64), (2.3, 2.2, 2.1)))
    with pytest.raises(EvidenceError, match=r"needs 2 loss curves of at least 3 evaluations, got 0"):
        fit_law([short, short])


def test_same_seed_same_law() -> None:
    report = simulated_report(true_law())
    assert fit_law(report.runs) == fit_law(report.runs)
