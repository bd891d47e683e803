"""Runs in each process of a test, which writes FOLDER/RANK.json, and in one that is alone, which writes alone.json."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import transformers
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

from batchopt import Schedule, Segment
from batchopt.integrations import accelerate, lightning
from batchopt.integrations.lightning import NoiseScaleCallback, ScheduledDataModule
from batchopt.integrations.transformers import ScheduledTrainer

SCHEDULE = Schedule((Segment(0, 8), Segment(100, 16), Segment(300, 32)), examples=617)
"""The last batch is of 17, which two processes cannot share."""
PLANNED = replace(SCHEDULE, learning_rate=0.02)
COUNT = int(os.environ.get("WORLD_SIZE", "1"))


def data() -> torch.Tensor:
    return torch.randn(100, generator=torch.Generator().manual_seed(0))


class Module(pl.LightningModule):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(2.0))
        self.sizes = list[int]()

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        if COUNT == 1:
            batch = batch, torch.full((len(batch[0]),), 1.0 / len(batch[0]))
        (x,), weights = batch
        self.sizes.append(int((weights > 0).sum()))
        return (weights * (self.weight - x) ** 2).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight], lr=0.02)


def by_lightning() -> dict[str, Any]:
    module = Module()
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", devices=COUNT, strategy="ddp" if COUNT > 1 else "auto", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=ScheduledDataModule((data(),), SCHEDULE, seed=1))
    return {"sizes": module.sizes, "weight": float(module.weight), "steps": trainer.global_step}


class Plain(Module):
    """Of batches without weights, with a rate and a scheduler that a plan takes the place of."""

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        (x,) = batch
        self.sizes.append(len(x))
        return ((self.weight - x) ** 2).mean()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD([self.weight], lr=0.7)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def by_a_lightning_plan() -> dict[str, Any]:
    module = Plain()
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", devices=COUNT, strategy="ddp" if COUNT > 1 else "auto", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    loader = DataLoader(TensorDataset(data()), batch_size=4, shuffle=True)
    trainer.fit(module, datamodule=lightning.apply_plan(PLANNED, module, loader, seed=1))
    return {"sizes": module.sizes, "weight": float(module.weight), "steps": trainer.global_step}


class Noisy(pl.LightningModule):  # type: ignore[misc]
    """A regression whose noise scale is far above its batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = torch.nn.Linear(4, 1)

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        return torch.nn.functional.mse_loss(self.model(batch[0])[:, 0], batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-4)


def noise_scale() -> dict[str, float]:
    """Of accumulating trainings, whose micro-batches are as large in one process as in two."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8_192, 4, generator=generator)
    made = torch.utils.data.TensorDataset(x, x.sum(1) + 2.0 * torch.randn(8_192, generator=generator))
    watch = NoiseScaleCallback(every=1)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", devices=COUNT, strategy="ddp" if COUNT > 1 else "auto", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, accumulate_grad_batches=4,
        callbacks=[watch],
    )  # fmt: skip
    trainer.fit(Noisy(), torch.utils.data.DataLoader(made, batch_size=16, shuffle=True))
    assert watch.monitor is not None
    reading = watch.monitor.reading
    assert reading is not None
    return {"value": reading.batch_size.value, "low": reading.batch_size.low, "high": reading.batch_size.high}


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(2.0))
        self.sizes = list[int]()

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        self.sizes.append(len(x))
        return {"loss": ((self.weight - x) ** 2).mean()}


def by_transformers(folder: Path) -> dict[str, Any]:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no", max_grad_norm=0.0,
        learning_rate=0.02, lr_scheduler_type="linear", optim="sgd", seed=1,
    )  # fmt: skip
    trainer = ScheduledTrainer(
        model=Model(), args=arguments, train_dataset=[{"x": x} for x in data()], schedule=SCHEDULE
    )  # fmt: skip
    trainer.train()
    model = trainer.model
    return {"sizes": model.sizes, "weight": float(model.weight), "steps": trainer.state.global_step}


def by_accelerate() -> dict[str, Any]:
    accelerator = Accelerator(cpu=True)
    model: Any = Model()
    model, optimizer, loader = accelerator.prepare(
        model, torch.optim.SGD(model.parameters(), lr=0.7), DataLoader(TensorDataset(data()), batch_size=4)
    )
    task = accelerate.task_from_accelerator(
        accelerator, model, optimizer, loader, lambda model, batch: model(batch[0])["loss"]
    )
    steps = 0
    for (x,) in accelerate.apply_plan(PLANNED, accelerator, optimizer, loader, seed=1):
        optimizer.zero_grad()
        accelerator.backward(model(x)["loss"])
        optimizer.step()
        steps += 1
    trained = accelerator.unwrap_model(model)
    taken = {"prior": task.prior, "population": task.population}
    return {"sizes": trained.sizes, "weight": float(trained.weight), "steps": steps, **taken}


def main(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answers = {"lightning": by_lightning(), "noise": noise_scale(), "transformers": by_transformers(folder)}
        answers |= {"lightning plan": by_a_lightning_plan(), "accelerate": by_accelerate()}
    (folder / f"{os.environ.get('RANK', 'alone')}.json").write_text(json.dumps(answers))


def in_one_of_two(folder: Path) -> None:
    main(folder)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
