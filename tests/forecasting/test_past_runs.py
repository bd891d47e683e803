"""Runs that were trained before a probe, or without one."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from forecasting.known_law import INITIAL_LOSS, known_forecast, known_law, known_report, losses_at

from batchopt.errors import EvidenceError
from batchopt.evidence import Branch
from batchopt.forecasting.forecast import Forecast
from batchopt.forecasting.horizons import schedule_of
from batchopt.forecasting.past_runs import check_past_runs, parted
from batchopt.forecasting.posterior import LossPosterior
from batchopt.learning_rate_schedule import Shape
from batchopt.planning.goal import ReachLoss
from batchopt.runs.logged import logged_run
from batchopt.step_cost import StepCost

LAW, SLOWED = known_law(), known_law(saturation=0.5)
"""The second is slowed: at a rate of 1.6 by half, and by more in batches that are not far above the noise scale."""


def past(
    batch_size: int,
    rate: float,
    examples: int,
    shape: Shape = "wsd",
    *,
    law: LossPosterior = LAW,
    seed: int = 0,
    noise: float = 0.02,
    **own: Any,
) -> Branch:
    """A run of a known law, as a training loop logs its own losses."""
    steps = np.arange(1, examples // batch_size + 1)
    schedule = schedule_of(shape, examples, None)
    seen = [max(1, round(n)) for n in np.geomspace(batch_size, examples, 40)]
    true = losses_at(law, batch_size, rate, sorted({*seen, *np.linspace(1, examples, 60).astype(int)}), schedule)
    at = sorted({*seen, *np.linspace(1, examples, 60).astype(int)})
    clean = np.exp(np.interp(np.log(steps * batch_size), np.log(at), np.log(true)))
    clean[0] = INITIAL_LOSS
    losses = clean * np.exp(noise * np.random.default_rng(seed).standard_normal(len(steps)))
    told = {"learning_rate": [rate * schedule(n * batch_size) for n in steps], "losses": losses} | own
    return logged_run(batch_size=batch_size, steps=steps, seed=seed, **told)


SETTINGS = [(16, 0.1, 20_000), (16, 0.4, 20_000), (64, 0.2, 40_000), (64, 0.8, 40_000), (256, 1.2, 80_000)]
RUNS = [past(*setting) for setting in SETTINGS]


@pytest.fixture(scope="module")
def forecast() -> Forecast:
    return Forecast.fit(runs=RUNS, adaptive=False)


@pytest.mark.parametrize("law", [LAW, SLOWED], ids=["noise only adds", "noise slows"])
def test_logs_tell_what_the_known_law_holds(law: LossPosterior, forecast: Forecast) -> None:
    if law is not LAW:
        forecast = Forecast.fit(runs=[past(*setting, law=law) for setting in SETTINGS], adaptive=False)
    goal = (
        0.3 if law is SLOWED else 0.5
    )  # where noise does not slow at all, intervals far below the losses are too narrow
    true = replace(known_forecast(), law=law).critical_batch_size(goal).value
    told = forecast.critical_batch_size(goal)
    assert told.low / 1.3 <= true <= told.high * 1.3
    loss = forecast.loss(64, 0.4, 30_000)
    end = losses_at(law, 64, 0.4, [30_000], schedule_of("wsd", 30_000, None))[0]
    assert loss.low <= end <= loss.high


def test_there_is_a_plan_by_a_price_and_none_by_seconds(forecast: Forecast) -> None:
    plan = forecast.plan(ReachLoss(0.3), step_cost=StepCost(2e-3, 1e-5))
    assert plan.seconds is not None
    assert forecast.step_cost is None
    assert 4 <= plan.batch_size <= 512
    priced = forecast.plan(ReachLoss(0.3, StepCost(64.0, 1.0)))
    assert 0.5 <= priced.batch_size / plan.batch_size <= 2.0
    with pytest.raises(EvidenceError, match=r"pass a StepCost as the goal's unit \(--per-step and --per-example\)"):
        forecast.plan(ReachLoss(0.3))
    with pytest.raises(EvidenceError, match="fewer than two noise scales were resolved"):
        forecast.noise_scale(0.3)


def test_what_no_run_shows_is_doubted(forecast: Forecast) -> None:
    assert any("with a single seed" in doubt for doubt in forecast.doubts)
    assert not any("adaptive" in doubt or "decayed" in doubt or "one peak rate" in doubt for doubt in forecast.doubts)
    few = [past(16, 0.2, 20_000, "constant"), past(32, 0.3, 20_000, "constant", seed=1)]
    doubts = Forecast.fit(runs=few).doubts
    for said in (
        "Whether the optimizer is adaptive, as Adam is, was not said, and it was taken not to be: say adaptive=True",
        "Every batch size was run at one peak rate only",
        "Batch sizes were run from 16 to 32 only, within a factor of 2",
        "No run's learning rate decayed",
        "Every setting was run with a single seed",
    ):
        assert any(said in doubt for doubt in doubts), said


def test_a_file_keeps_it(forecast: Forecast) -> None:
    assert Forecast.from_json(forecast.to_json()) == forecast


def test_runs_beside_a_probe_are_used_with_what_it_measured() -> None:
    report = known_report(LAW)
    both = Forecast.fit(report, runs=[past(1_024, 1.0, 200_000)])
    assert both.initial_loss == report.initial_loss
    assert both.step_cost == report.step_cost
    assert both.law.batch_sizes[1] == 1_024
    assert both.batch_size_limit >= known_forecast().batch_size_limit


def test_runs_of_another_unit_than_the_probe_are_refused_unless_it_is_said() -> None:
    report = known_report(LAW)
    bits = unit(past(1_024, 1.0, 200_000), 1 / math.log(2))
    with pytest.raises(
        EvidenceError, match=r"the probe's begins at 2.3, that of batch size 1024 .* some in bits, sums"
    ):
        Forecast.fit(report, runs=[bits])
    check_past_runs([bits], initial_loss=2.3, probed=report.initial_loss)


def test_a_run_without_a_first_loss_is_compared_with_that_of_the_others() -> None:
    late = logged_run(batch_size=8, learning_rate=0.1, steps=[10, 20, 50], losses=[1.5, 1.1, 0.8])
    flat = logged_run(batch_size=16, learning_rate=0.1, steps=[0, 10, 20, 50], losses=[2.3] * 4)
    check_past_runs([late, flat], initial_loss=None)
    with pytest.raises(EvidenceError, match="no run's loss falls"):
        check_past_runs([flat, replace(late, curve=flat.curve)], initial_loss=None)


def test_the_same_failure_twice_is_no_repetition() -> None:
    failed = replace(RUNS[0], outcome="diverged")
    check_past_runs([*RUNS, failed, failed], initial_loss=None)


def test_a_search_at_constant_rates_takes_the_parts_before_the_decay(forecast: Forecast) -> None:
    assert forecast.constant.law.batch_sizes == (16, 256)
    cosine = Forecast.fit(runs=[past(16, 0.2, 20_000, "cosine"), past(64, 0.4, 40_000, "cosine")], adaptive=False)
    assert cosine.decaying.law.batch_sizes == (16, 64)
    with pytest.raises(EvidenceError, match="no two of the forecast's runs kept their learning rate"):
        cosine.constant  # noqa: B018


def test_a_decay_is_a_part_of_its_own() -> None:
    stable, decay = parted([RUNS[0]])
    assert stable.is_constant
    assert stable.examples <= 16_000 < decay.training.examples[0]  # type: ignore[union-attr]
    assert decay.learning_rate_schedule == RUNS[0].learning_rate_schedule
    assert (stable.seed, stable.learning_rate) == (decay.seed, decay.learning_rate)
    early, late = parted([past(16, 0.2, 20_000, "cosine")])
    assert early.examples <= 10_000
    assert late.training.examples[0] > early.examples  # type: ignore[union-attr]
    assert not early.is_constant
    whole = past(16, 0.2, 20_000, "constant")
    failed = replace(RUNS[0], outcome="diverged")
    assert parted([whole, failed]) == [whole, failed]


def test_a_diverged_run_bounds_the_rate() -> None:
    failed = logged_run(batch_size=64, learning_rate=1.6, steps=[1, 2, 3], losses=[2.3, 40.0, math.nan])
    assert Forecast.fit(runs=[*RUNS, failed], adaptive=False).law.unstable[-1][2] == 1.6


def test_rates_above_those_that_ran_are_not_counted_on(forecast: Forecast) -> None:
    highest = max(run.learning_rate for run in RUNS)
    limits = forecast.law.largest_stable([64, 256])
    np.testing.assert_array_less(highest * 0.999, limits[:, 1])
    np.testing.assert_array_less(limits, 2.001 * highest)
    assert np.ptp(limits[1:], axis=0).min() > 0.5 * highest
    assert forecast.batch_size_limit == 512
    assert any("how high a rate is stable is not known" in doubt for doubt in forecast.doubts)
    failed = logged_run(batch_size=64, learning_rate=1.6, steps=[1, 2, 3], losses=[2.3, 40.0, math.nan])
    told = Forecast.fit(runs=[*RUNS, failed], adaptive=False)
    assert not any("how high a rate is stable" in doubt for doubt in told.doubts)


def test_losses_at_initialisation_may_be_said() -> None:
    late = [replace(run, training=None, curve=LATE) for run in RUNS[:2] if (LATE := curve_without_its_start(run))]
    with pytest.raises(EvidenceError, match="the loss at initialisation is needed, and no run has one at 0 examples"):
        Forecast.fit(runs=late, adaptive=False)
    assert Forecast.fit(runs=late, initial_loss=2.3, adaptive=False).initial_loss == 2.3


def curve_without_its_start(run: Branch) -> Any:
    assert run.training is not None
    return logged_run(
        batch_size=run.batch_size,
        learning_rate=run.learning_rate,
        examples=[round(n) for n in run.training.examples[20::4]],
        losses=run.training.losses[20::4],
    ).curve


def unit(run: Branch, factor: float) -> Branch:
    assert run.training is not None
    scaled = {name: tuple(factor * x for x in getattr(run.training, name)) for name in ("losses", "errors")}
    return replace(run, training=replace(run.training, **scaled))


def rising() -> list[Branch]:
    losses = [0.1, 0.5, 0.7, 0.9]
    return [logged_run(batch_size=8, learning_rate=0.1, steps=[0, 10, 20, 50], losses=losses, seed=k) for k in (0, 1)]


@pytest.mark.parametrize(
    ("runs", "error", "said"),
    [
        ([], ValueError, "give the report of a probe, or runs=.*, got neither"),
        ([RUNS[0]], EvidenceError, "needs 2 or more runs that did not diverge, with 3 losses .* got 1 of 1"),
        ([RUNS[0], replace(RUNS[1], outcome="diverged")], EvidenceError, "got 1 of 2: give more"),
        ([RUNS[0], "runs.csv"], TypeError, "runs must hold Branches, as logged_run and read_runs make them, got str"),
        ([*RUNS, unit(RUNS[2], 1 / math.log(2))], EvidenceError, "that of batch size .* are some in bits, sums, or"),
        ([*RUNS, RUNS[1]], EvidenceError, r"that of batch size 16 at learning rate 0.4 and seed 0, .* is given twice"),
        (
            rising(),
            EvidenceError,
            r"no run's loss falls \(.* ends at 0.9\): give a loss, .* not an accuracy or a reward",
        ),
    ],
)
def test_runs_that_do_not_go_together(runs: list[Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        Forecast.fit(runs=runs, adaptive=False)


def test_a_rising_run_among_others_bounds_the_rate() -> None:
    hot = logged_run(batch_size=64, learning_rate=3.0, steps=[0, 10, 100, 600], losses=[2.3, 3.0, 4.0, 5.0])
    law = Forecast.fit(runs=[*RUNS, hot], adaptive=False).law
    assert law.highest_rate <= 1.2 * 1.01
    assert law.largest_stable([64])[0, 0] < 3.0
