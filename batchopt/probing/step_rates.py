"""The learning rates that a run sets before its steps, and whether somebody else has changed them."""

from __future__ import annotations

import torch

from batchopt.errors import TaskError


class StepRates:
    """Sets an optimizer's learning rates; its groups keep the ratios to the base rate that the optimizer began with.

    Args:
        optimizer: of the run.
        learning_rate: base rate that it was made with.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
        self._optimizer = optimizer
        self._ratios = [group["lr"] / learning_rate for group in optimizer.param_groups]
        self._set: list[float] | None = None

    def set(self, rate: float) -> None:
        """Let the next step take a rate.

        Raises:
            TaskError: a rate is another than was set for the step before.
        """
        groups = self._optimizer.param_groups
        for group, ours in zip(groups, self._set or (), strict=self._set is not None):
            if float(group["lr"]) != ours:
                raise TaskError(
                    f"the learning rate of a run must be left alone between its steps, and was changed from {ours:g} "
                    f"to {float(group['lr']):g}: make the optimizer without a scheduler that steps it, and give the "
                    "task learning_rate_schedule (batchopt.learning_rate_by_progress makes one of a scheduler)"
                )
        for group, ratio in zip(groups, self._ratios, strict=True):
            group["lr"] = rate * ratio
        self._set = [float(group["lr"]) for group in groups]

    def forget(self) -> None:
        """The optimizer holds another state now."""
        self._set = None
