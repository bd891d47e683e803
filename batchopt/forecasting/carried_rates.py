"""Peak rates for long runs and large batches: what is best near to the runs that were made, carried over.

The law tells the best peak rate well at the batch sizes and lengths that ran. Far beyond them it does not: what noise a
rate leaves there depends on parameters that short runs hardly show, and it mostly takes rates that are too low. In the
sweeps of eleven problems the best rate rises with a power of the batch size that depends on the kind of optimizer, and
changes less with the length of a run, in either direction. So batch size and schedule are the law's choice, and its
peak rate is moved to within a factor of what that says.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from batchopt.forecasting.horizons import rates_for, schedule_of
from batchopt.forecasting.posterior import UNTRIED, LossPosterior
from batchopt.learning_rate_schedule import Shape
from batchopt.planning.choice import DIVERGED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from batchopt.forecasting.single_run import SingleRun

    Floats = NDArray[np.float64]

EXPONENTS, EXPONENTS_ADAPTIVE = (0.65, 0.15), (0.25, 0.05)
"""Powers of the batch size with which the best peak rate rises up to the critical batch size and beyond it, for SGD and
for optimizers that divide by the size of the gradient: means over the sweeps, whose deviations are 0.2 up to it
(`benchmarks/rate_slopes.py`). The powers of the length of a run differ more than they amount to for SGD (-0.1 +- 0.3
and 0.2 +- 0.25); with -0.2 for the others (-0.20 +- 0.16 and -0.15 +- 0.11) plans of small probes were no better."""
NEAR = 1.5
"""Factor to both sides of the carried rate within which the law chooses (ablation in `benchmarks/README.md`)."""
FAR_BEYOND = 20.0
"""A planned run that is so many times as long as the probe's longest takes its rate from the task's prior, if there is
one: of 3, 5, 10 and 20 this lost least after probes of one run, when plans were not near carried rates yet."""
NEAR_PRIOR = 2.0
"""The factor for that rate, which its user knows less exactly."""
PARTS = 4
"""Where the law does not expect a run at the carried rate to arrive, the rate is moved by so many parts, one less each
time."""


@dataclass(frozen=True, slots=True)
class KnownRate:
    """A peak rate that is good at a batch size, and how good ones rise with the batch size.

    Attributes:
        batch_size: examples per step.
        learning_rate: peak rate there.
        critical: critical batch size.
        exponents: powers of the batch size up to that and beyond.
        within: factor to both sides of the rate that is as good, as far as anybody knows.
        is_prior: whether it is the task's prior; else it is the law's.
    """

    batch_size: int
    learning_rate: float
    critical: float
    exponents: tuple[float, float]
    within: float = NEAR
    is_prior: bool = False

    def carried_to(self, batch_size: int) -> float:
        """The rate that is as good at another batch size."""
        return self.learning_rate * math.exp(self._log_height(batch_size) - self._log_height(self.batch_size))

    def _log_height(self, batch_size: int) -> float:
        below, beyond = self.exponents
        return below * math.log(min(batch_size, self.critical)) + beyond * math.log(max(batch_size, self.critical))

    def trusted_by(self, law: LossPosterior) -> LossPosterior:
        """The law, of rates up to the task's prior as it is of those that ran well."""
        return replace(law, highest_rate=max(law.highest_rate, self.learning_rate)) if self.is_prior else law

    def in_words(self, batch_size: int, learning_rate: float) -> str:
        """Where the peak rate of a plan comes from."""
        source = "the task's prior, as the run is far longer than the probe's"
        source = source if self.is_prior else "the best that the runs show"
        middle = self.carried_to(batch_size)
        there = "" if batch_size == self.batch_size else f", which is {middle:.3g} carried over to {batch_size}"
        told = f"{source}: {self.learning_rate:.3g} at batch size {self.batch_size}{there}"
        if abs(math.log(learning_rate / middle)) <= math.log(self.within) + 1e-9:
            return f"The peak learning rate is within a factor of {self.within:g} of {told}."
        return (
            f"The peak learning rate is further than a factor of {self.within:g} from {told}. At a rate that is nearer "
            "the law expects that no run arrives, or that none is stable."
        )


class KnownRates:
    """What is known of the peak rates of planned runs.

    Args:
        law: what is believed.
        prior: the task's (batch size, rate) that works.
        warmup_examples: of runs; None for a share of them.
        critical: critical batch size; None where no trade-off shows, and the law's largest batch size counts as that.
    """

    def __init__(
        self, law: LossPosterior, prior: tuple[int, float] | None, warmup_examples: int | None, critical: float | None
    ) -> None:
        self.law, self.prior, self.warmup_examples, self.critical = law, prior, warmup_examples, critical
        self._best: dict[Shape, KnownRate | None] = {}

    def of(self, shape: Shape, horizon: float) -> KnownRate | None:
        """Of a run over a horizon; None where the rate does not decay: the best one then falls as runs get longer."""
        if shape not in self._best:
            self._best[shape] = self._best_near(shape)
        best = self._best[shape]
        if best is not None and self.prior is not None and horizon > FAR_BEYOND * self.law.longest:
            size, rate = self.prior
            return replace(best, batch_size=size, learning_rate=rate, within=NEAR_PRIOR, is_prior=True)
        return best

    def at(
        self,
        shape: Shape,
        horizon: float,
        batch_size: int,
        learning_rate: float,
        run: Callable[[LossPosterior, float], SingleRun | None],
    ) -> SingleRun | None:
        """A run whose rate is moved as near as may be to what is known; None where none arrives.

        Args:
            shape: of the learning-rate schedule.
            horizon: examples of the run, roughly.
            batch_size: of the run.
            learning_rate: the law's choice.
            run: looks at a rate closely, by a law; None where the run is more likely not to arrive.
        """
        known = self.of(shape, horizon)
        found = self._moved(known, batch_size, learning_rate, run)
        if found is not None and (longer := self.of(shape, max(horizon, found.horizon))) != known:
            return self._moved(longer, batch_size, learning_rate, run) or found
        return found

    def _moved(
        self,
        known: KnownRate | None,
        batch_size: int,
        learning_rate: float,
        run: Callable[[LossPosterior, float], SingleRun | None],
    ) -> SingleRun | None:
        if known is None:
            return run(self.law, learning_rate)
        law, middle = known.trusted_by(self.law), known.carried_to(batch_size)
        wanted = min(max(learning_rate, middle / known.within), middle * known.within)
        wanted = min(wanted, max(learning_rate, UNTRIED * law.highest_rate))
        for part in np.linspace(1.0, 0.0, PARTS + 1):
            found = run(law, learning_rate * (wanted / learning_rate) ** float(part))
            if found is not None or wanted == learning_rate:
                return None if found is None else replace(found, known=known)
        return None

    def _best_near(self, shape: Shape) -> KnownRate | None:
        """What the law takes for the best at its largest batch size and the length of its longest run."""
        law = self.law
        size, horizon = law.batch_sizes[1], law.longest
        schedule = schedule_of(shape, horizon, self.warmup_examples)
        if schedule.multipliers[-1] >= max(schedule.multipliers):
            return None
        rates = rates_for(law, [size])[0]
        count = len(rates)
        losses = law.losses_at_end([size] * count, rates, [schedule] * count, [horizon] * count)
        mean = np.mean(np.minimum(losses, math.log(DIVERGED * law.initial_loss)), axis=0)
        exponents = EXPONENTS_ADAPTIVE if law.is_adaptive else EXPONENTS
        return KnownRate(size, float(rates[int(np.argmin(mean))]), self.critical or size, exponents)
