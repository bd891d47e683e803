"""The gradient noise scale: its record and its estimator.

Notation (McCandlish et al. 2018, arXiv 1812.06162)
    G        mean gradient over the data, (n_params,)        -> signal = |G|^2
    Sigma    per-example gradient covariance                 -> noise  = tr(Sigma)
    B_noise  tr(Sigma) / |G|^2, in examples (their eq. 2.9)  -> batch_size
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from batchopt._checks import check_count, check_finite, check_positive
from batchopt._codec import Record
from batchopt.errors import NonFiniteLossError
from batchopt.noise_interval import Spread, noise_scale_interval, noise_spread
from batchopt.uncertainty import Estimate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class MeasuredAt(Record):
    """The point of training at which a noise scale was measured.

    Attributes:
        examples: examples seen by the run.
        loss: the loss there.
        batch_size: batch size of the run (the value depends on it: theory of temperature).
        learning_rate: learning rate of the run.
    """

    SCHEMA: ClassVar[str] = "batchopt.measured_at/1"

    examples: int
    loss: float
    batch_size: int
    learning_rate: float

    def __post_init__(self) -> None:
        check_count("examples", self.examples, least=0)
        check_positive("loss", self.loss)
        check_count("batch_size", self.batch_size)
        check_positive("learning_rate", self.learning_rate)


@dataclass(frozen=True, slots=True)
class NoiseScale(Record):
    """A measured gradient noise scale.

    Attributes:
        kind: which noise scale: "simple", "preconditioned", "hessian", "hessian_preconditioned", "sign", or the name of
            a metric of the user's own.
        signal: estimate of |G|^2 in the kind's own metric; unbiased, so it may be negative (of "sign": |G|_1^2, the
            product of an end that is too small and one that is too large).
        noise: estimate of tr(Sigma) in that metric.
        batch_size: the noise scale in examples with its 90 % interval; unresolved where the signal's interval
            covers zero, and then `low` is the honest reading ("more than low").
        examples: examples that got a gradient, alone or in groups; a Hessian-vector product counts as two.
        group_size: examples per measured gradient: 1 for per-example gradients.
        population: examples in the data set; None for a stream, augmentation or dropout (infinite population).
        method: how gradients were taken, in words.
        stopped: why the measurement ended: "width" (narrow enough), "budget", or "population" (all data used).
        at: where along a run it was measured; None if not on a run.
        metric: the metric of the gradients, in words.
        signal_with_decay: |G + decay * weights|^2 with the L2 decay that the optimizer adds to the gradient; None where
            it adds none, and for kinds that take no squared norms.
    """

    SCHEMA: ClassVar[str] = "batchopt.noise_scale/1"

    kind: str
    signal: float
    noise: float
    batch_size: Estimate
    examples: int
    group_size: int
    population: int | None
    method: str
    stopped: Literal["width", "budget", "population"]
    at: MeasuredAt | None = None
    metric: str = "identity"
    signal_with_decay: float | None = None

    def __post_init__(self) -> None:
        check_finite("signal", self.signal)
        check_finite("noise", self.noise)
        if self.signal_with_decay is not None:
            check_finite("signal_with_decay", self.signal_with_decay)
        check_count("examples", self.examples, least=2)
        check_count("group_size", self.group_size)

    @property
    def resolved(self) -> bool:
        """Whether the evidence supports a number."""
        return self.batch_size.resolved


def evidence_among(scales: Sequence[NoiseScale]) -> tuple[NoiseScale, ...]:
    """Those that are evidence for a forecast: the simple ones, or where there are none those in the optimizer's metric.

    A probe measures one of the two kinds. Both would count one thing twice.
    """
    simple = tuple(scale for scale in scales if scale.kind == "simple")
    return simple or tuple(scale for scale in scales if scale.kind == "preconditioned")


@dataclass(frozen=True, slots=True)
class SignalAndNoise:
    """What gradients say of the noise scale, before it becomes a record.

    Attributes:
        signal: |G|^2.
        noise: tr(Sigma).
        batch_size: the noise scale in examples with its interval.
    """

    signal: float
    noise: float
    batch_size: Estimate


@dataclass(frozen=True, slots=True)
class GradientMoments:
    """Second moments of n measured gradients in J groups: all that the estimator and its interval need.

    A unit is one measured gradient g_u: of one example, or the mean over `group_size` examples. With weights w_u (1
    where the loss has none), group j holds A_j = sum w_u g_u and V_j = sum w_u^2 g_u over its units.

    Attributes:
        units: units in each group, (J,).
        weights: sum of w_u in each group, (J,).
        weights_squared: sum of w_u^2 in each group, (J,).
        sum_gram: inner products A_j . A_k, (J, J).
        cross_gram: inner products V_j . A_k, (J, J); equal to `sum_gram` where all weights are 1.
        squares: sum of w_u^2 |g_u|^2 in each group, (J,).
        group_size: examples per unit.
        population: examples in the data set that the units were drawn from without replacement; None for infinite.
        definite: whether products are inner products; not where a Hessian weighs them.
    """

    units: Floats
    weights: Floats
    weights_squared: Floats
    sum_gram: Floats
    cross_gram: Floats
    squares: Floats
    group_size: int
    population: int | None
    definite: bool = True

    @property
    def examples(self) -> int:
        """Examples in all groups."""
        return round(float(self.units.sum())) * self.group_size


def signal_and_noise(moments: GradientMoments) -> tuple[float, float]:
    """Unbiased |G|^2 and tr(Sigma).

    With weights normalised by their mean, G = sum w g / sum w and a unit's residual is w (g - G), so that a loss of the
    form sum(w l) / sum(w) has the noise it is trained with. With weights 1 this is the pooled estimator of the paper's
    appendix A.1, |G|^2 = Q - s^2/n (1 - n/N), whose last factor is for drawing without replacement from N.
    """
    n = float(moments.units.sum())
    variance = float(_squared_residuals(moments).sum()) / (n - 1.0)
    signal = _mean_square(moments) - variance / n * left_of_population(moments.examples, moments.population)
    return signal, variance * moments.group_size


def noise_scale_of(moments: GradientMoments) -> SignalAndNoise:
    """The noise scale with its 90 % interval (see `batchopt.noise_interval`).

    Where the signal may be zero only a lower bound is known, and the reading is unresolved. Do not trust it with
    gradients whose norms range over orders of magnitude: what a sample happens not to hold it cannot tell.

    Raises:
        ValueError: fewer than two groups, or groups that without one of them hold less than two units or no weight.
        NonFiniteLossError: a moment is NaN or infinite.
    """
    _check_moments(moments)
    signal, noise = signal_and_noise(moments)
    ratio = noise_scale_interval(signal, noise / moments.group_size, _spread(moments))
    return SignalAndNoise(signal, noise, ratio.scaled(moments.group_size))


def _spread(moments: GradientMoments) -> Spread:
    weight, mean_weight = moments.weights, float(moments.weights.sum() / moments.units.sum())
    onto_mean = moments.sum_gram.sum(1) / weight.sum()
    square = _mean_square(moments)
    products = np.outer(weight, onto_mean)
    residual_gram = moments.sum_gram - products - products.T + np.outer(weight, weight) * square
    return noise_spread(
        units=moments.units,
        residual_gram=residual_gram / mean_weight**2,
        projections=(onto_mean - weight * square) / mean_weight,
        squared_residuals=_squared_residuals(moments),
        mean_square=square,
        left=left_of_population(moments.examples, moments.population),
        definite=moments.definite,
    )


def _mean_square(moments: GradientMoments) -> float:
    return float(moments.sum_gram.sum()) / float(moments.weights.sum()) ** 2


def _squared_residuals(moments: GradientMoments) -> Floats:
    """Sum of |w (g - G) / mean w|^2 in each group, (J,)."""
    weight = float(moments.weights.sum())
    onto_mean = moments.cross_gram.sum(1) / weight
    squares = moments.squares - 2.0 * onto_mean + moments.weights_squared * _mean_square(moments)
    return np.asarray(squares / (weight / float(moments.units.sum())) ** 2)


def left_of_population(examples: int, population: int | None) -> float:
    """Share of a population that was not drawn; 1 for an infinite one."""
    return 1.0 if population is None else max(0.0, 1.0 - examples / population)


def _check_moments(moments: GradientMoments) -> None:
    if len(moments.units) < 2 or moments.units.sum() - moments.units.max() < 2:
        raise ValueError(
            "a noise scale needs at least two groups, and two units in all but one of them, "
            f"got {moments.units.tolist()} units"
        )
    for values in (moments.weights, moments.weights_squared, moments.sum_gram, moments.cross_gram, moments.squares):
        if not np.all(np.isfinite(values)):
            raise NonFiniteLossError("a gradient is NaN or infinite: there is no noise scale, look at the loss first")
    if moments.weights.sum() - moments.weights.max() <= 0:
        raise ValueError(f"two groups at least must have positive weight, got weights {moments.weights.tolist()}")
