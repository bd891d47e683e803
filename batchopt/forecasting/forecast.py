"""The forecast: what the runs of a probe, or others, say about the rest of the training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from batchopt._checks import check_count, check_increasing, check_positive
from batchopt._codec import Record, Upgrade, gained
from batchopt.errors import EvidenceError, UnreachableGoalError
from batchopt.evidence import Branch, ProbeReport
from batchopt.forecasting.constant import ConstantForecast
from batchopt.forecasting.decaying import DecayingForecast
from batchopt.forecasting.fitting import fitted
from batchopt.forecasting.forecast_plan import plan_for
from batchopt.forecasting.gathered import gather
from batchopt.forecasting.horizons import schedule_of
from batchopt.forecasting.in_words import in_words
from batchopt.forecasting.law import LawPosterior
from batchopt.forecasting.metric_curve import MetricCurve, curve_of
from batchopt.forecasting.noise_trend import NoiseTrend
from batchopt.forecasting.overfitting import TurnedUp, held_back
from batchopt.forecasting.posterior import LossPosterior
from batchopt.forecasting.read_outs import (
    best_rate,
    check_reached,
    critical_ratio,
    hyperbola_to,
    losses_after,
    shared_ends,
    steps_needed,
)
from batchopt.forecasting.single_run import estimate_of, of_draws
from batchopt.learning_rate_schedule import LearningRateSchedule, Shape, check_shape, function_of
from batchopt.planning.goal import Goal
from batchopt.step_cost import StepCost
from batchopt.uncertainty import Estimate, from_positive_draws

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from batchopt.planning.plan import Plan

    Floats = NDArray[np.float64]

LOCAL = 0.15
"""Half the distance in log loss over which a local trade-off is read: over less, differences between best rates of a
grid show."""


@dataclass(frozen=True, slots=True)
class Forecast(Record):
    """What any run of the training is predicted to take, whatever its batch size, learning rate and schedule.

    Every read-out comes from the draws of one posterior (`LossPosterior`), so they agree with each other. Read-outs are
    of runs whose learning rate decays unless told otherwise: by the task's own schedule, or else by wsd (warm-up,
    stable part, linear decay over the last fifth). A loss is reached at the end of the decay. Rates are peak rates.

    Do not trust the level of a loss beyond about five times the horizon of the longest run: it is off by more
    than its interval says. The choice of settings carries further. A rate above twice the highest that ran well, or
    above one that diverged, is expected to diverge, and never planned.

    Attributes:
        law: the law of the loss, with its posterior.
        constant_law: the law that a search uses, of constant rates; None where no two runs kept their rate.
        noise_trend: noise scale over loss; None where fewer than two readings were resolved.
        step_cost: measured seconds per step; None without a probe that got to it.
        batch_size_limit: largest batch size that plans use unless told otherwise (memory, data, what was probed).
        warmup_examples: the task's, cut to a fifth of shorter horizons (a plan says so where it is); None where it has
            none, and a twentieth of the horizon is taken.
        task_schedule: the task's own learning-rate schedule, a name or multipliers at even progress; None if it has
            none.
        doubts: what speaks against trusting it, in sentences.
        metrics: how the task's metrics go with the loss; those of which the probe's evaluations tell it.
        parameters: of the model that was probed; None without a probe.
        population: examples of an epoch; None for a stream, or where nothing tells.
        overfits_below: the lowest loss that was evaluated, where the losses of training batches went below it in later
            passes over the data, or it turned up; None where neither is so. What a plan says of a loss below is not
            resolved.
        turned_up: where evaluated losses rose while those of training batches fell; None where they did not. No plan
            then promises a loss below the lowest that was evaluated.
        prior: the task's (batch size, learning rate) that works, if the probe did not find otherwise: plans of runs
            more than twenty times as long as the probe's longest take a rate within a factor of two of it, carried over
            to their batch size.
    """

    SCHEMA: ClassVar[str] = "batchopt.forecast/6"
    OLDER: ClassVar[Mapping[str, Upgrade]] = {
        "batchopt.forecast/5": gained("metrics", "parameters", "population", "overfits_below", "turned_up", "prior")
    }
    REMEDY_OF_OLDER: ClassVar[str] = "its law is an older one: forecast again from its probe"

    law: LossPosterior
    constant_law: LawPosterior | None
    noise_trend: NoiseTrend | None
    step_cost: StepCost | None
    batch_size_limit: int
    warmup_examples: int | None
    task_schedule: str | tuple[float, ...] | None
    doubts: tuple[str, ...]
    metrics: tuple[MetricCurve, ...] = ()
    parameters: int | None = None
    population: int | None = None
    overfits_below: float | None = None
    turned_up: TurnedUp | None = None
    prior: tuple[int, float] | None = None

    __str__ = in_words

    @classmethod
    def fit(
        cls,
        report: ProbeReport | None = None,
        *,
        runs: Sequence[Branch] = (),
        initial_loss: float | None = None,
        adaptive: bool | None = None,
        seed: int = 0,
    ) -> Forecast:
        """Fit a forecast to a probe, to runs that you already have, or to both.

        Without a probe nothing was timed and no noise scale measured: a plan for the least seconds then needs a
        `StepCost`. Runs must be of one model, data set and optimizer; what they don't show is among the doubts. Where
        none of them failed, stability is taken to end between the highest rate that ran well and twice that.

        Args:
            report: of a probe; its noise scales are evidence beside its runs.
            runs: trained before, as `logged_run` and `read_runs` make them; beside a probe, of the same task and loss.
            initial_loss: of the untrained model; if None, the probe's, or that with which the runs begin.
            adaptive: whether the optimizer divides by the size of the gradient, as Adam does; if None, as the probe
                says.
            seed: of the posterior's draws.

        Raises:
            EvidenceError: there are fewer than two usable loss curves, or the runs do not belong together.
            ValueError: there is neither a probe nor a run.

        Example:
            >>> from batchopt import ReachLoss, logged_run
            >>> steps = [0, 50, 100, 200, 400, 600, 800, 900, 1_000]
            >>> def run(size):
            ...     losses = [2.3 * (1 + step * size**0.5 / 100) ** -0.4 for step in steps]
            ...     kept = {"learning_rate_schedule": "linear", "horizon": 1_000 * size}
            ...     return logged_run(batch_size=size, learning_rate=0.1, steps=steps, losses=losses, **kept)
            >>> forecast = Forecast.fit(runs=[run(16), run(64)], adaptive=False)
            >>> plan = forecast.plan(ReachLoss(0.5, StepCost(per_step=2e-3, per_example=1e-5)))
            >>> 4 <= plan.batch_size <= 128, forecast.noise_trend is None
            (True, True)
        """
        known = gather(report, runs, initial_loss=initial_loss, adaptive=adaptive)
        return fitted(cls, known, report, seed=seed)

    @property
    def initial_loss(self) -> float:
        """Loss at initialisation."""
        return self.law.initial_loss

    @property
    def constant(self) -> ConstantForecast:
        """What a search whose trials keep their learning rate starts from.

        Raises:
            EvidenceError: no two runs kept their rate.
        """
        if self.constant_law is None:
            raise EvidenceError(
                "no two of the forecast's runs kept their learning rate, so it can't tell what trials that do would "
                'take: say how their rate decays, learning_rate_schedule="cosine" for example'
            )
        return ConstantForecast(self.constant_law, self.step_cost, self.batch_size_limit)

    @property
    def decaying(self) -> DecayingForecast:
        """The same where the learning rate of trials decays."""
        return DecayingForecast(self.law.alone, self.step_cost)

    @property
    def lowest_observed_loss(self) -> float:
        """Lowest loss that any run reached; everything below is extrapolation."""
        return self.law.lowest_loss

    def critical_batch_size(self, loss: float, *, learning_rate_schedule: Shape | Literal["auto"] = "auto") -> Estimate:
        """B_crit = E_min / S_min of the trade-off from initialisation to a loss (McCandlish et al. 2018, eq. 2.12).

        At B_crit training takes twice the fewest steps and twice the fewest examples, each batch size at the peak rate
        and the horizon with which it ends at that loss soonest.

        Args:
            loss: below the initial loss.
            learning_rate_schedule: "constant", "linear", "cosine", "wsd", a function of progress, or "auto": the task's
                own, else "wsd".

        Returns:
            Examples, with the interval of the expectation over seeds.

        Raises:
            UnreachableGoalError: the best guess never reaches the loss, or shows no trade-off.
            ValueError: the loss is not below the initial loss, or the schedule is none of these.
        """
        self._check_loss(loss)
        steps_min, examples_min = self._hyperbola(loss, self._shape(learning_rate_schedule))
        return critical_ratio(examples_min, steps_min, loss, lowest_observed=self.lowest_observed_loss)

    def local_critical_batch_size(
        self, loss: float, *, learning_rate_schedule: Shape | Literal["auto"] = "auto"
    ) -> Estimate:
        """dE_min / dS_min at a loss: the critical batch size of the training that happens there.

        Arguments, units and errors as for `critical_batch_size`.
        """
        self._check_loss(loss)
        shape = self._shape(learning_rate_schedule)
        below = self._hyperbola(loss * math.exp(-LOCAL), shape)
        above = self._hyperbola(min(loss * math.exp(LOCAL), 0.999 * self.initial_loss), shape)
        with np.errstate(invalid="ignore"):
            examples, steps = below[1] - above[1], below[0] - above[0]
        return critical_ratio(examples, steps, loss, lowest_observed=self.lowest_observed_loss)

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

    def metric(self, name: str, loss: float | Estimate) -> Estimate:
        """A metric of the task at a loss, known or predicted, with the interval of a single run.

        Raises:
            EvidenceError: the probe's evaluations do not tell it.
        """
        return curve_of(self.metrics, name, self.doubts)(loss)

    def learning_rate(
        self, batch_size: int, loss: float, *, learning_rate_schedule: Shape | Literal["auto"] = "auto"
    ) -> Estimate:
        """The peak rate with which a batch size ends at a loss after the fewest examples.

        Args:
            batch_size: examples per step.
            loss: below the initial loss.
            learning_rate_schedule: as for `critical_batch_size`.

        Raises:
            UnreachableGoalError: the best guess never reaches the loss.
        """
        self._check_loss(loss)
        check_count("batch_size", batch_size)
        sizes = (float(batch_size),)
        ends = shared_ends(self.law, self._shape(learning_rate_schedule), sizes, self.warmup_examples)
        needed = ends.examples_to(loss)[:, 0]
        check_reached(needed[0].min(), batch_size, loss)
        return from_positive_draws(best_rate(ends.learning_rates[0], needed))

    def steps(
        self,
        batch_size: int,
        learning_rate: float,
        loss: float,
        *,
        learning_rate_schedule: Shape | Literal["auto"] = "auto",
    ) -> Estimate:
        """Steps of the shortest run that ends at a loss: a single run, so its scatter over seeds is in the interval.

        Args:
            batch_size: examples per step.
            learning_rate: the peak rate.
            loss: below the initial loss.
            learning_rate_schedule: as for `critical_batch_size`.

        Raises:
            UnreachableGoalError: the best guess never reaches the loss, or the run diverges.
        """
        self._check_loss(loss)
        check_count("batch_size", batch_size)
        check_positive("learning_rate", learning_rate)
        shape, warmup = self._shape(learning_rate_schedule), self.warmup_examples
        return steps_needed(self.law, shape, batch_size, learning_rate, loss, warmup_examples=warmup)

    def loss(
        self,
        batch_size: int,
        learning_rate: float,
        examples: float,
        *,
        learning_rate_schedule: Shape | Literal["auto"] = "auto",
    ) -> Estimate:
        """Loss at the end of a run of so many examples: of a single run, its scatter over seeds in the interval.

        Not resolved below `overfits_below`, and where the evaluated loss turned up not below that either.

        Args:
            batch_size: examples per step.
            learning_rate: the peak rate.
            examples: the horizon.
            learning_rate_schedule: as for `critical_batch_size`.

        Raises:
            UnreachableGoalError: the run is expected to diverge.
        """
        check_count("batch_size", batch_size)
        check_positive("learning_rate", learning_rate)
        check_positive("examples", examples)
        schedule = schedule_of(self._shape(learning_rate_schedule), examples, self.warmup_examples)
        log_losses = self.law.losses_at_end([batch_size], [learning_rate], [schedule], [examples])
        if not np.isfinite(np.median(of_draws(log_losses))):
            setting = f"batch size {batch_size} at learning rate {learning_rate:.3g}"
            raise UnreachableGoalError(f"{setting} is expected to diverge")
        return held_back(estimate_of(np.exp(self.law.scattered_losses(log_losses))[:, 0]), self, examples)

    def losses_along(
        self,
        batch_size: int,
        learning_rate: float,
        examples: Sequence[float],
        *,
        learning_rate_schedule: Shape | Literal["auto"] | LearningRateSchedule | None = None,
    ) -> tuple[float, ...]:
        """Best guess of the losses along a run, after each number of examples, by the law alone (see `turned_up`).

        Args:
            batch_size: examples per step.
            learning_rate: the peak rate.
            examples: rising, positive, (k,).
            learning_rate_schedule: as for `critical_batch_size`, over a run that ends at the last of the examples; or
                the `LearningRateSchedule` of a run (`Schedule.learning_rate_schedule`); None for a constant rate.

        Returns:
            Losses, (k,); of a rate that is too high as well, where `loss` raises.
        """
        check_count("batch_size", batch_size)
        check_positive("learning_rate", learning_rate)
        if not len(examples):
            raise ValueError("examples must be one number at least, got none")
        check_increasing("examples", examples)
        check_positive("the first of examples", examples[0])
        rates = learning_rate_schedule
        if rates is not None and not isinstance(rates, LearningRateSchedule):
            rates = schedule_of(self._shape(rates), examples[-1], self.warmup_examples)
        return losses_after(self.law, batch_size, learning_rate, rates, examples)

    def plan(
        self,
        goal: Goal,
        *,
        learning_rate_schedule: Shape | Literal["auto"] = "auto",
        batch_sizes: tuple[int, int] | None = None,
        multiple_of: int = 1,
        step_cost: StepCost | None = None,
    ) -> Plan:
        """The batch size, peak rate, horizon and decay that serve a goal best, and what they are predicted to take.

        Args:
            goal: what is wanted. `ReachLoss` and `ReachMetric` mean at the end of the decay, and the horizon is chosen;
                `LowestLoss` and `BestMetric` have it given by the budget.
            learning_rate_schedule: "constant", "linear", "cosine", "wsd", a function of progress, or "auto": the task's
                own, else "wsd", which took fewer examples than the others in all sweeps that have them.
            batch_sizes: smallest and largest batch size to consider; up to `batch_size_limit` if None.
            multiple_of: batch sizes are multiples of this.
            step_cost: seconds per step, in place of the measured one.

        Raises:
            UnreachableGoalError: no batch size within the bounds reaches the goal.
            EvidenceError: the goal needs a step cost and there is none.
        """
        return plan_for(
            self,
            goal,
            shape=self._shape(learning_rate_schedule),
            batch_sizes=batch_sizes,
            multiple_of=multiple_of,
            step_cost=step_cost,
        )

    def _shape(self, asked: Shape | Literal["auto"]) -> Shape:
        if asked != "auto":
            check_shape(asked)
            return asked
        own = self.task_schedule or "wsd"
        return own if isinstance(own, str) else function_of(own)  # type: ignore[return-value]

    def _hyperbola(self, loss: float, shape: Shape) -> tuple[Floats, Floats]:
        return hyperbola_to(self.law, loss, shape, warmup_examples=self.warmup_examples)

    def _check_loss(self, loss: float) -> None:
        check_positive("loss", loss)
        if loss >= self.initial_loss:
            raise ValueError(f"loss must lie below the initial loss {self.initial_loss:.4g}, got {loss:.4g}")
