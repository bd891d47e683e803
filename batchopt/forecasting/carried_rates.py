"""Peak rates for long runs and large batches: what is best near to the runs that were made, carried over.

The law tells the best peak rate well at the batch sizes and lengths that ran. Far beyond them it does not: what noise a
rate leaves there depends on parameters that short runs hardly show, and it mostly takes rates that are too low. In the
sweeps of eleven problems the best rate changes little with the length of a run, and rises with a power of the batch
size that depends on the kind of optimizer. So batch size and schedule are the law's choice, and its peak rate is moved
to within a factor of what that says.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from batchopt.forecasting.horizons import rates_for, schedule_of
from batchopt.forecasting.posterior import UNTRIED, LossPosterior
from batchopt.learning_rate_schedule import Shape
from batchopt.planning.choice import DIVERGED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_Run = TypeVar("_Run")

EXPONENTS, EXPONENTS_ADAPTIVE = (0.65, 0.15), (0.25, 0.05)
"""Powers of the batch size with which the best peak rate rises up to the critical batch size and beyond it, for SGD and
for optimizers that divide by the size of the gradient: means over the sweeps, whose deviations are 0.2 up to it
(`benchmarks/rate_slopes.py`). The power of the length of a run is -0.1 and -0.2, with deviations of 0.3 and 0.2: it is
left out."""
NEAR = 1.5
"""Factor to both sides of the carried rate within which the law chooses (ablation in `benchmarks/README.md`)."""
FAR_BEYOND = 20.0
"""A planned run that is so many times as long as the probe's longest takes its rate from the task's prior, if there is
one: of 3, 5, 10 and 20 this lost least after probes of one run, and nothing after smaller ones."""
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

    def in_words(self, batch_size: int) -> str:
        """Where the peak rate of a plan comes from."""
        source = "the task's prior, as the run is far longer than the probe's"
        source = source if self.is_prior else "what the runs show to be best"
        told = f"The peak learning rate keeps near {source}: {self.learning_rate:.3g} at batch size {self.batch_size}"
        if batch_size == self.batch_size:
            return f"{told}."
        return f"{told}, which becomes {self.carried_to(batch_size):.3g} at {batch_size}."


@dataclass(frozen=True)
class KnownRates:
    """What is known of the peak rates of planned runs.

    Attributes:
        law: what is believed.
        prior: the task's (batch size, rate) that works.
        warmup_examples: of runs; None for a share of them.
        critical: critical batch size; None where no trade-off shows, and the law's largest batch size counts as that.
    """

    law: LossPosterior
    prior: tuple[int, float] | None
    warmup_examples: int | None
    critical: float | None
    _best: dict[Shape, KnownRate] = field(default_factory=dict)

    def of(self, shape: Shape, horizon: float) -> KnownRate | None:
        """Of a run over a horizon; None at a constant rate, where the best one falls as runs get longer."""
        if shape == "constant":
            return None
        if shape not in self._best:
            self._best[shape] = self._best_near(shape)
        best = self._best[shape]
        if self.prior is not None and horizon > FAR_BEYOND * self.law.longest:
            size, rate = self.prior
            return replace(best, batch_size=size, learning_rate=rate, within=NEAR_PRIOR, is_prior=True)
        return best

    def at(
        self,
        shape: Shape,
        horizon: float,
        batch_size: int,
        learning_rate: float,
        run: Callable[[LossPosterior, float], _Run | None],
    ) -> _Run | None:
        """A run whose rate is moved as near as may be to what is known; None where none arrives.

        Args:
            shape: of the learning-rate schedule.
            horizon: examples of the run, roughly.
            batch_size: of the run.
            learning_rate: the law's choice.
            run: looks at a rate closely, by a law; None where the run is more likely not to arrive.
        """
        law, known = self.law, self.of(shape, horizon)
        if known is None:
            return run(law, learning_rate)
        if known.is_prior:  # as if a run had done well there
            law = replace(law, highest_rate=max(law.highest_rate, known.learning_rate))
        middle = known.carried_to(batch_size)
        wanted = min(max(learning_rate, middle / known.within), middle * known.within)
        wanted = min(wanted, max(learning_rate, UNTRIED * law.highest_rate))
        for part in np.linspace(1.0, 0.0, PARTS + 1):
            found = run(law, learning_rate * (wanted / learning_rate) ** float(part))
            if found is not None or wanted == learning_rate:
                return found
        return None

    def _best_near(self, shape: Shape) -> KnownRate:
        """What the law takes for the best at its largest batch size and the length of its longest run."""
        law = self.law
        size, horizon = law.batch_sizes[1], law.longest
        rates = rates_for(law, [size])[0]
        count, schedule = len(rates), schedule_of(shape, horizon, self.warmup_examples)
        losses = law.losses_at_end([size] * count, rates, [schedule] * count, [horizon] * count)
        mean = np.mean(np.minimum(losses, math.log(DIVERGED * law.initial_loss)), axis=0)
        exponents = EXPONENTS_ADAPTIVE if law.is_adaptive else EXPONENTS
        return KnownRate(size, float(rates[int(np.argmin(mean))]), self.critical or size, exponents)
