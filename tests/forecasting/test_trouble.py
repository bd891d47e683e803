"""Evidence that tells little or nothing: the forecast says so, and gives no confident number."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from forecasting.known_law import INITIAL_LOSS, known_forecast, known_law, known_report

from batchopt.errors import EvidenceError, UnreachableGoalError
from batchopt.evidence import Branch, LossCurve, ProbeReport
from batchopt.forecasting.forecast import Forecast
from batchopt.planning.goal import ReachLoss
from batchopt.uncertainty import Estimate

LAW = known_law()


def with_curves(report: ProbeReport, change: object) -> ProbeReport:
    """The report with the losses of every run changed by a function of (examples, losses)."""

    def changed(run: Branch) -> Branch:
        losses = change(np.array(run.curve.examples, float), np.array(run.curve.losses))  # type: ignore[operator]
        return replace(run, curve=LossCurve(run.curve.examples, tuple(map(float, losses))))

    assert report.reference is not None
    return replace(report, reference=changed(report.reference), branches=tuple(map(changed, report.branches)))


def test_unresolved_noise_everywhere_is_a_doubt_and_no_trend() -> None:
    report = known_report(LAW)
    unresolved = [replace(scale, batch_size=Estimate(900.0, 300.0, math.inf, False)) for scale in report.noise_scales]
    forecast = Forecast.fit(replace(report, noise_scales=tuple(unresolved)))
    assert "3 of 3 noise scales are unresolved and left out." in forecast.doubts
    with pytest.raises(EvidenceError, match="fewer than two noise scales"):
        forecast.noise_scale(1.0)


def test_a_probe_that_ended_before_its_second_level_says_why() -> None:
    report = known_report(LAW)
    ended = replace(
        report,
        reference=None,
        branches=tuple(run for run in report.branches if run.examples < 20_000),
        noise_scales=report.noise_scales[:1],
        stopped="the time ran out",
    )
    forecast = Forecast.fit(ended)
    assert forecast.doubts[0] == "The probe stopped before its plan was done: the time ran out."
    assert forecast.noise_trend is None
    whole, part = (known.loss(256, 0.8, 200_000) for known in (known_forecast(), forecast))
    assert math.log(part.high / part.low) > math.log(whole.high / whole.low)


def test_losses_that_rise_tell_nothing() -> None:
    report = with_curves(known_report(LAW), lambda n, losses: INITIAL_LOSS * (1.06 + 0.1 * np.log1p(n / 1e3)))
    with pytest.raises(EvidenceError, match="no run has a loss below that at initialisation: probe at lower"):
        Forecast.fit(replace(report, noise_scales=()))


def test_losses_that_hardly_fall_are_a_doubt() -> None:
    report = with_curves(known_report(LAW), lambda n, losses: INITIAL_LOSS * (1.0 - 0.005 * np.log1p(n / 1e4)))
    forecast = Forecast.fit(report)
    assert any("hardly fell" in doubt for doubt in forecast.doubts)
    with pytest.raises(UnreachableGoalError):
        forecast.plan(ReachLoss(0.3))


def test_a_loss_below_a_plateau_is_not_promised() -> None:
    """All runs settle at 1.2 and stay there."""
    report = with_curves(known_report(LAW), lambda n, losses: np.maximum(losses, 1.2))
    forecast = Forecast.fit(replace(report, noise_scales=()))
    try:
        below = forecast.critical_batch_size(0.6)
    except UnreachableGoalError:
        return
    seen = forecast.critical_batch_size(1.5)
    assert not below.resolved or math.log(below.high / below.low) > 2 * math.log(seen.high / seen.low)


def test_diverged_runs_bound_the_rates_and_tell_no_pace() -> None:
    report = known_report(LAW)
    wild = Branch(256, 3.0, LossCurve((0, 256, 512), (2.3, 9.0, 90.0)), outcome="diverged")
    forecast = Forecast.fit(replace(report, branches=(*report.branches, wild)))
    with pytest.raises(UnreachableGoalError, match="not predicted to reach"):
        forecast.steps(256, 3.1, 1.0)
    only_wild = replace(report, reference=None, branches=(wild, replace(wild, batch_size=32)))
    with pytest.raises(EvidenceError, match="no run has a loss below that at initialisation"):
        Forecast.fit(only_wild)
