"""The forecast: what a probe says about the rest of the training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from batchopt._checks import check_count, check_positive
from batchopt._codec import Record
from batchopt.errors import EvidenceError, UnreachableGoalError
from batchopt.evidence import ProbeReport
from batchopt.forecasting.law import LawPosterior
from batchopt.forecasting.law_fit import fit_law
from batchopt.forecasting.misfit import NoiseReading
from batchopt.forecasting.noise_trend import NoiseTrend, fit_noise_trend, log_standard_error
from batchopt.forecasting.planner import make_plan
from batchopt.step_cost import StepCost
from batchopt.uncertainty import Estimate, from_positive_draws

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from batchopt.planning.goal import LowestLoss, ReachLoss
    from batchopt.planning.plan import Plan

    Floats = NDArray[np.float64]

HARDLY_FELL = 0.97
"""A loss that stays above this share of the initial one is not progress."""
DISAGREEMENT = 3.0
"""Where the fits with and without the noise scales differ by more, one of them is wrong."""


@dataclass(frozen=True, slots=True)
class Forecast(Record):
    """Critical batch size, learning rate and steps over the whole training, with 90 % intervals.

    Every read-out comes from one law fitted to all runs of the probe (`LawPosterior`), so they agree with each other.
    Do not trust it far beyond the lowest observed loss, nor for a learning rate that decays: the law is of constant
    rates and leaves the probe's cooldowns out, and a decay reaches a loss in other steps.

    Attributes:
        law: the law with its posterior.
        noise_trend: noise scale over loss; None where fewer than two readings were resolved.
        step_cost: measured seconds per step; None if the probe did not get to it.
        batch_size_limit: largest batch size that plans use unless told otherwise (memory, data, what was probed).
        learning_rate_range: lowest and highest learning rate that plans use.
        doubts: what speaks against trusting it, in sentences.
    """

    SCHEMA: ClassVar[str] = "batchopt.forecast/1"

    law: LawPosterior
    noise_trend: NoiseTrend | None
    step_cost: StepCost | None
    batch_size_limit: int
    learning_rate_range: tuple[float, float]
    doubts: tuple[str, ...]

    @classmethod
    def fit(cls, report: ProbeReport, *, seed: int = 0) -> Forecast:
        """Fit a forecast to a probe.

        Raises:
            EvidenceError: the probe left fewer than two usable loss curves of constant learning rates.
        """
        trend = fit_noise_trend([reading for reading in report.noise_scales if reading.kind == "simple"])
        runs = [branch for branch in report.runs if branch.is_constant]  # the law knows no other rates
        law = fit_law(
            runs,
            noise=_readings(report),
            initial_loss=report.initial_loss,
            adaptive=report.provenance.adaptive,
            delay=report.provenance.delay,
            seed=seed,
        )
        rates = [branch.learning_rate for branch in runs if branch.outcome != "diverged"]
        forecast = cls(
            law=law,
            noise_trend=trend,
            step_cost=report.step_cost,
            batch_size_limit=_batch_size_limit(report),
            learning_rate_range=(min(rates) / 16.0, max(rates) * 16.0),
            doubts=(),
        )
        doubts = (*_report_doubts(report), *_fit_doubts(forecast))
        return cls(law, trend, report.step_cost, forecast.batch_size_limit, forecast.learning_rate_range, doubts)

    @property
    def initial_loss(self) -> float:
        """Loss at initialisation."""
        return self.law.initial_loss

    @property
    def lowest_observed_loss(self) -> float:
        """Lowest loss that any run of the probe reached; everything below is extrapolation."""
        return self.law.lowest_loss

    def critical_batch_size(self, loss: float) -> Estimate:
        """B_crit = E_min / S_min of the trade-off from initialisation to a loss (McCandlish et al. 2018, eq. 2.12).

        At B_crit training takes twice the fewest steps and twice the fewest examples, each batch size at the best
        constant learning rate for that loss.

        Args:
            loss: below the initial loss.

        Raises:
            UnreachableGoalError: the best guess never reaches the loss.
        """
        self._check_loss(loss)
        steps_min, examples_min = self.law.hyperbola(loss)
        return self._ratio(examples_min, steps_min, loss)

    def local_critical_batch_size(self, loss: float) -> Estimate:
        """dE_min / dS_min at a loss: the critical batch size of the training that happens there."""
        self._check_loss(loss)
        below = self.law.hyperbola(loss * math.exp(-0.05))
        above = self.law.hyperbola(min(loss * math.exp(0.05), 0.999 * self.initial_loss))
        with np.errstate(invalid="ignore"):
            return self._ratio(below[1] - above[1], below[0] - above[0], loss)

    def noise_scale(self, loss: float) -> Estimate:
        """Gradient noise scale at a loss, carried beyond the readings by the regression.

        Raises:
            EvidenceError: fewer than two readings were resolved.
        """
        if self.noise_trend is None:
            raise EvidenceError(
                "fewer than two noise scales were resolved, so there is no trend: probe with more examples"
            )
        return self.noise_trend(loss)

    def learning_rate(self, batch_size: int, loss: float) -> Estimate:
        """The constant learning rate with which a batch size reaches a loss in the fewest steps."""
        self._check_loss(loss)
        check_count("batch_size", batch_size)
        rates = self.law.best_steps([float(batch_size)], loss)[1][:, 0]
        return from_positive_draws(rates)

    def steps(self, batch_size: int, learning_rate: float, loss: float) -> Estimate:
        """Steps from initialisation to a loss.

        Raises:
            UnreachableGoalError: the best guess never reaches the loss, or the run diverges.
        """
        self._check_loss(loss)
        check_count("batch_size", batch_size)
        check_positive("learning_rate", learning_rate)
        steps = self.law.steps_to([float(batch_size)], [learning_rate], loss)[:, 0]
        if not math.isfinite(steps[0]):
            raise UnreachableGoalError(
                f"batch size {batch_size} at learning rate {learning_rate:.3g} "
                f"is not predicted to reach loss {loss:.4g}"
            )
        return from_positive_draws(steps)

    def loss(self, batch_size: int, learning_rate: float, examples: float) -> Estimate:
        """Loss after a number of examples from initialisation.

        Raises:
            UnreachableGoalError: the run is expected to diverge.
        """
        check_count("batch_size", batch_size)
        check_positive("learning_rate", learning_rate)
        check_positive("examples", examples)
        losses = self.law.losses_at([float(batch_size)], [learning_rate], [examples])[:, 0]
        if not math.isfinite(losses[0]):
            raise UnreachableGoalError(
                f"batch size {batch_size} at learning rate {learning_rate:.3g} is expected to diverge"
            )
        return from_positive_draws(losses)

    def plan(
        self,
        goal: ReachLoss | LowestLoss,
        *,
        batch_sizes: tuple[int, int] | None = None,
        multiple_of: int = 1,
        step_cost: StepCost | None = None,
    ) -> Plan:
        """The batch size and learning rate that serve a goal best, and what they are predicted to take.

        Args:
            goal: what is wanted.
            batch_sizes: smallest and largest batch size to consider; up to `batch_size_limit` if None.
            multiple_of: batch sizes are multiples of this.
            step_cost: seconds per step, in place of the measured one.

        Raises:
            UnreachableGoalError: no batch size within the bounds reaches the goal.
            EvidenceError: the goal needs a step cost and there is none.
        """
        return make_plan(
            self.law,
            goal,
            bounds=batch_sizes or (1, self.batch_size_limit),
            multiple_of=multiple_of,
            measured=step_cost or self.step_cost,
            learning_rates=self.learning_rate_range,
            critical_batch_size=self.critical_batch_size,
            doubts=self.doubts,
        )

    def _check_loss(self, loss: float) -> None:
        check_positive("loss", loss)
        if loss >= self.initial_loss:
            raise ValueError(f"loss must lie below the initial loss {self.initial_loss:.4g}, got {loss:.4g}")

    def _ratio(self, examples: Floats, steps: Floats, loss: float) -> Estimate:
        if not (np.isfinite(examples[0]) and np.isfinite(steps[0])):
            raise UnreachableGoalError(
                f"loss {loss:.4g} is beyond what the forecast reaches "
                f"(lowest observed: {self.lowest_observed_loss:.4g})"
            )
        good = np.isfinite(examples) & np.isfinite(steps) & (steps > 0) & (examples > 0)
        ratios = np.where(good, examples / np.where(good, steps, 1.0), np.inf)
        return from_positive_draws(ratios)


def _readings(report: ProbeReport) -> list[NoiseReading]:
    """Resolved noise scales of all kinds."""
    readings = []
    for scale in report.noise_scales:
        if scale.resolved and scale.at is not None and scale.at.loss > 0:
            error = log_standard_error(scale.batch_size)
            readings.append(NoiseReading(scale.kind, scale.at.loss, math.log(scale.batch_size.value), error))
    return readings


def _batch_size_limit(report: ProbeReport) -> int:
    """Eight times the largest batch that was tried, within memory and the data set."""
    limits = [8 * max(branch.batch_size for branch in report.runs)]
    if report.step_cost is not None and report.step_cost.largest_batch_size is not None:
        limits.append(report.step_cost.largest_batch_size)
    if report.provenance.population is not None:
        limits.append(report.provenance.population)
    return min(limits)


def _report_doubts(report: ProbeReport) -> list[str]:
    doubts = []
    if report.stopped is not None:
        doubts.append(f"The probe stopped before its plan was done: {report.stopped}.")
    unresolved = sum(1 for reading in report.noise_scales if not reading.resolved)
    if unresolved:
        doubts.append(f"{unresolved} of {len(report.noise_scales)} noise scales are unresolved.")
    if len({branch.batch_size for branch in report.runs if branch.outcome != "diverged"}) < 2:
        doubts.append("Only one batch size was run, so the critical batch size rests on the noise scale alone.")
    return doubts


def _fit_doubts(forecast: Forecast) -> list[str]:
    """Whether the two halves of the draws (with the noise scales and without) agree at the lowest observed loss."""
    if forecast.lowest_observed_loss > HARDLY_FELL * forecast.initial_loss:
        return [
            f"The losses hardly fell: the lowest was {forecast.lowest_observed_loss:.4g} "
            f"of {forecast.initial_loss:.4g} at initialisation, which tells nothing of the trade-off."
        ]
    loss = min(forecast.lowest_observed_loss, 0.9 * forecast.initial_loss)
    try:
        estimate = forecast.critical_batch_size(loss)
    except UnreachableGoalError:
        return ["The fitted curve of loss over progress does not reach the lowest observed loss."]
    doubts = []
    if not estimate.resolved:
        doubts.append(f"The critical batch size at the lowest observed loss is unresolved: {estimate}.")
    if forecast.noise_trend is not None:
        ratio = _disagreement(forecast.law, loss)
        if ratio > DISAGREEMENT:
            doubts.append(
                f"Fits with and without the noise scales disagree by a factor of {ratio:.1f}: take neither as known."
            )
    return doubts


def _disagreement(law: LawPosterior, loss: float) -> float:
    steps_min, examples_min = law.hyperbola(loss)
    half = (len(steps_min) - 1) // 2
    with np.errstate(invalid="ignore"):
        logs = np.log(examples_min[1:] / steps_min[1:])
    apart = np.nanmedian(logs[:half]) - np.nanmedian(logs[half:])
    return float(np.exp(abs(apart)))
