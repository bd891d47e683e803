"""Goals that make no sense are told from one evaluation before any training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import batchopt
from batchopt import BestMetric, LowestLoss, ReachLoss, ReachMetric, TrainingTask
from batchopt.errors import UnreachableGoalError
from batchopt.probing.evaluation import evaluated
from batchopt.probing.possible_goals import check_possible
from batchopt.probing.set_metric import SetMetric

X = torch.randn(250, 5, generator=torch.Generator().manual_seed(1))
Y = (X[:, 0] > 0).long()


def right(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    return torch.as_tensor(model(batch[0]).argmax(1) == batch[1])


def whole(value: float) -> SetMetric:
    """A metric of the whole set with a value of its own."""
    return SetMetric(read=lambda model, batch: 0, value=lambda kept: value)


METRICS = {
    "accuracy": right,
    "as a float": lambda model, batch: right(model, batch).float(),
    "weighted": lambda model, batch: (right(model, batch), batch[0][:, 0].abs()),
    "per cent": lambda model, batch: 100.0 * right(model, batch),
    "margin": lambda model, batch: model(batch[0]).softmax(1).max(dim=1).values,
    "digits right": lambda model, batch: right(model, batch).int() + (batch[0][:, 1] > 1.0).int(),
    "none yet": lambda model, batch: 0.0 * batch[0][:, 0],
    "never": lambda model, batch: right(model, batch) & (batch[1] > 5),
    "of the set": whole(103 / 250),
    "of the set in per cent": whole(0.4),
    "f1": whole(0.3217),
}


def make_task(**changes: Any) -> TrainingTask:
    return TrainingTask(**{
        "model": lambda: nn.Linear(5, 2),
        "data": (X, Y),
        "metrics": METRICS,
        "loss": lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none"),
        "optimizer": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr),
        "device": "cpu",
    } | changes)  # fmt: skip


def checked(goal: Any) -> str | None:
    torch.manual_seed(0)
    return check_possible(make_task(), nn.Linear(5, 2), goal)


@pytest.mark.parametrize("name", ["accuracy", "as a float", "weighted", "never"])
@pytest.mark.parametrize(("value", "remedy"), [(93.0, "ask for 0.93"), (1.0, "as 0.93"), (0.0, "as 0.93")])
def test_a_share_lies_between_0_and_1(name: str, value: float, remedy: str) -> None:
    rule = f"{name} must lie between 0 and 1, since it is 0 or 1 for each of the 250 .* got {value:g}: .*{remedy}"
    with pytest.raises(UnreachableGoalError, match=rule):
        checked(ReachMetric(name, value))
    assert checked(ReachMetric(name, 0.93)) is None


@pytest.mark.parametrize(("value", "end", "remedy"), [(0.997, 1, "less"), (0.003, 0, "more")])
def test_a_share_is_no_finer_than_the_examples(value: float, end: int, remedy: str) -> None:
    rule = rf"accuracy {value} cannot be told from {end} on the 250 examples that are evaluated: ask for {remedy}, or"
    with pytest.raises(UnreachableGoalError, match=rule):
        checked(ReachMetric("accuracy", value))
    assert checked(ReachMetric("accuracy", 249 / 250)) is None
    assert checked(ReachMetric("weighted", value)) is None


def test_a_count_of_the_whole_set_is_a_share() -> None:
    with pytest.raises(UnreachableGoalError, match=r"since it is 103 of the 250 examples .*, got 93: ask for 0.93"):
        checked(ReachMetric("of the set", 93.0))
    assert checked(ReachMetric("of the set", 0.93)) is None


@pytest.mark.parametrize("name", ["margin", "none yet", "of the set in per cent", "f1"])
def test_what_may_be_a_share_is_doubted(name: str) -> None:
    doubt = checked(ReachMetric(name, 93.0))
    assert doubt is not None
    assert "before any training, and 93 is asked for: if it is a share and no percentage, ask for 0.93." in doubt
    assert checked(ReachMetric(name, 0.93)) is None


def test_a_percentage_and_a_count_have_no_ceiling_of_1() -> None:
    assert checked(ReachMetric("per cent", 93.0)) is None
    with_twos = checked(ReachMetric("digits right", 2.0))
    assert with_twos is None or with_twos.startswith("digits right is ")


def test_a_loss_lies_below_that_before_any_training() -> None:
    torch.manual_seed(0)
    loss = evaluated(make_task(), nn.Linear(5, 2)).loss
    with pytest.raises(UnreachableGoalError, match=f"must lie below {loss:.4g}, the loss before any training, got 25"):
        checked(ReachLoss(25.0))
    assert checked(ReachLoss(0.9 * loss)) is None
    assert checked(LowestLoss(3.0)) is None
    assert checked(BestMetric("accuracy", 3.0)) is None


def test_a_probe_refuses_before_it_measures() -> None:
    parts: list[str] = []
    with pytest.raises(UnreachableGoalError, match=r"got 93: ask for 0\.93"):
        batchopt.probe(
            make_task(),
            examples=20_000,
            goal=ReachMetric("accuracy", 93.0),
            progress=lambda part, done: parts.append(part),
        )
    assert parts == []
