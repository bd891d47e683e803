"""A metric as a function of the loss, from the evaluations of a probe's runs.

Runs of other batch sizes and learning rates are at about the same accuracy where they are at the same loss, so what the
forecast says of losses it says of metrics. The relation is a Gaussian process whose slope wanders about a mean: it
follows the evaluations, and beyond them comes back to the mean slope, with an interval that widens with the distance.

Notation
    x(L) = log(L_0 / L), with L_0 the highest loss that was evaluated
    y      the metric on its scale: the logarithm of what is left to one, or to zero, or the metric itself
    y_i = a + slope x_i + bend U(x_i) + scatter e_i, with U an integrated Ornstein-Uhlenbeck process, e standard normal
    slope  -1 on the logarithmic scales: late in training errors fall in proportion to the loss; else that of the line
           through the evaluations
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from batchopt._checks import check_finite, check_increasing, check_positive
from batchopt._codec import Record
from batchopt.errors import EvidenceError, UnreachableGoalError
from batchopt.evidence import Branch
from batchopt.uncertainty import Estimate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

Scale = Literal["to one", "to zero", "plain"]

LEAST_EVALUATIONS = 4
"""Fewer show neither a slope nor how far evaluations are from it."""
BENDS, SCATTERS = np.geomspace(0.1, 1.0, 7), np.geomspace(0.01, 0.5, 9)
"""Standard deviations of slopes (of the metric on its scale, over log loss) and of evaluations, averaged over and
weighted by their likelihood. With slopes that vary half or twice as much, intervals of accuracies at the ends of 17
trainings (`benchmarks/metrics.py`) were 0.85 and 1.25 times as wide, and held 98 % of them in each case."""
MEMORY = 1.0
"""Over this distance in log loss slopes forget: an accuracy leaves chance within about one. With 0.5, 1, 2 and 4 the
same accuracies were off by 0.005, 0.007, 0.009 and 0.011 in the mean, and 98, 98, 98 and 94 % in their intervals."""
COUNTED = 0.25
"""Share of the variance of a count that differs between runs at one loss: they fail on much the same examples. Of the
same accuracies intervals held 98 %; with 0 it was 91 %, with 1 all."""
VAGUE = 10.0
"""Prior standard deviation of the level: it decides nothing."""
REACH = 30.0
"""The table goes this factor beyond the losses that were evaluated."""
ROWS = 201
FAR_ABOVE = 2.0
"""At losses so many times above the highest that was evaluated errors end at those of guessing, and where that is the
evaluations do not tell."""
_NORMAL_95 = 1.645


@dataclass(frozen=True, slots=True)
class MetricCurve(Record):
    """A metric over the log of the loss, tabulated on its own scale.

    Do not trust it far below the losses that were evaluated, nor for runs that overfit: there a metric may go on to
    improve while the loss rises.

    Attributes:
        name: of the metric.
        scale: "to one" for a share that rises (an accuracy: the logarithm of what is left to one), "to zero" for what
            is positive and falls (an error: its logarithm), else "plain".
        counted: examples over which a share was counted, which round it; 0 for what is no count.
        log_losses: rising, (k,).
        means: expected metric there, on the scale, (k,).
        sds: standard deviation of a run's, on the scale, (k,).
        rises: whether the metric rises as the loss falls, so that larger is better.
        measured: lowest and highest loss that was evaluated.
    """

    SCHEMA: ClassVar[str] = "batchopt.metric_curve/1"

    name: str
    scale: Scale
    counted: int
    log_losses: tuple[float, ...]
    means: tuple[float, ...]
    sds: tuple[float, ...]
    rises: bool
    measured: tuple[float, float]

    def __post_init__(self) -> None:
        check_increasing("log_losses", self.log_losses)
        if not len(self.log_losses) == len(self.means) == len(self.sds):
            raise ValueError("log_losses, means and sds must have the same length")

    def __call__(self, loss: float | Estimate) -> Estimate:
        """The metric of a run at a loss, known or itself uncertain; beyond the table as at its end."""
        value, low, high = (loss.value, loss.low, loss.high) if isinstance(loss, Estimate) else (loss, loss, loss)
        check_positive("loss", value)
        at = np.log([value, max(low, math.exp(self.log_losses[0])), min(high, math.exp(self.log_losses[-1]))])
        is_known = value <= FAR_ABOVE * self.measured[1]
        if not is_known:
            at = np.append(at, math.log(self.measured[1]))
        mean, *ends = np.interp(at, self.log_losses, self.means)
        sd = float(np.interp(at[0], self.log_losses, self.sds))
        own = _NORMAL_95 * sd
        bounds = mean - math.hypot(own, mean - min(mean, *ends)), mean + math.hypot(own, max(mean, *ends) - mean)
        middle, *both = (_from_scale(float(y), self.scale, self.counted) for y in (mean, *bounds))
        resolved = is_known and (not isinstance(loss, Estimate) or loss.resolved)
        return Estimate(middle, min(both), max(both), resolved)

    def loss_at(self, value: float) -> Estimate:
        """The loss at which a run has a value of the metric.

        Raises:
            UnreachableGoalError: no run can have it, an accuracy above one, or it is not predicted at any loss of the
                table.
        """
        check_finite("value", value)
        self._check_possible(value)
        wanted = _to_scale(value, self.scale, self.counted)
        sign = _sign_of(self.scale, self.rises)
        middle, certain, lucky = (self._crossing(wanted, sign, sigma) for sigma in (0.0, -_NORMAL_95, _NORMAL_95))
        if middle is None:
            best = _from_scale(self.means[0], self.scale, self.counted)
            raise UnreachableGoalError(
                f"{self.name} {value:g} is not predicted at any loss: it comes to {best:.4g} at a loss of "
                f"{math.exp(self.log_losses[0]):.3g}, {REACH:g} times below what was evaluated"
            )
        low = 0.0 if certain is None else min(middle, certain)
        is_known = certain is not None and middle <= FAR_ABOVE * self.measured[1]
        return Estimate(middle, low, max(middle, lucky or middle), is_known)

    def _crossing(self, wanted: float, sign: int, sigma: float) -> float | None:
        """The highest loss at which mean plus `sigma` standard deviations, to the better side, is what is wanted."""
        better = sign * (np.array(self.means) - wanted) + sigma * np.array(self.sds)
        is_there = np.nonzero(better >= 0)[0]
        if not len(is_there):
            return None
        i = int(is_there[-1])
        if i == len(better) - 1:
            return math.exp(self.log_losses[-1])  # it is reached before any training
        part = better[i] / (better[i] - better[i + 1])
        return math.exp(self.log_losses[i] + part * (self.log_losses[i + 1] - self.log_losses[i]))

    def _check_possible(self, value: float) -> None:
        left = {"to one": 1.0 - value, "to zero": value}.get(self.scale, math.inf)
        if 0.0 < left * self.counted < 1.0:
            raise UnreachableGoalError(
                f"{self.name} {value:g} cannot be told from {'1' if self.scale == 'to one' else '0'} on the "
                f"{self.counted} examples that are evaluated: ask for less, or evaluate more examples"
            )
        if self.scale == "to one" and value >= 1.0:
            raise UnreachableGoalError(
                f"{self.name} must lie below 1, its ceiling, got {value:g}: give a share, as 0.93"
            )
        if self.scale == "to zero" and value <= 0.0:
            raise UnreachableGoalError(f"{self.name} must lie above 0, which it cannot fall below, got {value:g}")


def fit_metric_curves(runs: Sequence[Branch], evaluated: int) -> tuple[MetricCurve, ...]:
    """The relation of every metric of which the runs hold enough evaluations.

    Args:
        runs: of one task.
        evaluated: examples of an evaluation.
    """
    names = dict.fromkeys(name for run in runs for name in run.curve.metrics)
    curves = (_fit(name, runs, evaluated) for name in names)
    return tuple(curve for curve in curves if curve is not None)


def doubts_of_metrics(runs: Sequence[Branch]) -> list[str]:
    """Metrics of which the runs hold too few evaluations, or no two that differ, to tell how they go with the loss."""
    seen: dict[str, list[float]] = {}
    for run in runs:
        for name, values in run.curve.metrics.items():
            seen.setdefault(name, []).extend(values)
    found = []
    for name, each in seen.items():
        if len(each) < LEAST_EVALUATIONS:
            points = f"at {len(each)} point{'s' if len(each) > 1 else ''}"
            found.append(
                f"{_lead(name)}{points}, and {LEAST_EVALUATIONS} are needed to tell how it goes with the loss: probe "
                "with more examples, or give fewer evaluation data."
            )
        elif min(each) == max(each):
            found.append(
                f"{_lead(name)}at {len(each)} points and was {each[0]:g} at all of them, which does not tell how "
                "it goes with the loss: probe with more examples, or look at how the metric is computed."
            )
    return found


def _lead(name: str) -> str:
    """How the doubt about a metric begins."""
    return f"The metric {name} was evaluated "


def curve_of(curves: Sequence[MetricCurve], name: str, doubts: Sequence[str] = ()) -> MetricCurve:
    """The relation of a metric.

    Args:
        curves: of a forecast.
        name: of the metric.
        doubts: of the same forecast; that of a metric without a relation says why it has none.

    Raises:
        EvidenceError: there is none by that name.
    """
    for curve in curves:
        if curve.name == name:
            return curve
    for doubt in doubts:
        if doubt.startswith(_lead(name)):
            raise EvidenceError(f"t{doubt[1:].removesuffix('.')}")
    known = ", ".join(repr(curve.name) for curve in curves) or "none"
    raise EvidenceError(
        f"no metric {name!r} is known (known: {known}): give the task metrics={{{name!r}: ...}}, and probe again"
    )


def _fit(name: str, runs: Sequence[Branch], evaluated: int) -> MetricCurve | None:
    seen = [
        (loss, value)
        for run in runs
        for loss, value in zip(run.curve.losses, run.curve.metrics.get(name, ()), strict=False)
    ]
    losses, values = (np.array([pair[k] for pair in seen]) for k in (0, 1))
    if len(seen) < LEAST_EVALUATIONS or np.ptp(values) == 0 or np.ptp(losses) == 0:
        return None
    order = np.argsort(losses)
    rises = bool(np.corrcoef(np.argsort(order), np.argsort(np.argsort(values)))[0, 1] < 0)
    scale = _scale_of(values, rises, evaluated)
    counted = evaluated if scale != "plain" and _is_count(values, evaluated) else 0
    x = math.log(losses.max()) - np.log(losses)
    y = np.array([_to_scale(value, scale, counted) for value in values])
    grid = np.linspace(math.log(losses.min() / REACH), math.log(losses.max() * REACH), ROWS)
    means, sds = _smooth(x, y, math.log(losses.max()) - grid, scale, counted)
    return MetricCurve(
        name=name,
        scale=scale,
        counted=counted,
        log_losses=tuple(map(float, grid)),
        means=tuple(map(float, means)),
        sds=tuple(map(float, sds)),
        rises=rises,
        measured=(float(losses.min()), float(losses.max())),
    )


def _smooth(x: Floats, y: Floats, at: Floats, scale: Scale, counted: int) -> tuple[Floats, Floats]:
    """Mean and standard deviation at places `at`, (k,), averaged over what is not known of slopes and scatter."""
    unit, slope = (1.0, -1.0) if scale != "plain" else (float(np.std(y)), float(np.polyfit(x, y, 1)[0]))
    rest, logs, moments = y - np.mean(y) - slope * x, [], []
    bend = unit if scale != "plain" else abs(slope)
    within, across, own = (_covariance(a, b) for a, b in ((x, x), (at, x), (at, at)))
    for share in BENDS:
        for scatter in SCATTERS:
            spread = (share * bend) ** 2
            noise = np.diag((scatter * unit) ** 2 + _counting(y, counted))
            lower = np.linalg.cholesky((VAGUE * unit) ** 2 + spread * within + noise)
            white = np.linalg.solve(lower, rest)
            reach = np.linalg.solve(lower, ((VAGUE * unit) ** 2 + spread * across).T)
            variance = (VAGUE * unit) ** 2 + spread * np.diag(own) - (reach**2).sum(axis=0)
            logs.append(-0.5 * white @ white - np.log(np.diag(lower)).sum())
            moments.append((reach.T @ white, variance + (scatter * unit) ** 2))
    weights = np.exp(np.array(logs) - max(logs))
    weights /= weights.sum()
    each, variances = (np.array([moment[k] for moment in moments]) for k in (0, 1))
    mean = weights @ each
    expected = np.mean(y) + slope * at + mean
    variance = weights @ (variances + (each - mean) ** 2) + _counting(expected, counted)
    return expected, np.sqrt(variance)


def _covariance(one: Floats, other: Floats) -> Floats:
    """Of U, the integral from 0 of slopes that vary by 1 and forget over `MEMORY`."""
    a, b = one[:, None] / MEMORY, other / MEMORY
    u, v, apart = np.abs(a), np.abs(b), np.abs(a - b)
    return np.asarray(MEMORY**2 * (u + v - apart - 1.0 + np.exp(-u) + np.exp(-v) - np.exp(-apart)))


def _scale_of(values: Floats, rises: bool, evaluated: int) -> Scale:
    if rises:
        return "to one" if values.min() >= 0 and (values.max() < 1 or _is_count(values, evaluated)) else "plain"
    return "to zero" if values.min() > 0 or _is_count(values, evaluated) else "plain"


def _is_count(values: Floats, evaluated: int) -> bool:
    """Whether all are shares of so many examples."""
    counts = values * evaluated
    is_share = values.min() >= 0 and values.max() <= 1 and counts.max() >= 0.5
    return bool(is_share and np.allclose(counts, np.round(counts), rtol=0.0, atol=1e-3))


def _counting(y: Floats, counted: int) -> Floats:
    """Variance on the scale of a share that was counted over so many examples."""
    return np.asarray(COUNTED / ((counted + 1.0) * np.exp(y))) if counted else np.zeros_like(y)


def _sign_of(scale: Scale, rises: bool) -> int:
    """Whether the better side on the scale is up: a logarithm of what is left falls."""
    return 1 if scale == "plain" and rises else -1


def _to_scale(value: float, scale: Scale, counted: int) -> float:
    """What is left of a share of n examples counts as half of one at least (Haldane 1956)."""
    if scale == "plain":
        return float(value)
    left = 1.0 - value if scale == "to one" else value
    return math.log((left * counted + 0.5) / (counted + 1.0) if counted else left)


def _from_scale(y: float, scale: Scale, counted: int) -> float:
    if scale == "plain":
        return y
    left = math.exp(min(y, 700.0))
    if counted:
        left = max(0.0, (left * (counted + 1.0) - 0.5) / counted)
    return max(0.0, 1.0 - left) if scale == "to one" else left
