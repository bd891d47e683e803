"""Means over windows: all losses are used, ends are not blurred, errors are those of the means."""

from __future__ import annotations

import math

import numpy as np

from batchopt.runs.windows import LEAST, UNKNOWN, window_means


def test_windows_are_short_beside_the_run_and_use_every_loss() -> None:
    examples = np.arange(0.0, 64_000.0, 64)
    means = window_means(examples, np.linspace(2.0, 1.0, 1_000))
    assert means.examples[0] == 0.0
    assert means.losses[0] == 2.0
    assert np.diff(means.examples).max() <= 0.021 * examples[-1]
    assert len(means.examples) < 200


def test_errors_are_those_of_means_and_a_trend_is_none() -> None:
    rng = np.random.default_rng(0)
    examples = np.arange(0.0, 400_000.0, 10)
    trend = 3.0 - examples / 400_000
    means = window_means(examples, trend + 0.2 * rng.standard_normal(len(examples)))
    late = [k for k, n in enumerate(means.examples) if n > 200_000]
    off = [(means.losses[k] - (3.0 - means.examples[k] / 400_000)) / means.errors[k] for k in late]
    # Mean square of k standard normals: 1, with a standard error of sqrt(2 / k).
    assert abs(np.mean(np.square(off)) - 1.0) < 4 * math.sqrt(2.0 / len(off))
    straight = window_means(examples, trend)
    assert max(straight.errors) < 1e-9


def test_a_few_losses_are_windows_by_themselves() -> None:
    means = window_means(np.array([0.0, 100, 200, 300]), np.array([2.0, 1.5, 1.2, 1.0]))
    assert means.losses == (2.0, 1.5, 1.2, 1.0)
    assert max(means.errors) < 0.2
    assert window_means(np.array([5.0]), np.array([2.0])).errors == (UNKNOWN * 2.0,)
    assert window_means(np.array([]), np.array([])).losses == ()
    assert LEAST > 2
