"""The range of learning rates against the stability limit of a quadratic, which is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from batchopt.errors import BudgetError
from batchopt.probing.learning_rate_range import HIGHEST, LOWEST, STEP_COST, STEPS, find_learning_rate_range
from batchopt.probing.task import TrainingTask
from batchopt.step_cost import StepCost

PRICE = StepCost(per_step=0.0, per_example=1.0, unit="examples")


class Bowl(nn.Module):
    """One parameter away from the minimum of curvature * theta^2 / 2."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.ones(1))


def bowl(curvature: float, *, noise: float = 0.0) -> TrainingTask:
    generator = torch.Generator().manual_seed(0)
    scatter = noise * torch.randn(512, 1, generator=generator)

    def loss(model: Bowl, batch: tuple[Tensor]) -> Tensor:
        return 0.5 * curvature * model.theta.square().sum() + batch[0][:, 0]

    return TrainingTask(
        model=Bowl,
        data=(scatter,),
        loss=loss,
        optimizer=lambda parameters, lr: torch.optim.SGD(parameters, lr=lr),
        device="cpu",
    )


@pytest.mark.parametrize("curvature", [0.1, 3.0, 1000.0])
def test_it_ends_soon_above_the_stability_limit(curvature: float) -> None:
    top, spending = find_learning_rate_range(bowl(curvature), budget=4_000.0, price=PRICE, seed=0, largest_batch=64)
    # A step at a rate r multiplies theta by 1 - r * curvature, so beyond 2 / curvature it grows.
    ratio = (HIGHEST / LOWEST) ** (1.0 / (STEPS - 1))
    assert 2.0 / curvature < top < 2.0 / curvature * ratio**5  # the smoothed loss follows a few rates later
    assert spending.examples <= 4_000.0
    assert spending.steps <= STEPS


def test_the_scatter_of_examples_does_not_matter() -> None:
    """Single examples whose losses scatter by 50 times the loss itself."""
    budget = STEPS * STEP_COST
    quiet, _ = find_learning_rate_range(bowl(3.0), budget=budget, price=PRICE, seed=0, largest_batch=64)
    noisy = [
        find_learning_rate_range(bowl(3.0, noise=50.0), budget=budget, price=PRICE, seed=k, largest_batch=64)[0]
        for k in (0, 1, 2)
    ]
    assert noisy == [quiet] * 3


def test_a_flat_loss_has_no_limit() -> None:
    assert find_learning_rate_range(bowl(1e-9), budget=4_000.0, price=PRICE, seed=0, largest_batch=64)[0] == HIGHEST


def test_a_budget_below_one_example_a_step() -> None:
    with pytest.raises(BudgetError, match="takes 36 examples, and 35 are left for it: give the probe a larger budget"):
        find_learning_rate_range(bowl(1.0), budget=35.0, price=PRICE, seed=0, largest_batch=64)


def test_where_steps_count_for_more_the_batch_is_smaller() -> None:
    dear = StepCost(per_step=64.0, per_example=1.0, unit="examples")
    _, spending = find_learning_rate_range(bowl(3.0), budget=4_000.0, price=dear, seed=0, largest_batch=64)
    assert spending.examples / spending.steps / STEP_COST == 4_000 // (STEPS * STEP_COST) - 64
    assert spending.of_budget == pytest.approx(spending.examples + STEP_COST * 64 * spending.steps)
    with pytest.raises(BudgetError, match="takes 2340 examples"):
        find_learning_rate_range(bowl(3.0), budget=2_000.0, price=dear, seed=0, largest_batch=64)
