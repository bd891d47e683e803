"""Peak rates of plans keep near what is known to be good, carried over to their batch size."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from forecasting.known_law import known_forecast

from batchopt.forecasting.carried_rates import (
    EXPONENTS,
    EXPONENTS_ADAPTIVE,
    FAR_BEYOND,
    NEAR,
    NEAR_PRIOR,
    PARTS,
    KnownRate,
    KnownRates,
)
from batchopt.forecasting.forecast import Forecast
from batchopt.forecasting.horizons import rates_for, schedule_of
from batchopt.forecasting.posterior import UNTRIED, LossPosterior
from batchopt.forecasting.single_run import SingleRun, run_over
from batchopt.learning_rate_schedule import Shape, ShapeName
from batchopt.planning.choice import DIVERGED
from batchopt.planning.goal import LowestLoss, ReachLoss

PRICE = {"learning_rate_schedule": "wsd", "batch_sizes": (16, 256)}
FAR = LowestLoss(2_400_000, of="examples")
NEARER = LowestLoss(900_000, of="examples")


@pytest.fixture(scope="module")
def forecast() -> Forecast:
    return known_forecast()


def rates_of(forecast: Forecast, critical: float | None = 100.0) -> KnownRates:
    return KnownRates(forecast.law, forecast.prior, forecast.warmup_examples, critical)


def taken(law: LossPosterior, rate: float) -> SingleRun:
    """A run at a rate, of which only that and a short horizon matter."""
    schedule = schedule_of("wsd", 1_000, None)
    return run_over(law, schedule, 64, rate, horizon=1_000)


def rate_at(rates: KnownRates, shape: ShapeName, batch_size: int, rate: float) -> float:
    found = rates.at(shape, 1e6, batch_size, rate, taken)
    assert found is not None
    return found.learning_rate


@pytest.mark.parametrize("powers", [EXPONENTS, EXPONENTS_ADAPTIVE])
def test_a_rate_rises_by_one_power_up_to_the_critical_batch_size_and_by_another_beyond(
    powers: tuple[float, float],
) -> None:
    known = KnownRate(16, 0.1, critical=64.0, exponents=powers)
    below, beyond = powers
    assert known.carried_to(16) == pytest.approx(0.1)
    assert known.carried_to(4) == pytest.approx(0.1 / 4.0**below)
    assert known.carried_to(64) == pytest.approx(0.1 * 4.0**below)
    assert known.carried_to(256) == pytest.approx(0.1 * 4.0**below * 4.0**beyond)
    assert replace(known, batch_size=128).carried_to(16) == pytest.approx(0.1 / 4.0**below / 2.0**beyond)


@pytest.mark.parametrize("critical", [100.0, None])
def test_the_best_rate_nearby_is_that_of_every_rate_asked_alone(forecast: Forecast, critical: float | None) -> None:
    law = forecast.law
    size, horizon = law.batch_sizes[1], law.longest
    schedule, best = schedule_of("cosine", horizon, None), (math.inf, 0.0)
    for rate in rates_for(law, [size])[0].tolist():
        rows = law.losses_at_end([size], [rate], [schedule], [horizon])[:, 0]
        mean = float(np.mean([min(row, math.log(DIVERGED * law.initial_loss)) for row in rows]))
        best = min(best, (mean, rate))
    known = KnownRates(law, None, None, critical).of("cosine", 1e6)
    assert known == KnownRate(size, pytest.approx(best[1]), critical or size, EXPONENTS)  # type: ignore[arg-type]


@pytest.mark.parametrize("off", [0.2, 1.0 / 1.2, 1.0, 1.2, 5.0])
def test_a_choice_is_moved_to_within_a_factor(forecast: Forecast, off: float) -> None:
    rates = rates_of(forecast)
    known = rates.of("wsd", 1e6)
    assert known is not None
    middle = known.carried_to(64)
    expected = middle * min(max(off, 1.0 / NEAR), NEAR)
    assert rate_at(rates, "wsd", 64, off * middle) == pytest.approx(expected)
    assert rate_at(rates, "constant", 64, off * middle) == off * middle


def test_a_rate_is_moved_no_further_than_the_law_expects_a_run_to_arrive(forecast: Forecast) -> None:
    rates = rates_of(forecast)
    known = rates.of("wsd", 1e6)
    assert known is not None
    wanted, tried = known.carried_to(64) / NEAR, list[float]()
    own = 0.1 * wanted

    def below(limit: float) -> float | None:
        def run(law: LossPosterior, rate: float) -> SingleRun | None:
            tried.append(rate)
            return taken(law, rate) if rate < limit else None

        found = rates.at("wsd", 1e6, 64, own, run)
        return None if found is None else found.learning_rate

    assert below(0.5 * wanted) == pytest.approx(own * 10.0 ** (1.0 - 2.0 / PARTS)), "the third of them"
    assert tried[0] == pytest.approx(wanted)
    assert tried == sorted(tried, reverse=True)
    assert below(0.1 * own) is None, "not even the law's own"


def test_no_rate_is_moved_above_all_that_ran_well_by_more_than_the_law_trusts(forecast: Forecast) -> None:
    law = replace(forecast.law, highest_rate=1e-4)
    assert rate_at(KnownRates(law, None, None, 100.0), "wsd", 256, 1e-4) == pytest.approx(UNTRIED * 1e-4)


def test_a_prior_is_trusted_as_if_a_run_had_done_well_there(forecast: Forecast) -> None:
    law = replace(forecast.law, highest_rate=1e-4, longest=10.0)
    rates = KnownRates(law, (64, 0.3), None, 100.0)

    def run(trusting: LossPosterior, rate: float) -> SingleRun | None:
        return None if trusting.is_unstable([64], [rate]).any() else taken(trusting, rate)

    found = rates.at("wsd", 1e6, 64, 1e-4, run)
    assert found is not None
    assert found.learning_rate == pytest.approx(0.3 / NEAR_PRIOR)


@pytest.mark.parametrize("shape", ["constant", lambda progress: 1.0])
def test_a_constant_rate_is_the_laws_own(forecast: Forecast, shape: Shape) -> None:
    assert rates_of(forecast).of(shape, 1e6) is None
    plan = forecast.plan(FAR, learning_rate_schedule=shape)
    assert not any("peak learning rate is within" in reason for reason in plan.reasons)


def test_a_plan_keeps_near_what_the_runs_show_and_says_so(forecast: Forecast) -> None:
    plan = forecast.plan(FAR, **PRICE)  # type: ignore[arg-type]
    critical = forecast.critical_batch_size(forecast.lowest_observed_loss, learning_rate_schedule="wsd").value
    known = rates_of(forecast, critical).of("wsd", plan.horizon)
    assert known is not None
    assert known.in_words(plan.batch_size, plan.learning_rate) in plan.reasons
    for point in plan.alternatives:
        assert known.carried_to(point.batch_size) / NEAR <= point.learning_rate * (1.0 + 1e-9)
        assert point.learning_rate <= known.carried_to(point.batch_size) * NEAR * (1.0 + 1e-9)


@pytest.mark.parametrize("factor", [0.1, 0.3])
def test_a_run_far_beyond_the_probe_keeps_near_the_prior(forecast: Forecast, factor: float) -> None:
    prior = (64, factor * forecast.plan(FAR, **PRICE).learning_rate)  # type: ignore[arg-type]
    plan = replace(forecast, prior=prior).plan(FAR, **PRICE)  # type: ignore[arg-type]
    assert plan.horizon > FAR_BEYOND * forecast.law.longest
    critical = forecast.critical_batch_size(forecast.lowest_observed_loss, learning_rate_schedule="wsd").value
    middle = KnownRate(*prior, critical, EXPONENTS).carried_to(plan.batch_size)
    assert middle / NEAR_PRIOR <= plan.learning_rate * (1.0 + 1e-9)
    assert plan.learning_rate <= middle * NEAR_PRIOR * (1.0 + 1e-9)
    told = f"The peak learning rate is within a factor of {NEAR_PRIOR:g} of the task's prior"
    assert any(reason.startswith(told) for reason in plan.reasons)


@pytest.mark.parametrize("longest", [100.0, 300.0, 700.0, 900.0])
@pytest.mark.parametrize("prior", [(64, 1e-6), (64, 0.01), (64, 0.3)])
def test_what_a_plan_says_of_its_rate_is_so(forecast: Forecast, longest: float, prior: tuple[int, float]) -> None:
    """Also where the run proves far longer than the probe's only when it is looked at, or none is to arrive."""
    known = replace(forecast, prior=prior, law=replace(forecast.law, longest=longest))
    plan = known.plan(ReachLoss(0.2, "examples"), learning_rate_schedule="cosine", batch_sizes=(8, 256))
    (told,) = [reason for reason in plan.reasons if reason.startswith("The peak learning rate")]
    is_prior = "task's prior" in told
    assert is_prior or plan.horizon <= FAR_BEYOND * longest
    numbers = re.findall(r"[0-9][0-9.e-]*[0-9]", told.replace("at batch size", "at"))
    becomes = re.search(r"which is ([0-9.e-]+) carried over to", told)
    middle = float(numbers[0] if becomes is None else becomes[1])
    off = max(plan.learning_rate / middle, middle / plan.learning_rate)
    assert ("is within" in told) == (off <= 1.01 * (NEAR_PRIOR if is_prior else NEAR))


def test_the_expected_regret_is_of_the_run_that_is_planned(forecast: Forecast) -> None:
    """A prior that makes the run dear makes the regret large."""
    law = replace(forecast.law, longest=300.0)
    goal = ReachLoss(0.2, "examples")
    plain, dear = (
        replace(forecast, law=law, prior=prior).plan(goal, learning_rate_schedule="cosine", batch_sizes=(8, 256))
        for prior in (None, (64, 0.01))
    )
    assert dear.cost.value > 2.0 * plain.cost.value
    assert dear.expected_regret is not None
    assert plain.expected_regret is not None
    assert dear.expected_regret > 1.0 + plain.expected_regret


def test_a_run_within_the_probes_reach_is_planned_without_the_prior(forecast: Forecast) -> None:
    known = replace(forecast, prior=(64, 1e-4))
    assert known.plan(NEARER, **PRICE) == forecast.plan(NEARER, **PRICE)  # type: ignore[arg-type]
