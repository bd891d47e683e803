"""One run from lists of numbers: what is read, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from batchopt.learning_rate_schedule import LearningRateSchedule
from batchopt.runs.logged import MOST_EVALUATIONS, logged_run

STEPS = [0, 10, 20, 50, 100]
LOSSES = [2.3, 1.5, 1.1, 0.8, 0.6]


def made(**changes: Any) -> Any:
    return logged_run(**{"batch_size": 8, "learning_rate": 0.1, "steps": STEPS, "losses": LOSSES} | changes)


def test_a_run_at_a_constant_rate() -> None:
    run = made(seed=3)
    assert (run.batch_size, run.learning_rate, run.seed, run.outcome) == (8, 0.1, 3, "finished")
    assert run.learning_rate_schedule is None
    assert run.curve.examples == (0, 80, 160, 400, 800)
    assert run.curve.losses == tuple(LOSSES)
    assert made(steps=None, examples=[8 * step for step in STEPS]).curve == run.curve


def test_named_schedules_and_their_horizon() -> None:
    run = made(learning_rate_schedule="wsd", warmup_examples=80, cooldown=0.1)
    assert run.learning_rate_schedule == LearningRateSchedule.of("wsd", examples=800, warmup_examples=80, cooldown=0.1)
    stopped = made(learning_rate_schedule="cosine", horizon=2_000)
    assert stopped.outcome == "stopped"
    assert stopped.learning_rate_schedule.examples[-1] == 2_000
    assert made(warmup_examples=40).learning_rate_schedule.multipliers == (0.0, 1.0)
    own = LearningRateSchedule((0, 800), (1.0, 0.3))
    assert made(learning_rate_schedule=own).learning_rate_schedule == own
    with pytest.raises(ValueError, match="stopped before its rate had decayed: give the horizon"):
        made(learning_rate_schedule="cosine", stopped=True)
    assert made(stopped=True).outcome == "stopped"


def test_logged_rates_are_the_schedule() -> None:
    run = made(learning_rate=[0.0, 0.05, 0.05, 0.05, 0.0])
    assert run.learning_rate == 0.05
    assert run.learning_rate_schedule.examples == (0, 80, 400, 800)
    assert made(learning_rate=np.full(5, 0.05)).learning_rate_schedule is None
    assert made(learning_rate=[None, 0.05, None, 0.05, 0.0]).learning_rate_schedule.decays
    with pytest.raises(ValueError, match="leave out learning_rate_schedule"):
        made(learning_rate=[0.1] * 5, learning_rate_schedule="wsd")
    with pytest.raises(ValueError, match="zero or more, and not all zero"):
        made(learning_rate=[0.0] * 5)
    with pytest.raises(ValueError, match="as many learning rates as steps"):
        made(learning_rate=[0.1] * 4)


def test_order_does_not_matter_and_the_last_of_several_counts() -> None:
    order = [3, 0, 4, 2, 1]
    assert made(steps=[STEPS[i] for i in order], losses=[LOSSES[i] for i in order]) == made()
    restarted = made(steps=[*STEPS, 100], losses=[*LOSSES[:-1], 0.9, 0.6])
    assert restarted == made()


def test_two_runs_under_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"after 800 examples they begin again at 0: are these two runs\? Name them"):
        made(steps=STEPS * 2, losses=[*LOSSES, *(1.1 * loss for loss in LOSSES)])
    pairs = [(step, factor * loss) for step, loss in zip(STEPS, LOSSES, strict=True) for factor in (1.0, 1.1)]
    with pytest.raises(ValueError, match=r"5 of 5 places have different ones, 0 examples for example: are these two"):
        made(steps=[step for step, _ in pairs], losses=[loss for _, loss in pairs])


def test_a_restart_counts_over_what_it_did_again() -> None:
    restarted = made(steps=[0, 10, 20, 50, 60, 70, 30, 100], losses=[2.3, 1.5, 1.1, 0.8, 0.7, 9.0, 1.0, 0.6])
    assert restarted.curve.examples == (0, 80, 160, 240, 800)
    assert restarted.curve.losses == (2.3, 1.5, 1.1, 1.0, 0.6)


def test_a_run_that_goes_on_past_its_horizon_is_refused() -> None:
    with pytest.raises(ValueError, match="goes on to 800 examples, past its horizon of 100: are these steps"):
        made(learning_rate_schedule="cosine", horizon=100)
    cosine = made(learning_rate_schedule="cosine", horizon=800)
    assert made(learning_rate_schedule="cosine", horizon=790).outcome == "finished"
    assert made(learning_rate_schedule="cosine", horizon_steps=100) == cosine
    assert made(warmup_steps=5) == made(warmup_examples=40)
    with pytest.raises(ValueError, match="give horizon either in examples or in steps, got 800 examples and 100 steps"):
        made(horizon=800, horizon_steps=100)
    with pytest.raises(ValueError, match="give warmup either in examples or in steps"):
        made(warmup_examples=8, warmup_steps=1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_run_that_ends_in_no_number_has_diverged(bad: float) -> None:
    run = made(losses=[2.3, 1.5, 9.0, bad, bad])
    assert run.outcome == "diverged"
    assert run.curve.losses == (2.3, 1.5, 9.0)
    assert made(losses=[bad] * 5).outcome == "diverged"
    assert made(diverged=True).outcome == "diverged"


def test_nan_before_a_loss_or_beside_one_is_nothing() -> None:
    run = made(losses=[2.3, math.nan, 1.1, None, 0.6])
    assert run.outcome == "finished"
    assert run.curve.examples == (0, 160, 800)
    filled = made(losses=[2.3, math.nan, 1.1, math.nan, math.nan], training_losses=[math.nan, 1.5, 1.2, 0.8, 0.6])
    assert filled.outcome == "finished"
    assert filled.curve.losses == (2.3, 1.1)


def test_many_losses_are_means_with_errors_and_evaluations_beside_them_stay_single() -> None:
    steps = np.arange(1, 2_001)
    noisy = 2.0 * steps**-0.3 * (1 + 0.2 * np.random.default_rng(0).standard_normal(2_000))
    alone = logged_run(batch_size=8, learning_rate=0.1, steps=steps, losses=noisy)
    assert alone.curve.examples == ()
    assert alone.training is not None
    assert alone.training.examples[0] == 0.0  # the loss of the first batch is that at initialisation
    assert alone == logged_run(batch_size=8, learning_rate=0.1, steps=steps, training_losses=noisy)
    both = logged_run(batch_size=8, learning_rate=0.1, steps=steps, training_losses=noisy, losses=noisy)
    assert 0.5 * MOST_EVALUATIONS < len(both.curve.examples) <= MOST_EVALUATIONS + 1
    assert both.curve.examples[-1] == 16_000
    assert both.training == alone.training


def test_a_loss_logged_with_the_first_step_is_that_at_initialisation() -> None:
    assert made(steps=[1, 10, 20, 50, 100]).curve.examples == (0, 72, 152, 392, 792)
    assert made(steps=[5, 10, 20, 50, 100]).curve.examples[0] == 40


def test_a_loss_of_zero_ends_the_curve() -> None:
    with pytest.raises(ValueError, match="the first of the losses must be above zero, got 0 after 0 examples: leave"):
        made(losses=[0.0, *LOSSES[1:]])
    assert made(losses=[2.3, 1.0, 0.1, 0.0, 0.0]).curve.losses == (2.3, 1.0, 0.1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"losses": [2.3, 1.0, -0.5, 0.3, 0.2]}, r"losses must be zero or more, got -0.5 after 160 examples: give the"),
        ({"losses": [1.0]}, "as many losses as steps or examples are needed, got 1 and 5"),
        ({"losses": None}, "a run needs losses or training_losses, got none"),
        ({"losses": [None] * 5}, "a run needs losses or training_losses, got none"),
        ({"steps": None}, "give either steps or examples, got none"),
        ({"examples": STEPS}, "give either steps or examples, got both"),
        ({"steps": [0, 1, 2, 3, 4.5]}, "steps must be whole numbers, zero or more, got 4.5"),
        ({"steps": [0, 1, 2, 3, -4]}, "steps must be whole numbers, zero or more, got -4"),
        ({"steps": [], "losses": []}, "steps must be a list of numbers"),
        (
            {"steps": None, "examples": [0, 1, 2, 3, 4]},
            "this one ends after 4 examples at batch size 8: are these steps",
        ),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"learning_rate": -1.0}, "learning_rate must be positive"),
        ({"horizon": 0}, "horizon must be at least 1"),
        ({"learning_rate_schedule": "step"}, "must be one of 'constant'"),
    ],
)
def test_what_breaks_a_rule(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made(**changes)


def test_types() -> None:
    assert made(batch_size=np.int64(8), learning_rate=np.float64(0.1), seed=np.int64(0)) == made()
    assert made(learning_rate=np.float32(0.5)).learning_rate == 0.5
    with pytest.raises(ValueError, match="steps must be whole numbers below 1e308"):
        made(steps=[*STEPS[:-1], 10**400])
    with pytest.raises(TypeError, match="batch_size must be a whole number"):
        made(batch_size=8.5)
