"""The public names are a contract: a change here is a change for every user."""

from __future__ import annotations

import pytest

import batchopt

NAMES = [
    "AdaptiveSchedule",
    "BatchoptError",
    "BestMetric",
    "Branch",
    "BudgetError",
    "Estimate",
    "EvidenceError",
    "Forecast",
    "LearningRateRule",
    "LearningRateSchedule",
    "Log2",
    "LossCurve",
    "LowestLoss",
    "NoiseScale",
    "NoiseScaleMonitor",
    "NonFiniteLossError",
    "Plan",
    "ProbeReport",
    "ReachLoss",
    "ReachMetric",
    "RecordError",
    "Rollout",
    "Rollouts",
    "Schedule",
    "ScheduledBatchSampler",
    "Segment",
    "StepCost",
    "TaskError",
    "TradeoffLaw",
    "TradeoffPruner",
    "TradeoffSampler",
    "TrainingTask",
    "UnreachableGoalError",
    "UnresolvedError",
    "check",
    "fit_tradeoff",
    "gradient_coverage",
    "learning_rate_by_progress",
    "logged_run",
    "measure_noise_scale",
    "milestones",
    "per_example_squared_norms",
    "probe",
    "read_runs",
    "reports_in_examples",
    "scale_learning_rate",
    "scheduled_loader",
    "train",
    "write_report",
    "__version__",
]


def test_the_names_are_these() -> None:
    assert sorted(batchopt.__all__) == sorted(NAMES)
    assert dir(batchopt) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_there_and_documented(name: str) -> None:
    value = getattr(batchopt, name)
    assert name == "__version__" or value.__doc__


def test_functions_are_not_shadowed_by_their_modules() -> None:
    import batchopt.probing.probe
    import batchopt.training.train

    assert callable(batchopt.probe)
    assert callable(batchopt.train)


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'prob'"):
        batchopt.prob  # noqa: B018


def test_errors_have_one_parent() -> None:
    errors = [getattr(batchopt, name) for name in NAMES if name.endswith("Error")]
    assert len(errors) >= 8
    assert all(issubclass(error, batchopt.BatchoptError) for error in errors)
