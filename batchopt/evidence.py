"""What a probe observed: loss curves of short runs, noise scales, the step cost, and what it all spent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np

from batchopt._checks import check_count, check_finite, check_increasing, check_non_negative, check_positive
from batchopt._codec import Record, Upgrade, gained
from batchopt.learning_rate_schedule import LearningRateSchedule
from batchopt.noise_scale import NoiseScale
from batchopt.step_cost import StepCost


@dataclass(frozen=True, slots=True)
class LossCurve(Record):
    """Losses along a run, each the mean per-example loss at frozen weights in evaluation mode.

    Attributes:
        examples: examples seen at each evaluation, rising.
        losses: the loss there, finite and positive.
        metrics: the task's metrics there by name, finite; empty where it has none.
    """

    SCHEMA: ClassVar[str] = "batchopt.loss_curve/2"
    OLDER: ClassVar[Mapping[str, Upgrade]] = {"batchopt.loss_curve/1": gained("metrics")}

    examples: tuple[int, ...]
    losses: tuple[float, ...]
    metrics: dict[str, tuple[float, ...]] = field(default_factory=dict, hash=False)  # curves are keys of caches

    def __post_init__(self) -> None:
        if len(self.examples) != len(self.losses):
            raise ValueError(f"as many losses as examples are needed, got {len(self.losses)} and {len(self.examples)}")
        check_increasing("examples", self.examples)
        for loss in self.losses:
            check_positive("every loss", loss)
        for name, values in self.metrics.items():
            if len(values) != len(self.losses):
                raise ValueError(
                    f"as many values of {name} as losses are needed, got {len(values)} and {len(self.losses)}"
                )
            for value in values:
                check_finite(f"every {name}", value)

    def after(self, examples: int, loss: float, metrics: Mapping[str, float] | None = None) -> LossCurve:
        """With one more evaluation; metrics are those of all evaluations or of none."""
        values = {name: (*self.metrics.get(name, ()), value) for name, value in (metrics or {}).items()}
        return LossCurve((*self.examples, examples), (*self.losses, loss), values)

    def until(self, examples: int) -> LossCurve:
        """Without the evaluations after a number of examples."""
        kept = sum(n <= examples for n in self.examples)
        metrics = {name: values[:kept] for name, values in self.metrics.items()}
        return LossCurve(self.examples[:kept], self.losses[:kept], metrics)

    def smoothed(self) -> tuple[float, ...]:
        """The running median of three evaluations; the first and the last loss stand as they are."""
        inner = [sorted(self.losses[i - 1 : i + 2])[1] for i in range(1, len(self.losses) - 1)]
        return (*self.losses[:1], *inner, *self.losses[1:][-1:])

    def examples_to(self, loss: float, *, is_over: bool = False) -> float | None:
        """Examples at which `loss` is reached: the first crossing of the running median, log-interpolated.

        The last evaluation has no later neighbour, so it confirms a crossing but never makes one; unless the run is
        over, its learning rate decayed to zero: such a loss does not jump.
        None where the curve does not reach the loss.

        Example:
            >>> curve = LossCurve(examples=(0, 100, 200, 300, 400), losses=(4.0, 2.0, 1.0, 0.5, 0.25))
            >>> curve.examples_to(1.0)
            200.0
            >>> curve.examples_to(0.1) is None
            True
        """
        check_positive("loss", loss)
        smoothed = self.smoothed() if is_over else self.smoothed()[:-1]
        for i, reached in enumerate(smoothed):
            if reached > loss:
                continue
            if i == 0:
                return float(self.examples[0])
            part = (math.log(smoothed[i - 1]) - math.log(loss)) / (math.log(smoothed[i - 1]) - math.log(reached))
            return self.examples[i - 1] + part * (self.examples[i] - self.examples[i - 1])
        return None

    def jitter(self) -> float:
        """Standard deviation of log loss around its running median: how noisy single evaluations are."""
        if len(self.losses) < 4:
            return 0.0
        rest = np.log(self.losses) - np.log(self.smoothed())
        return float(np.sqrt(np.mean(rest[1:-1] ** 2)))


@dataclass(frozen=True, slots=True)
class TrainingLosses(Record):
    """Mean losses of a run's own training batches, over windows of steps.

    They cost nothing, and they are not quite the loss: taken in training mode, on training examples, at weights that
    move through the window.

    Attributes:
        examples: examples seen in the middle of each window, rising.
        losses: mean loss of the window's batches before their steps, finite; may be negative for a loss that may.
        errors: standard error of each mean, from the scatter of batches.
    """

    SCHEMA: ClassVar[str] = "batchopt.training_losses/1"

    examples: tuple[float, ...]
    losses: tuple[float, ...]
    errors: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.examples) == len(self.losses) == len(self.errors):
            raise ValueError("examples, losses and errors must have the same length")
        check_increasing("examples", self.examples)
        for loss, error in zip(self.losses, self.errors, strict=True):
            check_finite("every loss", loss)
            check_non_negative("every error", error)


@dataclass(frozen=True, slots=True)
class Branch(Record):
    """One run at one batch size, from initialisation or from a snapshot of another run, and its loss curve.

    Attributes:
        batch_size: examples per step.
        learning_rate: the peak rate.
        curve: evaluated losses; may be empty where there are training losses. A run that branches off another one holds
            only what came after.
        outcome: "finished", "stopped" (beaten by others, or the budget ended) or "diverged" (the curve holds what
            was finite).
        seed: of initialisation and data order.
        training: losses of its training batches; None where they were not kept.
        learning_rate_schedule: from initialisation on; None for a constant rate.
    """

    SCHEMA: ClassVar[str] = "batchopt.branch/1"

    batch_size: int
    learning_rate: float
    curve: LossCurve
    outcome: Literal["finished", "stopped", "diverged"] = "finished"
    seed: int = 0
    training: TrainingLosses | None = None
    learning_rate_schedule: LearningRateSchedule | None = None

    def __post_init__(self) -> None:
        check_count("batch_size", self.batch_size)
        check_positive("learning_rate", self.learning_rate)

    @property
    def examples(self) -> float:
        """Examples that the branch is known to have seen: at its last evaluation or training batch."""
        last = 0.0 if self.training is None or not self.training.examples else self.training.examples[-1]
        return max(last, *self.curve.examples[-1:], 0)

    @property
    def falls(self) -> tuple[int, int] | None:
        """Examples at which the learning rate begins and ends to fall; None if it never does."""
        schedule = self.learning_rate_schedule
        if schedule is None:
            return None
        pairs = zip(pairwise(schedule.examples), pairwise(schedule.multipliers), strict=True)
        falling = [stretch for stretch, (before, after) in pairs if after < before]
        return (falling[0][0], falling[-1][1]) if falling else None

    @property
    def is_constant(self) -> bool:
        """Whether the learning rate never falls; it may warm up."""
        return self.falls is None

    @property
    def last_loss(self) -> float:
        """The last evaluation, or the mean of the last fifth of the training batches where none was that late.

        Of a run that branches off another one: of those after it.
        """
        first = 0.0 if self.training is None or not self.training.examples else self.training.examples[0]
        late = first + 0.8 * (self.examples - first)
        if self.curve.examples and (self.curve.examples[-1] >= late or self.training is None):
            return self.curve.losses[-1]
        if self.training is None:
            raise ValueError("the branch has neither evaluations nor training losses")
        pairs = zip(self.training.examples, self.training.losses, strict=True)
        return float(np.mean([loss for n, loss in pairs if n >= late]))


@dataclass(frozen=True, slots=True)
class Spending(Record):
    """What one part of a probe spent.

    Attributes:
        part: which part ("step time", "long runs", ...).
        examples: examples that got a gradient, evaluation forwards counted a third each.
        steps: optimizer steps taken.
        seconds: wall-clock time.
        counted: what of the budget that took, in its examples; None: as many as `examples`.
    """

    SCHEMA: ClassVar[str] = "batchopt.spending/1"

    part: str
    examples: float
    steps: int
    seconds: float
    counted: float | None = None

    def __post_init__(self) -> None:
        check_non_negative("examples", self.examples)
        check_count("steps", self.steps, least=0)
        check_non_negative("seconds", self.seconds)
        if self.counted is not None:
            check_non_negative("counted", self.counted)

    @property
    def of_budget(self) -> float:
        """What of the budget it took, in examples."""
        return self.examples if self.counted is None else self.counted

    def __add__(self, other: Spending) -> Spending:
        """Both together, filed under the part of the first."""
        none = self.counted is None and other.counted is None
        return Spending(
            self.part,
            self.examples + other.examples,
            self.steps + other.steps,
            self.seconds + other.seconds,
            None if none else self.of_budget + other.of_budget,
        )


@dataclass(frozen=True, slots=True)
class Provenance(Record):
    """Where a probe ran.

    Attributes:
        versions: package name -> version.
        device: the torch device, with the card's name where it has one.
        seed: the probe's seed.
        population: examples in the data set; None for a stream.
        parameters: trainable parameters of the model.
        adaptive: whether the optimizer scales coordinates by their gradients, as Adam does; None if it is not known.
        delay: steps that the optimizer's momentum lags behind once it has built up.
        warmup_examples: the task's.
        learning_rate_schedule: the task's own, a name or multipliers at even progress; None if it has none.
        evaluated: examples on which the loss and the metrics are evaluated; 0 where it is not known.
        prior: the task's (batch size, learning rate) that is believed to work; None where the probe found otherwise.
    """

    SCHEMA: ClassVar[str] = "batchopt.provenance/1"

    versions: dict[str, str]
    device: str
    seed: int
    population: int | None
    parameters: int
    adaptive: bool | None = None
    delay: float = 0.0
    warmup_examples: int = 0
    learning_rate_schedule: str | tuple[float, ...] | None = None
    evaluated: int = 0
    prior: tuple[int, float] | None = None


@dataclass(frozen=True, slots=True)
class ProbeReport(Record):
    """Everything that a probe measured, and what it spent.

    Attributes:
        reference: the longest run at the large batch size, along which the noise scale was measured; None if the probe
            stopped before it.
        branches: the other runs, and the cooldowns that branch off runs.
        noise_scales: readings along tuned runs, in the order of measuring.
        step_cost: measured seconds per step; None if the probe stopped before it.
        spending: what each part spent.
        budget_examples: the budget that was given, or that its seconds hold, in the examples that steps count for.
        stopped: why the probe ended before its plan was done, in words; None if it was completed.
        provenance: versions, device, seed.
        initial_loss: mean training loss at initialisation; None if the probe stopped before it.
        notes: what went otherwise than its user thought, in sentences.
        decisions: what it decided on the way, and why, in sentences.
    """

    SCHEMA: ClassVar[str] = "batchopt.probe/3"
    OLDER: ClassVar[Mapping[str, Upgrade]] = {"batchopt.probe/2": gained("decisions")}
    REMEDY_OF_OLDER: ClassVar[str] = "it holds no decays of the learning rate: probe again"

    reference: Branch | None
    branches: tuple[Branch, ...]
    noise_scales: tuple[NoiseScale, ...]
    step_cost: StepCost | None
    spending: tuple[Spending, ...]
    budget_examples: int
    stopped: str | None
    provenance: Provenance
    initial_loss: float | None = None
    notes: tuple[str, ...] = ()
    decisions: tuple[str, ...] = ()

    def __str__(self) -> str:
        """What was spent, and what the probe decided."""
        ended = () if self.stopped is None else (f"Stopped: {self.stopped}",)
        spent = f"Probe of {self.examples_spent:,.0f} examples in {self.steps_spent:,} steps, {len(self.runs)} runs"
        return "\n".join([spent, *self.decisions, *self.notes, *ended])

    @property
    def examples_spent(self) -> float:
        """Examples that got a gradient, evaluation forwards counted a third each."""
        return sum(part.examples for part in self.spending)

    @property
    def budget_spent(self) -> float:
        """What of the budget was used up, in examples."""
        return sum(part.of_budget for part in self.spending)

    @property
    def steps_spent(self) -> int:
        """Optimizer steps taken."""
        return sum(part.steps for part in self.spending)

    @property
    def seconds_spent(self) -> float:
        """Wall-clock seconds."""
        return sum(part.seconds for part in self.spending)

    @property
    def runs(self) -> tuple[Branch, ...]:
        """Every run and every cooldown that left a loss curve, the reference first."""
        return self.branches if self.reference is None else (self.reference, *self.branches)
