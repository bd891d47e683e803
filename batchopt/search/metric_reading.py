"""The reports and values of trials that are a metric, read as losses: what is left of an accuracy to one is an error.

All of a search is about a positive quantity that falls as training goes on. With a forecast that knows the metric it is
the loss that goes with it; without one it is the error, on which the law is fitted as on any loss.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from optuna.trial import FrozenTrial

from batchopt.forecasting.metric_curve import MetricCurve
from batchopt.planning.goal import BestMetric, MetricGoal

COUNTED = 1_000.0
"""An error of none is read as half an example in so many (Haldane 1956), so that it has a logarithm: the order of sets
on which models are evaluated. What is 0.5 % and more changes by less than a tenth."""


@dataclass(frozen=True, slots=True)
class MetricReading:
    """How a metric that trials report is read as a loss.

    Attributes:
        goal: what was asked for, its budget in examples or seconds.
        rises: whether larger values are better.
        values: of the metric at `log_losses`, strictly the worse the higher the loss; empty without a forecast, where
            the loss is the error.
        log_losses: rising.
    """

    goal: MetricGoal
    rises: bool
    values: tuple[float, ...] = ()
    log_losses: tuple[float, ...] = ()

    @classmethod
    def of_curve(cls, goal: MetricGoal, curve: MetricCurve) -> MetricReading:
        """By how a forecast's metric goes with the loss; above what was evaluated for as long as it gets worse."""
        rows = [(curve(math.exp(at)).value, at) for at in curve.log_losses]
        below = sum(at <= math.log(curve.measured[1]) for _, at in rows)
        sign = 1.0 if curve.rises else -1.0
        kept: list[tuple[float, float]] = []
        for value, at in reversed(rows[:below]):
            if not kept or sign * value > sign * kept[0][0]:
                kept.insert(0, (value, at))
        for value, at in rows[below:]:
            if sign * value >= sign * kept[-1][0]:
                break
            kept.append((value, at))
        values, losses = zip(*kept, strict=True)
        return cls(goal, curve.rises, tuple(map(float, values)), tuple(map(float, losses)))

    @property
    def direction(self) -> str:
        """Of a study whose value is the metric."""
        return "maximize" if self.rises else "minimize"

    def loss_of(self, value: float) -> float:
        """The loss that a value of the metric stands for; what is not finite is an infinite one."""
        if not math.isfinite(value):
            return math.inf
        if not self.values:
            return (COUNTED * (1.0 - value) + 0.5) / (COUNTED + 1.0) if self.rises else float(value)
        sign = -1.0 if self.rises else 1.0
        at = float(np.interp(sign * value, sign * np.array(self.values), self.log_losses))
        # Beyond the table the loss moves by as many times itself as the value does by the table's width, so that values
        # which differ stay apart and in order, and a value far away does not make the loss overflow.
        worse, better = sign * (value - self.values[-1]), sign * (self.values[0] - value)
        return math.exp(at + math.log1p(max(worse, 0.0) / self._width) - math.log1p(max(better, 0.0) / self._width))

    @property
    def _width(self) -> float:
        """How far the values of the table lie apart."""
        return abs(self.values[-1] - self.values[0]) or 1.0

    def value_at(self, loss: float) -> float:
        """The value of the metric that a loss stands for."""
        if self.values:
            at, sign = math.log(loss), -1.0 if self.rises else 1.0
            worse, better = (math.expm1(max(0.0, d)) for d in (at - self.log_losses[-1], self.log_losses[0] - at))
            return float(np.interp(at, self.log_losses, self.values)) + sign * self._width * (worse - better)
        return 1.0 - ((COUNTED + 1.0) * loss - 0.5) / COUNTED if self.rises else loss

    def in_losses(self, trial: FrozenTrial) -> FrozenTrial:
        """The trial as if it had reported losses; its value, too, where that is the metric and not a cost."""
        read = copy.copy(trial)
        reported = set(trial.intermediate_values.values())
        is_metric = isinstance(self.goal, BestMetric)
        loss_of = self._loss_of_shares(reported.union((is_metric and trial.values) or ()))
        read.intermediate_values = {step: loss_of(value) for step, value in trial.intermediate_values.items()}
        if trial.values is not None:
            read.values = [loss_of(value) if is_metric or value in reported else value for value in trial.values]
        return read

    def _loss_of_shares(self, told: set[float]) -> Callable[[float], float]:
        """How values of one trial are read: where errors, shares, come to none, each is half an example more."""
        if self.values or self.rises or 0.0 not in told or not all(0.0 <= value <= 1.0 for value in told):
            return self.loss_of
        # The least that was told is one example at least, so that none stays below it.
        counted = max(COUNTED, 1.0 / min((value for value in told if value > 0.0), default=1.0))
        return lambda value: (counted * value + 0.5) / (counted + 1.0)

    def rule(self, loss: float) -> str:
        """What a value breaks that stands for a loss that is not positive."""
        name, value = self.goal.metric, self.value_at(loss)
        if not self.rises:
            return f"the {name} must be positive where it is minimised, got {value:.6g}"
        return (
            f"the {name} must not exceed 1, its ceiling, got {value:.6g}: give a share, as 0.93, or a forecast of a "
            f"task with metrics={{{name!r}: ...}}, which knows its scale"
        )
