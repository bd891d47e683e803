"""What the user wants from training.

Both goals price a run by one formula, a cost per step of a + b B: time, money, examples, steps and any exchange rate
between them are choices of a and b.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from batchopt._checks import check_one_of, check_positive
from batchopt._codec import Record
from batchopt.errors import EvidenceError
from batchopt.step_cost import StepCost

Unit = Literal["seconds", "examples", "steps"]

_UNITS = ("seconds", "examples", "steps")
_OTHER_PRICES = "any other cost of a step is a StepCost(per_step=..., per_example=...)"


@dataclass(frozen=True, slots=True)
class ReachLoss(Record):
    """Reach a loss at the least cost. It counts as reached at the end of the learning rate's decay.

    Attributes:
        loss: the loss to reach, as the probe measures it.
        least: what to spend least of: "seconds" (by the measured step cost), "examples", "steps", "balanced"
            (steps / S_min + examples / E_min), any `StepCost`, or ("steps", "examples") for a study of two objectives.

    Example:
        >>> ReachLoss(0.25).price(StepCost(per_step=2e-3, per_example=1e-5)).per_step
        0.002
        >>> ReachLoss(0.25, least="steps").price()(512)
        1.0
    """

    SCHEMA: ClassVar[str] = "batchopt.goal.reach_loss/1"

    loss: float
    least: (
        Literal["seconds", "examples", "steps", "balanced"] | StepCost | tuple[Literal["steps"], Literal["examples"]]
    ) = "seconds"

    def __post_init__(self) -> None:
        check_positive("loss", self.loss)
        if not isinstance(self.least, StepCost) and self.least != ("steps", "examples"):
            remedy = f"{_OTHER_PRICES}, and ('steps', 'examples') is for a study of two objectives"
            check_one_of("least", self.least, (*_UNITS, "balanced"), remedy=remedy)

    def price(
        self, measured: StepCost | None = None, *, steps_min: float | None = None, examples_min: float | None = None
    ) -> StepCost:
        """The cost of a step under this goal.

        Args:
            measured: measured seconds per step; needed for least="seconds".
            steps_min: fewest steps to the loss (S_min); needed for "balanced".
            examples_min: fewest examples to the loss (E_min); needed for "balanced".

        Raises:
            EvidenceError: what is needed is missing, or the goal has two objectives and so no single price.
        """
        if self.least == "balanced":
            if steps_min is None or examples_min is None:
                raise EvidenceError("least='balanced' needs S_min and E_min of the loss, and neither is known yet")
            return StepCost(1.0 / steps_min, 1.0 / examples_min, unit="S_min + E_min")
        if isinstance(self.least, tuple):
            raise EvidenceError(
                "least=('steps', 'examples') has two objectives and no single cost; plan for 'balanced'"
            )
        return _price(self.least, measured)


@dataclass(frozen=True, slots=True)
class LowestLoss(Record):
    """Reach the lowest loss within a budget, which gives every batch size its horizon.

    Attributes:
        within: the budget.
        of: what the budget is counted in: "seconds" (by the measured step cost), "examples", "steps" or any `StepCost`.

    Example:
        >>> LowestLoss(3_600.0).price(StepCost(per_step=2e-3, per_example=1e-5)).per_example
        1e-05
        >>> LowestLoss(1e6, of="examples").price()(512)
        512.0
    """

    SCHEMA: ClassVar[str] = "batchopt.goal.lowest_loss/1"

    within: float
    of: Unit | StepCost = "seconds"

    def __post_init__(self) -> None:
        check_positive("within", self.within)
        if not isinstance(self.of, StepCost):
            check_one_of("of", self.of, _UNITS, remedy=_OTHER_PRICES)

    def price(self, measured: StepCost | None = None) -> StepCost:
        """The cost of a step under this goal, as `ReachLoss.price`."""
        return _price(self.of, measured)


Goal = ReachLoss | LowestLoss


def _price(unit: object, measured: StepCost | None) -> StepCost:
    if isinstance(unit, StepCost):
        return unit
    if unit == "examples":
        return StepCost(0.0, 1.0, unit="examples")
    if unit == "steps":
        return StepCost(1.0, 0.0, unit="steps")
    if measured is None:
        raise EvidenceError(
            "least seconds need a measured step cost and there is none: "
            "probe the task, or pass a StepCost as the goal's unit (--per-step and --per-example)"
        )
    return measured
