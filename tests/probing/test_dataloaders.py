"""Tasks on the data of a DataLoader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from batchopt import Forecast, LowestLoss, TrainingTask, probe
from batchopt.errors import TaskError
from batchopt.probing.run import TrainingRun

X = torch.arange(40.0)[:, None].expand(40, 3).contiguous() / 40.0
Y = X.sum(dim=1)


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return X[index], Y[index]


class Endless(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield X[0], Y[0]


class Backwards(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(39, -1, -1))


def of(loader: Any, **settings: Any) -> TrainingTask:
    kept: dict[str, Any] = {
        "model": lambda: nn.Linear(3, 1),
        "loss": lambda model, batch: nn.functional.mse_loss(model(batch[0])[:, 0], batch[1]) + 0.01,
        "optimizer": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr),
        "device": "cpu",
    }
    return TrainingTask.from_dataloader(loader, **kept | settings)


def collate(examples: list[Any]) -> tuple[Tensor, Tensor]:
    return torch.stack([x for x, _ in examples]), torch.stack([y for _, y in examples])


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True),
        DataLoader(Pairs(), batch_size=8, shuffle=True, drop_last=True, num_workers=0),
        DataLoader(Pairs(), batch_size=8, collate_fn=collate),
    ],
    ids=["tensors", "data set", "collate function"],
)
def test_the_runs_are_those_on_the_data_itself(loader: Any) -> None:
    task = of(loader)
    assert task.population == 40
    own, direct = TrainingRun(task, learning_rate=0.1, seed=3), TrainingRun(of_tensors(), learning_rate=0.1, seed=3)
    for _ in range(6):
        own.step(8)
        direct.step(8)
    torch.testing.assert_close(own.model.weight, direct.model.weight)
    assert own.evaluate() == pytest.approx(direct.evaluate(), rel=1e-6)


def of_tensors() -> TrainingTask:
    return TrainingTask(
        model=lambda: nn.Linear(3, 1),
        data=(X, Y),
        loss=lambda model, batch: (model(batch[0])[:, 0] - batch[1]).square() + 0.01,
        optimizer=lambda parameters, lr: torch.optim.SGD(parameters, lr=lr),
        device="cpu",
    )


def test_tensors_are_taken_as_they_are() -> None:
    assert of(DataLoader(TensorDataset(X, Y), batch_size=8)).data == (X, Y)


def test_a_weighted_sampler_draws_by_its_weights_and_a_subset_is_one() -> None:
    weights = np.linspace(0.0, 1.0, 40)
    sampler = WeightedRandomSampler(weights.tolist(), 40)
    task = of(DataLoader(Pairs(), batch_size=8, sampler=sampler))
    assert task.population is None
    drawn = [round(40 * float(x[0])) for x, _ in task.data.examples(task.data.positions(seed=1, start=0, count=8_000))]
    again = [round(40 * float(x[0])) for x, _ in task.data.examples(task.data.positions(seed=1, start=0, count=50))]
    assert drawn[:50] == again
    shares, expected = np.bincount(drawn, minlength=40) / 8_000, weights / weights.sum()
    assert np.all(np.abs(shares - expected) <= 4.0 * np.sqrt(expected / 8_000))
    subset = of(DataLoader(Pairs(), batch_size=8, sampler=SubsetRandomSampler([1, 5, 9])))
    assert isinstance(subset.data, Subset)
    assert subset.population == 3


def test_evaluation_data_come_from_their_own_loader() -> None:
    held_out = DataLoader(TensorDataset(X[:8], Y[:8]), batch_size=3)
    task = of(DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True), eval_loader=held_out)
    assert len(task.eval_data[0]) == 8


def test_it_is_probed_and_planned_for() -> None:
    task = of(DataLoader(TensorDataset(X.repeat(20, 1), Y.repeat(20)), batch_size=8, shuffle=True), prior=(8, 0.1))
    plan = Forecast.fit(probe(task, examples=6_000)).plan(LowestLoss(20_000, "examples"))
    assert plan.batch_size >= 1


def test_a_mean_under_batchnorm_is_probed() -> None:
    """In training mode a BatchNorm of vectors takes no batch of one, in which means are looked at else."""
    task = of(
        DataLoader(TensorDataset(X.repeat(20, 1), Y.repeat(20)), batch_size=8),
        model=lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)),
    )
    assert probe(task, examples=6_000).stopped is None


def test_a_loss_that_is_no_mean_is_refused_before_anything_is_trained() -> None:
    task = of(
        DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True),
        loss=lambda model, batch: (model(batch[0])[:, 0] - batch[1]).square().sum(),
    )
    with pytest.raises(TaskError, match="one number must be the mean over the batch's examples"):
        probe(task, examples=6_000)


def test_an_error_rate_in_evaluation_mode_is_refused_as_a_mean_too() -> None:
    def loss(model: Any, batch: Any) -> Tensor:
        errors = model(batch[0])[:, 0] - batch[1]
        return errors.square().mean() if model.training else (errors.abs() > 0.5).float().mean()

    with pytest.raises(TaskError, match="in evaluation mode it counts"):
        probe(of(DataLoader(TensorDataset(X, Y), batch_size=8), loss=loss), examples=6_000)


@pytest.mark.parametrize("bad", [0, 17, 39])
def test_the_example_that_is_not_finite_is_named(bad: int) -> None:
    x = X.clone()
    x[bad] = torch.nan
    task = of(DataLoader(TensorDataset(x, Y), batch_size=8), eval_loader=DataLoader(TensorDataset(X, Y)))
    with pytest.raises(TaskError, match=rf"data\[{bad}\] holds NaN or infinite values that make theirs nan"):
        probe(task, examples=6_000, seed=1)


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (DataLoader(Endless(), batch_size=4), "an iterable data set cannot be read twice .* data=lambda seed: iter"),
        (DataLoader(Pairs(), batch_size=None), "the DataLoader has batch_size=None, which decides what"),
        (
            DataLoader(Pairs(), batch_sampler=type("Odd", (BatchSampler,), {})(SequentialSampler(Pairs()), 4, False)),
            "the DataLoader has a Odd, which decides what a batch is: give it batch_size",
        ),
        (DataLoader(Pairs(), batch_size=4, sampler=Backwards()), "the DataLoader has a Backwards: leave it out"),
        (
            DataLoader(Pairs(), batch_size=4, sampler=WeightedRandomSampler([1.0] * 40, 4, replacement=False)),
            "must draw with replacement",
        ),
    ],
)
def test_what_cannot_be_taken_over_says_what_to_do(loader: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        of(loader)


def test_what_is_not_a_loaders() -> None:
    loader = DataLoader(TensorDataset(X, Y), batch_size=8)
    with pytest.raises(TypeError, match=r"must be a torch\.utils\.data\.DataLoader, got tuple"):
        of((X, Y))
    with pytest.raises(TypeError, match="eval_data is that of the loader, leave it out"):
        of(loader, eval_loader=loader, eval_data=(X, Y))
    assert of(loader, eval_data=(X[:5], Y[:5])).eval_data[1] is not None
    with pytest.raises(TypeError, match="collate_fn is that of the loader, leave it out"):
        of(loader, collate_fn=collate)
    with pytest.raises(TaskError, match="must have the same collate_fn"):
        of(loader, eval_loader=DataLoader(Pairs(), batch_size=4, collate_fn=collate))
    weighted = DataLoader(Pairs(), batch_size=4, sampler=WeightedRandomSampler([1.0] * 40, 4))
    with pytest.raises(TaskError, match="must be read in order"):
        of(loader, eval_loader=weighted)
