"""Whether a probe, a forecast and a plan belong together: each is made from the one before, and holds its numbers."""

from __future__ import annotations

import math

from batchopt.errors import EvidenceError
from batchopt.evidence import ProbeReport
from batchopt.forecasting.forecast import Forecast
from batchopt.forecasting.horizons import schedule_of
from batchopt.forecasting.probe_readings import batch_size_limit, largest_possible
from batchopt.forecasting.single_run import estimate_of, run_over
from batchopt.planning.plan import Plan
from batchopt.step_cost import StepCost
from batchopt.uncertainty import Estimate

SAME = 1e-6
"""Relative difference up to which a prediction is the same: far above rounding, far below what another probe gives."""


def check_forecast_of_probe(forecast: Forecast, report: ProbeReport) -> None:
    """Raise unless a forecast was fitted to a probe.

    Raises:
        EvidenceError: it holds what another probe has measured.
    """
    # Runs that were there before the probe may have taken larger batches than its own.
    limit = max(batch_size_limit(report.runs, report), min(forecast.batch_size_limit, largest_possible(report)))
    pairs = (
        ("initial loss", forecast.initial_loss, report.initial_loss or forecast.initial_loss),
        ("time of a step", forecast.step_cost, report.step_cost),
        ("warm-up", forecast.warmup_examples, report.provenance.warmup_examples or None),
        ("learning-rate schedule", forecast.task_schedule, report.provenance.learning_rate_schedule),
        ("largest batch size", forecast.batch_size_limit, limit),
    )
    for name, held, measured in pairs:
        if held != measured:
            raise EvidenceError(
                f"a forecast and a probe must belong together, and the {name} of the forecast is {_short(held)}, that "
                f"of the probe {_short(measured)}: fit a forecast to this probe, or give that of the forecast"
            )


def check_plan_of_forecast(plan: Plan, forecast: Forecast) -> None:
    """Raise unless a plan was made from a forecast.

    Raises:
        EvidenceError: the forecast predicts another loss at the end of the plan's run.
    """
    again = loss_again(plan, forecast)
    if again is not None and not is_same_loss(again, plan):
        raise EvidenceError(
            f"a plan and a forecast must belong together, and this forecast predicts a loss of {again} at the end of "
            f"the plan's run, the plan {plan.loss}: plan from this forecast, or give that of the plan"
        )


def loss_again(plan: Plan, forecast: Forecast) -> Estimate | None:
    """What a forecast predicts at the end of the best constant plan; None where the plan does not hold that run."""
    rates = plan.schedule.learning_rate_schedule
    if plan.learning_rate_schedule != "function":
        rates = schedule_of(plan.learning_rate_schedule, plan.horizon, forecast.warmup_examples)  # type: ignore[arg-type]
    elif rates is None or len(plan.schedule.segments) > 1:
        return None
    run = run_over(forecast.law, rates, plan.batch_size, plan.learning_rate, horizon=plan.horizon)
    return estimate_of(run.losses)


def is_same_loss(again: Estimate, plan: Plan) -> bool:
    """Whether a prediction is that of the plan, but for rounding."""
    return math.isclose(again.value, plan.loss.value, rel_tol=SAME)


def _short(value: object) -> str:
    if isinstance(value, StepCost):
        return f"{value(1):.3g} {value.unit} at a batch of 1"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "none" if value is None else str(value)[:60]
