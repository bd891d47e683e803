"""Training data by a schedule inside Lightning, by the real package."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from batchopt.learning_rate_schedule import LearningRateSchedule
from batchopt.schedules.schedule import Schedule, Segment

lightning = pytest.importorskip("lightning.pytorch")

from batchopt.integrations.lightning import NoiseScaleCallback, ScheduledDataModule  # noqa: E402

SCHEDULE = Schedule((Segment(0, 8), Segment(100, 16), Segment(300, 32)), examples=620)


class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
    """The loss rises by one with the parameter, whatever the batch: every gradient is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.sizes, self.gradients, self.planned = list[int](), list[float](), 0

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        self.sizes.append(len(batch[0]))
        return self.weight + 0.0 * batch[0].sum()

    def on_before_optimizer_step(self, _: Any) -> None:
        assert self.weight.grad is not None
        self.gradients.append(float(self.weight.grad))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        self.planned = int(self.trainer.estimated_stepping_batches)
        return torch.optim.SGD([self.weight], lr=0.1)


def trainer(**options: Any) -> Any:
    return lightning.Trainer(
        **{
            "max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
            "enable_progress_bar": False, "enable_model_summary": False, **options,
        }
    )  # fmt: skip


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("workers", [0, 2])
def test_it_follows_the_schedule_and_every_gradient_is_whole(workers: int) -> None:
    module, made = Module(), trainer()
    made.fit(module, datamodule=ScheduledDataModule((torch.randn(100),), SCHEDULE, num_workers=workers))
    assert module.sizes == [size for _, size in SCHEDULE.batches()]
    assert module.gradients == [1.0] * SCHEDULE.steps
    assert made.global_step == module.planned == SCHEDULE.steps


def test_every_step_takes_the_schedulers_rate_times_the_multiplier() -> None:
    class Falling(Module):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.9)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    rising = Schedule((Segment(0, 8), Segment(100, 16, 1.5), Segment(300, 32, 2.0)), examples=620)
    module = Falling()
    trainer().fit(module, datamodule=ScheduledDataModule((torch.randn(100),), rising))
    moved = [
        0.1 * 0.9**step * rising.segment_at(seen).learning_rate_multiplier
        for step, (seen, _) in enumerate(rising.batches())
    ]
    assert float(module.weight.detach()) == pytest.approx(-sum(moved), rel=1e-5)


def test_warm_up_and_decay_are_the_schedules_alone() -> None:
    rates = LearningRateSchedule.of("wsd", examples=620, warmup_examples=100)
    schedule = Schedule((Segment(0, 8), Segment(100, 16, 1.5), Segment(300, 32, 2.0)), 620, 0.1, rates)
    module = Module()
    trainer().fit(module, datamodule=ScheduledDataModule((torch.randn(100),), schedule))
    moved = [
        0.1 * schedule.segment_at(seen).learning_rate_multiplier * rates(seen + size / 2)
        for seen, size in schedule.batches()
    ]
    assert float(module.weight.detach()) == pytest.approx(-sum(moved), rel=1e-5)

    class Falling(Module):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.9)]

    with pytest.raises(ValueError, match="must be followed alone, and the module has StepLR as well: leave it out"):
        trainer().fit(Falling(), datamodule=ScheduledDataModule((torch.randn(100),), schedule))


