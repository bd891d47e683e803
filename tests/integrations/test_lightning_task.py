"""A LightningModule as a task."""

from __future__ import annotations

import pickle
from typing import Any

import cloudpickle
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from batchopt import Forecast, LowestLoss, probe, train
from batchopt.errors import TaskError
from batchopt.probing.run import TrainingRun

lightning = pytest.importorskip("lightning.pytorch")

from batchopt.integrations.lightning import task_from_module  # noqa: E402

X = torch.randn(400, 5, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
    def __init__(self, kind: str = "plain") -> None:
        super().__init__()
        torch.manual_seed(3)
        self.kind, self.layer, self.head = kind, nn.Linear(5, 8), nn.Linear(8, 2)

    def training_step(self, batch: Any, _: int) -> Any:
        x, y = batch
        losses = nn.functional.cross_entropy(self.head(self.layer(x).tanh()), y, reduction="none")
        self.log("train_loss", losses.mean(), prog_bar=True)
        returned = {"plain": losses.mean(), "dict": {"loss": losses.mean()}, "sum": losses.sum(), "none": None}
        return returned.get(self.kind, losses.mean())

    def configure_optimizers(self) -> Any:
        groups = [{"params": self.layer.parameters()}, {"params": self.head.parameters(), "lr": 0.2}]
        optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
        return {
            "lists": ([optimizer], [scheduler]),
            "dict": {"optimizer": optimizer, "lr_scheduler": scheduler},
            "two": [optimizer, torch.optim.SGD(self.parameters(), lr=0.1)],
        }.get(self.kind, optimizer)


class Data(lightning.LightningDataModule):  # type: ignore[misc, name-defined]
    def setup(self, stage: str) -> None:
        self.made = stage

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(X[:320], Y[:320]), batch_size=16, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(X[320:], Y[320:]), batch_size=16)


@pytest.mark.filterwarnings("error:You are trying to `self.log")
@pytest.mark.parametrize("kind", ["plain", "dict", "lists"])
def test_a_step_is_the_modules_own(kind: str) -> None:
    task = task_from_module(Module(kind), Data(), device="cpu")
    assert task.population == 320
    assert len(task.eval_data[0]) == 80
    run = TrainingRun(task, learning_rate=0.3, seed=1)
    twin = Module(kind)
    assert all(torch.equal(a, b) for a, b in zip(run.model.parameters(), twin.parameters(), strict=True))
    optimizer = torch.optim.SGD(
        [{"params": twin.layer.parameters(), "lr": 0.3}, {"params": twin.head.parameters(), "lr": 0.6}],
        lr=0.3, momentum=0.9,
    )  # fmt: skip
    run.step(320)
    nn.functional.cross_entropy(twin.head(twin.layer(X[:320]).tanh()), Y[:320]).backward()
    optimizer.step()
    for own, other in zip(run.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(own.detach(), other.detach())


def test_it_is_probed_planned_for_and_trained() -> None:
    task = task_from_module(Module(), Data(), device="cpu", prior=(16, 0.1))
    plan = Forecast.fit(probe(task, examples=8_000)).plan(LowestLoss(8_000, "examples"))
    assert train(task, plan.schedule, seed=1).curve.losses[-1] < 0.4


def test_another_process_gets_a_task_of_its_own() -> None:
    task = pickle.loads(cloudpickle.dumps(task_from_module(Module(), Data(), device="cpu")))
    run = TrainingRun(task, learning_rate=0.1, seed=0)
    assert run.step(16) > 0.0


def test_a_loader_does_instead_of_a_data_module() -> None:
    task = task_from_module(Module(), DataLoader(TensorDataset(X, Y), batch_size=8), device="cpu")
    assert task.population == 400
    assert task.eval_data is None


def test_what_cannot_be_taken_over_says_what_to_do() -> None:
    by_hand = Module()
    by_hand.automatic_optimization = False
    with pytest.raises(TaskError, match=r"optimizes by hand .* make a TrainingTask with its loss and its optimizer"):
        task_from_module(by_hand, Data())
    with pytest.raises(TypeError, match="data must be a LightningDataModule or a DataLoader, got tuple"):
        task_from_module(Module(), (X, Y))
    with pytest.raises(TaskError, match="one optimizer is trained with, got 2"):
        TrainingRun(task_from_module(Module("two"), Data(), device="cpu"), learning_rate=0.1, seed=0)
    with pytest.raises(TaskError, match=r"training_step must return the loss, .* got NoneType"):
        TrainingRun(task_from_module(Module("none"), Data(), device="cpu"), learning_rate=0.1, seed=0).step(8)
    with pytest.raises(TaskError, match="one number must be the mean over the batch's examples"):
        probe(task_from_module(Module("sum"), Data(), device="cpu"), examples=8_000)

    class Two(Data):
        def val_dataloader(self) -> Any:
            return [DataLoader(TensorDataset(X, Y)), DataLoader(TensorDataset(X, Y))]

    with pytest.raises(TaskError, match="one validation loader is evaluated on, got 2"):
        task_from_module(Module(), Two())
