"""Windows over the losses of training batches."""

from __future__ import annotations

import numpy as np
import pytest

from batchopt.probing.training_losses import WINDOW_RATIO, training_losses


def test_windows_hold_every_step_once() -> None:
    losses = np.random.default_rng(0).uniform(1.0, 2.0, 300)
    curve = training_losses(losses, batch_size=8)
    # The windows follow from their middles: each begins where the one before ended.
    begin, total = 0, 0.0
    for examples, loss in zip(curve.examples, curve.losses, strict=True):
        width = round(2 * (examples / 8 - begin) + 1)
        assert loss == pytest.approx(losses[begin : begin + width].mean())
        total += loss * width
        begin += width
    assert begin == 300
    assert total == pytest.approx(losses.sum())


def test_a_leg_that_goes_on_gives_the_windows_of_one_long_run() -> None:
    losses = np.random.default_rng(0).uniform(1.0, 2.0, 200)
    before = training_losses(losses[:60], batch_size=4)
    both = training_losses(losses[60:], batch_size=4, before=before, first_step=60)
    assert both.examples[: len(before.examples)] == before.examples
    assert len(both.examples) <= len(training_losses(losses, batch_size=4).examples) + 1
    ends = 2 * np.diff(both.examples) / 4
    assert both.examples[-1] < 200 * 4
    assert np.all(ends > 0)


def test_errors_are_those_of_the_means() -> None:
    """The truth by repetition: over many runs, means scatter by what the errors say, whatever the trend."""
    rng = np.random.default_rng(0)
    trend = 3.0 * (1.0 + np.arange(120)) ** -0.3
    curves = [training_losses(trend + 0.2 * rng.standard_normal(120), batch_size=1) for _ in range(400)]
    scatter = np.std([curve.losses for curve in curves], axis=0)
    told = np.sqrt(np.mean(np.square([curve.errors for curve in curves]), axis=0))
    # The first windows see the steepest trend, which looks like scatter.
    assert told[6:] == pytest.approx(scatter[6:], rel=0.2)
    assert np.all(told > 0.8 * scatter)


def test_few_steps() -> None:
    assert training_losses([], batch_size=4).examples == ()
    alone = training_losses([2.0], batch_size=4)
    assert (alone.losses, alone.errors) == ((2.0,), (2.0,))  # nothing is known of its scatter
    assert WINDOW_RATIO > 1.0
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        training_losses([1.0], batch_size=0)


def test_windows_of_equal_width_hold_every_step_once_and_lie_after_the_branch_point() -> None:
    losses = np.random.default_rng(0).uniform(1.0, 2.0, 83)
    curve = training_losses(losses, batch_size=4, first_step=500, windows=8)
    widths, begin = [], 0
    for examples, loss in zip(curve.examples, curve.losses, strict=True):
        width = round(2 * (examples / 4 - 500 - begin) + 1)
        assert loss == pytest.approx(losses[begin : begin + width].mean())
        widths.append(width)
        begin += width
    assert begin == 83
    assert len(widths) == 8
    assert max(widths) - min(widths) <= 1


@pytest.mark.parametrize("steps", [0, 1, 4, 8])
def test_no_window_is_empty(steps: int) -> None:
    curve = training_losses([2.0] * steps, batch_size=4, first_step=500, windows=8)
    assert curve.examples == tuple(float(4 * (500 + k)) for k in range(steps))