def test_another_learning_rate_than_the_planned_is_told() -> None:
    planned = Schedule.constant(8, examples=80, learning_rate=0.02)
    with pytest.warns(UserWarning, match=r"planned for a learning rate of 0\.02, and the training has 0\.1"):
        trainer().fit(Module(), datamodule=ScheduledDataModule((torch.randn(100),), planned))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"accumulate_grad_batches": 2}, "accumulate_grad_batches must be 1 under a schedule, got 2"),
        ({"max_epochs": 3}, "max_epochs must be 1 under a schedule, .* got 3"),
        ({"max_steps": 5}, "max_steps and limit_train_batches must be left out under a schedule, .* got 5 and 1.0"),
        ({"limit_train_batches": 0.5}, "which says where the run ends, got -1 and 0.5"),
    ],
)
def test_what_would_break_the_schedule_is_refused(options: dict[str, int], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        trainer(**options).fit(Module(), datamodule=ScheduledDataModule((torch.randn(100),), SCHEDULE))


class Recording(Module):
    """Keeps which examples it saw, and learns from them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = list[int]()

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        self.seen += batch[0].long().tolist()
        return (self.weight - batch[0]).square().mean()

    def on_before_optimizer_step(self, _: Any) -> None:
        pass


class StopAt(lightning.Callback):  # type: ignore[misc, name-defined]
    """A run that is cut off: what was trained after the checkpoint is lost."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
        if trainer.global_step >= self.step + 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize("workers", [0, 2])
def test_going_on_from_a_checkpoint_repeats_and_loses_nothing(tmp_path: Path, workers: int) -> None:
    def data(**options: Any) -> ScheduledDataModule:
        return ScheduledDataModule((torch.arange(100.0),), SCHEDULE, **{"num_workers": workers, "seed": 5, **options})

    whole = Recording()
    trainer().fit(whole, datamodule=data())
    for step in (7, 20):  # in the first segment, and after a switch
        cut = tmp_path / f"{step}.ckpt"
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            trainer(callbacks=[StopAt(step, cut)]).fit(Recording(), datamodule=data())
        again, made = Recording(), trainer()
        made.fit(again, datamodule=data(), ckpt_path=str(cut))
        before = sum(size for _, size in list(SCHEDULE.batches())[:step])
        assert again.seen == whole.seen[before:]
        assert made.global_step == SCHEDULE.steps
        assert float(again.weight) == float(whole.weight)
        with pytest.raises(ValueError, match="must be of a run of the same seed, got one of 5, now 6"):
            trainer().fit(Recording(), datamodule=data(seed=6), ckpt_path=str(cut))


class TwoOptimizers(Recording):
    """Takes two optimizer steps for every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, _: int) -> None:
        loss = super().training_step(batch, 0)
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD([self.weight], lr=0.1), torch.optim.SGD([self.weight], lr=0.01)]


def test_a_batch_is_a_batch_however_many_optimizers_step(tmp_path: Path) -> None:
    whole, cut = TwoOptimizers(), tmp_path / "cut.ckpt"
    data = (torch.arange(100.0),)
    trainer().fit(whole, datamodule=ScheduledDataModule(data, SCHEDULE))
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer(callbacks=[StopAt(12, cut)]).fit(TwoOptimizers(), datamodule=ScheduledDataModule(data, SCHEDULE))
    again = TwoOptimizers()
    trainer().fit(again, datamodule=ScheduledDataModule(data, SCHEDULE), ckpt_path=str(cut))
    assert again.seen == whole.seen[6 * 8 :]


class Regression(lightning.LightningModule):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = torch.nn.Linear(4, 1)

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        return torch.nn.functional.mse_loss(self.model(batch[0])[:, 0], batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.001)


def test_the_noise_scale_of_an_accumulating_training_is_logged() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4_096, 4, generator=generator)
    data = torch.utils.data.TensorDataset(x, x.sum(1) + torch.randn(4_096, generator=generator))
    watch = NoiseScaleCallback(every=1)
    made = trainer(accumulate_grad_batches=4, callbacks=[watch])
    made.fit(Regression(), torch.utils.data.DataLoader(data, batch_size=16))
    assert watch.monitor is not None
    reading = watch.monitor.reading
    assert reading is not None
    assert reading.resolved
    assert float(made.callback_metrics["noise_scale"]) == pytest.approx(float(reading.batch_size.value), rel=0.2)


def test_whole_batches_tell_no_noise_scale() -> None:
    with pytest.raises(ValueError, match=r"accumulate_grad_batches must be 2 or more for a noise scale, got 1"):
        trainer(callbacks=[NoiseScaleCallback()]).fit(
            Module(), datamodule=ScheduledDataModule((torch.randn(100),), SCHEDULE)
        )


def test_a_name_of_a_file_is_no_schedule() -> None:
    with pytest.raises(TypeError, match="got str: load it"):
        ScheduledDataModule((torch.arange(100),), "schedule.json")  # type: ignore[arg-type]


def test_validation_and_test_data_are_passed_through() -> None:
    class Evaluated(Module):
        def __init__(self) -> None:
            super().__init__()
            self.evaluated = list[tuple[str, int]]()

        def validation_step(self, batch: Any, index: int) -> None:
            self.evaluated.append(("val", len(batch[0])))

        def test_step(self, batch: Any, index: int) -> None:
            self.evaluated.append(("test", len(batch[0])))

        def predict_step(self, batch: Any, index: int) -> torch.Tensor:
            return torch.as_tensor(batch[0])

    def loader(examples: int) -> Any:
        return DataLoader(TensorDataset(torch.arange(examples)), batch_size=4)

    module, made = Evaluated(), trainer(num_sanity_val_steps=0)
    data = ScheduledDataModule(
        (torch.randn(100),),
        SCHEDULE,
        val_dataloaders=loader(7),
        test_dataloaders=loader(5),
        predict_dataloaders=loader(3),
    )
    made.fit(module, datamodule=data)
    assert module.sizes == [size for _, size in SCHEDULE.batches()]
    made.validate(module, datamodule=data)
    made.test(module, datamodule=data)
    assert module.evaluated == [("val", 4), ("val", 3), ("val", 4), ("val", 3), ("test", 4), ("test", 1)]
    assert torch.cat(made.predict(module, datamodule=data)).tolist() == [0, 1, 2]


def test_without_them_nothing_is_evaluated_and_nothing_is_warned_of() -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trainer().fit(Module(), datamodule=ScheduledDataModule((torch.randn(100),), SCHEDULE))
    assert not any("val_dataloader" in str(warning.message) for warning in told)
