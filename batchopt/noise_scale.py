"""The gradient noise scale: its record and its estimator.

Notation (McCandlish et al. 2018, arXiv 1812.06162)
    G        mean gradient over the data, (n_params,)        -> signal = |G|^2
    Sigma    per-example gradient covariance                 -> noise  = tr(Sigma)
    B_noise  tr(Sigma) / |G|^2, in examples (their eq. 2.9)  -> batch_size
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from batchopt._checks import check_count, check_finite, check_positive
from batchopt._codec import Record
from batchopt.uncertainty import Estimate


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
        kind: which metric ("simple": the identity).
        signal: estimate of |G|^2; unbiased, so it may be negative.
        noise: estimate of tr(Sigma).
        batch_size: the noise scale in examples with its 90 % interval; unresolved where the signal's interval
            covers zero, and then `low` is the honest reading ("more than low").
        examples: per-example gradients (or examples in groups) that were used.
        group_size: examples per measured gradient: 1 for per-example gradients.
        population: examples in the data set; None for a stream, augmentation or dropout (infinite population).
        method: how gradients were taken, in words.
        stopped: why the measurement ended: "width" (narrow enough), "budget", or "population" (all data used).
        at: where along a run it was measured; None if not on a run.
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

    def __post_init__(self) -> None:
        check_finite("signal", self.signal)
        check_finite("noise", self.noise)
        check_count("examples", self.examples, least=2)
        check_count("group_size", self.group_size)

    @property
    def resolved(self) -> bool:
        """Whether the evidence supports a number."""
        return self.batch_size.resolved
