"""Records of different tasks are told apart, and those of one flow are not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from forecasting.known_law import known_forecast, known_law, known_report

from batchopt.errors import EvidenceError
from batchopt.evidence import ProbeReport
from batchopt.forecasting.belonging import check_forecast_of_probe, check_plan_of_forecast
from batchopt.forecasting.forecast import Forecast
from batchopt.learning_rate_schedule import Shape
from batchopt.planning.goal import ReachLoss
from batchopt.planning.plan import Plan
from batchopt.step_cost import StepCost

REPORT = known_report(known_law())
FORECAST = known_forecast()


def test_one_flow_belongs_together_after_a_round_trip() -> None:
    check_forecast_of_probe(Forecast.from_json(FORECAST.to_json()), ProbeReport.from_json(REPORT.to_json()))


@pytest.mark.parametrize("shape", ["wsd", "cosine", lambda progress: 1.0 - progress])
def test_a_plan_belongs_to_its_forecast_alone(shape: Shape) -> None:
    plan = FORECAST.plan(ReachLoss(0.3, "examples"), learning_rate_schedule=shape)
    check_plan_of_forecast(Plan.from_json(plan.to_json()), FORECAST)
    other = replace(FORECAST, law=known_law(noise=5.0))
    with pytest.raises(EvidenceError, match="a plan and a forecast must belong together, and this forecast predicts"):
        check_plan_of_forecast(plan, other)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"initial_loss": 0.7}, r"initial loss of the forecast is 2\.3, that of the probe 0\.7: fit a forecast"),
        ({"step_cost": StepCost(2e-3, 1e-5)}, r"time of a step of the forecast is 0\.00101 seconds at a batch of 1"),
        ({"step_cost": None}, "that of the probe none"),
        ({"provenance": replace(REPORT.provenance, warmup_examples=50)}, "warm-up of the forecast is none, .* 50"),
        ({"provenance": replace(REPORT.provenance, learning_rate_schedule="wsd")}, "none, that of the probe wsd"),
        ({"provenance": replace(REPORT.provenance, population=500)}, "largest batch size of the forecast is 512"),
    ],
)
def test_a_probe_of_another_task_is_refused(changed: dict[str, object], told: str) -> None:
    with pytest.raises(EvidenceError, match=told):
        check_forecast_of_probe(FORECAST, replace(REPORT, **changed))
