"""A LightningModule as a task."""

from __future__ import annotations

import pickle
from typing import Any

import cloudpickle
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from batchopt import Forecast, LearningRateSchedule, LowestLoss, Schedule, probe, train
from batchopt.errors import TaskError
from batchopt.probing.run import TrainingRun

lightning = pytest.importorskip("lightning.pytorch")

from batchopt.integrations.lightning import apply_plan, task_from_module  # noqa: E402

X = torch.randn(400, 5, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
    def __init__(self, kind: str = "plain") -> None:
        super().__init__()
        torch.manual_seed(3)
        self.kind, self.layer, self.head = kind, nn.Linear(5, 8), nn.Linear(8, 2)

    def training_step(self, batch: Any, _: int) -> Any:
        x, y = batch
        if self.kind == "asks":
            assert self.trainer.world_size == 1
        losses = nn.functional.cross_entropy(self.head(self.layer(x).tanh()), y, reduction="none")
        self.log("train_loss", losses.mean(), prog_bar=True)
        returned = {"plain": losses.mean(), "dict": {"loss": losses.mean()}, "sum": losses.sum(), "none": None}
        return returned.get(self.kind, losses.mean())

    def configure_optimizers(self) -> Any:
        groups = [{"params": self.layer.parameters()}, {"params": self.head.parameters(), "lr": 0.2}]
        optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
        if self.kind == "warm-up":
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 10))
        if self.kind == "trainer's":
            self.trainer.estimated_stepping_batches  # noqa: B018
        if self.kind == "still":
            return torch.optim.SGD(self.parameters(), lr=0.0)
        return {
            "nothing": [],
            "warm-up": ([optimizer], [scheduler]),
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
@pytest.mark.parametrize("kind", ["plain", "dict", "lists", "warm-up"])
def test_a_step_is_the_modules_own(kind: str) -> None:
    task = task_from_module(Module(kind), Data(), device="cpu")
    assert task.population == 320
    assert task.prior == (16, 0.1)
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
    with pytest.raises(TypeError, match="module must be a LightningModule, got Linear"):
        task_from_module(nn.Linear(2, 2), Data())  # type: ignore[arg-type]
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

    with pytest.raises(TaskError, match="one validation loader is evaluated on, got 2: give eval_loader"):
        task_from_module(Module(), Two())
    assert len(task_from_module(Module(), Two(), eval_loader=DataLoader(TensorDataset(X, Y))).eval_data[0]) == 400
    assert len(task_from_module(Module(), Two(), eval_data=(X[:9], Y[:9])).eval_data[0]) == 9

    class Several(Data):
        def train_dataloader(self) -> Any:
            return {"a": super().train_dataloader(), "b": super().train_dataloader()}

    with pytest.raises(TaskError, match="train_dataloader must give one DataLoader, got a dict"):
        task_from_module(Module(), Several())


def test_a_module_that_asks_for_its_trainer_says_what_to_do() -> None:
    with pytest.raises(TaskError, match=r"configure_optimizers must do without self.trainer, .* give optimizer=lambda"):
        task_from_module(Module("trainer's"), Data())

    def sgd(parameters: Any, lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=lr)

    task = task_from_module(Module("trainer's"), Data(), device="cpu", optimizer=sgd)
    assert TrainingRun(task, learning_rate=0.1, seed=0).step(8) > 0.0
    asks = task_from_module(Module("asks"), Data(), device="cpu")
    with pytest.raises(TaskError, match=r"training_step must do without self.trainer, .* give loss=lambda module"):
        TrainingRun(asks, learning_rate=0.1, seed=0).step(8)


def test_optimizers_that_cannot_be_taken_over() -> None:
    with pytest.raises(TaskError, match=r"must have a positive learning rate, got \[0.0\]: give the SGD the rate"):
        task_from_module(Module("still"), Data())
    with pytest.raises(TaskError, match="must return an optimizer, got list"):
        task_from_module(Module("nothing"), Data())


def test_validation_data_of_a_parent_class_are_found() -> None:
    class Child(Data):
        pass

    assert len(task_from_module(Module(), Child(), device="cpu").eval_data[0]) == 80


@pytest.mark.filterwarnings("error:the schedule was planned")
@pytest.mark.parametrize("kind", ["plain", "warm-up"])
def test_a_trainer_follows_the_plan(kind: str) -> None:
    rates = LearningRateSchedule.of("linear", examples=300, warmup_examples=60)
    schedule = Schedule.constant(30, examples=300, learning_rate=0.5, learning_rate_schedule=rates)
    taken: list[list[float]] = []
    validated: list[int] = []

    class Watched(Module):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if batch_idx == 0:
                optimizer = self.trainer.optimizers[0]
                optimizer.register_step_pre_hook(lambda own, *_: taken.append([g["lr"] for g in own.param_groups]))

        def validation_step(self, batch: Any, _: int) -> None:
            validated.append(len(batch[0]))

    module = Watched(kind)
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=apply_plan(schedule, module, Data()))
    multipliers = [schedule.multiplier_of(seen, size) for seen, size in schedule.batches()]
    assert [rate for rate, _ in taken] == pytest.approx([0.5 * multiplier for multiplier in multipliers])
    assert [rate for _, rate in taken] == pytest.approx([1.0 * multiplier for multiplier in multipliers])
    assert validated == [16] * 5


def test_a_plan_needs_a_rate() -> None:
    with pytest.raises(ValueError, match="the schedule must hold a learning rate, got None"):
        apply_plan(Schedule.constant(4, examples=40), Module(), Data())
