"""batchopt: which batch size and learning rate to train a PyTorch model with, after a short probe.

The flow: `probe` a `TrainingTask`, fit a `Forecast`, `.plan` for a goal (batch size, peak rate, decay and horizon),
search around it with `TradeoffSampler` in Optuna, `train` by the plan's `Schedule`. Names load what they need when they
are first used, so importing batchopt is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchopt.errors import BatchoptError as BatchoptError
    from batchopt.errors import BudgetError as BudgetError
    from batchopt.errors import EvidenceError as EvidenceError
    from batchopt.errors import NonFiniteLossError as NonFiniteLossError
    from batchopt.errors import RecordError as RecordError
    from batchopt.errors import TaskError as TaskError
    from batchopt.errors import UnreachableGoalError as UnreachableGoalError
    from batchopt.errors import UnresolvedError as UnresolvedError
    from batchopt.evidence import Branch as Branch
    from batchopt.evidence import LossCurve as LossCurve
    from batchopt.evidence import ProbeReport as ProbeReport
    from batchopt.forecasting.forecast import Forecast as Forecast
    from batchopt.learning_rate import LearningRateRule as LearningRateRule
    from batchopt.learning_rate_schedule import LearningRateSchedule as LearningRateSchedule
    from batchopt.noise_scale import NoiseScale as NoiseScale
    from batchopt.planning.goal import BestMetric as BestMetric
    from batchopt.planning.goal import LowestLoss as LowestLoss
    from batchopt.planning.goal import ReachLoss as ReachLoss
    from batchopt.planning.goal import ReachMetric as ReachMetric
    from batchopt.planning.plan import Plan as Plan
    from batchopt.probing.gradients import gradient_coverage as gradient_coverage
    from batchopt.probing.gradients import per_example_squared_norms as per_example_squared_norms
    from batchopt.probing.measure import measure_noise_scale as measure_noise_scale
    from batchopt.probing.probe import probe as probe
    from batchopt.probing.rollouts import Rollout as Rollout
    from batchopt.probing.rollouts import Rollouts as Rollouts
    from batchopt.probing.task import TrainingTask as TrainingTask
    from batchopt.report import write_report as write_report
    from batchopt.runs.logged import logged_run as logged_run
    from batchopt.runs.read import read_runs as read_runs
    from batchopt.schedules.schedule import Schedule as Schedule
    from batchopt.schedules.schedule import Segment as Segment
    from batchopt.search import Log2 as Log2
    from batchopt.search import TradeoffPruner as TradeoffPruner
    from batchopt.search import TradeoffSampler as TradeoffSampler
    from batchopt.search import check as check
    from batchopt.search import milestones as milestones
    from batchopt.search import reports_in_examples as reports_in_examples
    from batchopt.step_cost import StepCost as StepCost
    from batchopt.tradeoff import TradeoffLaw as TradeoffLaw
    from batchopt.tradeoff import fit_tradeoff as fit_tradeoff
    from batchopt.training.adaptive import AdaptiveSchedule as AdaptiveSchedule
    from batchopt.training.learning_rates import learning_rate_by_progress as learning_rate_by_progress
    from batchopt.training.loader import ScheduledBatchSampler as ScheduledBatchSampler
    from batchopt.training.loader import scheduled_loader as scheduled_loader
    from batchopt.training.monitor import NoiseScaleMonitor as NoiseScaleMonitor
    from batchopt.training.multipliers import scale_learning_rate as scale_learning_rate
    from batchopt.training.train import train as train
    from batchopt.uncertainty import Estimate as Estimate

    __version__: str

UNINSTALLED = "0+unknown"
"""The version of a source tree that is on the path without having been installed."""

_HOMES = {
    "AdaptiveSchedule": "training.adaptive",
    "BatchoptError": "errors",
    "BestMetric": "planning.goal",
    "Branch": "evidence",
    "BudgetError": "errors",
    "Estimate": "uncertainty",
    "EvidenceError": "errors",
    "Forecast": "forecasting.forecast",
    "LearningRateRule": "learning_rate",
    "LearningRateSchedule": "learning_rate_schedule",
    "Log2": "search",
    "LossCurve": "evidence",
    "LowestLoss": "planning.goal",
    "NoiseScale": "noise_scale",
    "NoiseScaleMonitor": "training.monitor",
    "NonFiniteLossError": "errors",
    "Plan": "planning.plan",
    "ProbeReport": "evidence",
    "ReachLoss": "planning.goal",
    "ReachMetric": "planning.goal",
    "RecordError": "errors",
    "Rollout": "probing.rollouts",
    "Rollouts": "probing.rollouts",
    "Schedule": "schedules.schedule",
    "ScheduledBatchSampler": "training.loader",
    "Segment": "schedules.schedule",
    "StepCost": "step_cost",
    "TaskError": "errors",
    "TradeoffLaw": "tradeoff",
    "TradeoffPruner": "search",
    "TradeoffSampler": "search",
    "TrainingTask": "probing.task",
    "UnreachableGoalError": "errors",
    "UnresolvedError": "errors",
    "check": "search",
    "fit_tradeoff": "tradeoff",
    "gradient_coverage": "probing.gradients",
    "learning_rate_by_progress": "training.learning_rates",
    "logged_run": "runs.logged",
    "measure_noise_scale": "probing.measure",
    "milestones": "search",
    "per_example_squared_norms": "probing.gradients",
    "probe": "probing.probe",
    "read_runs": "runs.read",
    "reports_in_examples": "search",
    "scale_learning_rate": "training.multipliers",
    "scheduled_loader": "training.loader",
    "train": "training.train",
    "write_report": "report",
}

__all__ = [*_HOMES, "__version__"]  # noqa: PLE0604  (all are strings)


def __getattr__(name: str) -> object:
    if name == "__version__":
        return _version()
    if name == "search":  # batchopt.search.explain, without an import of its own
        return import_module("batchopt.search")
    if name not in _HOMES:
        raise AttributeError(f"module 'batchopt' has no attribute {name!r}")
    value = getattr(import_module(f"batchopt.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def _version() -> str:
    """The version in pyproject.toml, as it was installed."""
    from importlib.metadata import PackageNotFoundError, version  # takes longer than all else that an import does

    try:
        return version("batchopt")
    except PackageNotFoundError:
        return UNINSTALLED


def __dir__() -> list[str]:
    return sorted(__all__)
