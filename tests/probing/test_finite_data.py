"""Values that are not finite are found in tensors before a probe draws them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

import batchopt
from batchopt import TrainingTask
from batchopt.errors import TaskError
from batchopt.probing import finite_data
from batchopt.probing.finite_data import check_finite_data, not_finite_examples

X = torch.randn(300, 4, generator=torch.Generator().manual_seed(1))
Y = X.sum(dim=1)
BAD = X.clone()
BAD[[7, 120], 2] = torch.tensor([math.nan, -math.inf])


def squares(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    return torch.as_tensor((model(batch[0])[:, 0] - batch[1]).square())


def filled(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Of inputs in which what is missing counts as zero."""
    return squares(model, (batch[0].nan_to_num(0.0, 0.0, 0.0), batch[1]))


def make_task(data: Any, loss: Any = squares) -> TrainingTask:
    return TrainingTask(
        model=lambda: nn.Linear(4, 1),
        data=data,
        eval_data=(X[:50], Y[:50]),
        loss=loss,
        optimizer=lambda parameters, lr: torch.optim.SGD(parameters, lr=lr),
        device="cpu",
    )


@pytest.mark.parametrize(
    ("data", "found"),
    [
        ((BAD, Y), [7, 120]),
        ((X, Y), []),
        ((X, torch.arange(300)), []),
        (TensorDataset(BAD, Y), [7, 120]),
        (Subset(TensorDataset(BAD, Y), range(100, 200)), [20]),
        (Subset(Subset(TensorDataset(BAD, Y), range(100, 200)), [5, 20, 20]), [1, 2]),
        (list(zip(BAD, Y, strict=True)), []),
    ],
)
def test_examples_are_found_in_tensors(data: Any, found: list[int]) -> None:
    assert not_finite_examples(data) == found


def test_of_large_tensors_the_beginning_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finite_data, "MOST_ELEMENTS", 400)
    assert not_finite_examples((BAD, Y)) == [7]


@pytest.mark.parametrize("data", [(BAD, Y), TensorDataset(BAD, Y)])
def test_a_probe_refuses_them_before_it_measures(data: Any) -> None:
    parts: list[str] = []
    rule = r"data\[7\] and others hold NaN or infinite values that make theirs nan or infinite: leave such examples out"
    with pytest.raises(TaskError, match=rule):
        batchopt.probe(make_task(data), examples=20_000, progress=lambda part, done: parts.append(part))
    assert parts == []


def test_a_loss_that_leaves_them_out_may_have_them() -> None:
    check_finite_data(make_task((BAD, Y), filled), nn.Linear(4, 1))
    with pytest.raises(TaskError, match=r"data\[7\]"):
        check_finite_data(make_task((BAD, Y)), nn.Linear(4, 1))


def test_a_mean_is_taken_example_by_example() -> None:
    one = X.clone()
    one[120, 0] = math.nan
    with pytest.raises(TaskError, match=r"data\[120\] holds NaN"):
        check_finite_data(make_task((one, Y), lambda model, batch: squares(model, batch).mean()), nn.Linear(4, 1))
