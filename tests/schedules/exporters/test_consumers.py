"""Exports run by the consumers' own code."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from batchopt.schedules.exporters.registry import export_schedule
from batchopt.schedules.schedule import Schedule, Segment

REFERENCE = Schedule((Segment(0, 64), Segment(10_000, 128), Segment(50_000, 256)), examples=120_000)
SWITCHES = {0: (0, 64), 157: (10_048, 128), 470: (50_112, 256)}


def switches(sizes: list[int]) -> dict[int, tuple[int, int]]:
    """Step: (examples seen, batch size), where the size changes."""
    seen, found = 0, {}
    for step, size in enumerate(sizes):
        if step == 0 or (size != sizes[step - 1] and step < len(sizes) - 1):  # the last step takes what is left
            found[step] = (seen, size)
        seen += size
    return found


def test_bs_scheduler() -> None:
    library = pytest.importorskip("bs_scheduler")
    dataset = TensorDataset(torch.arange(120_000))
    space: dict[str, Any] = {"LambdaBS": library.LambdaBS, "DataLoader": DataLoader, "dataset": dataset}
    exec(export_schedule(REFERENCE, "bs-scheduler").text, space)
    sizes = []
    for (batch,) in space["loader"]:
        sizes.append(len(batch))
        space["scheduler"].step()
    assert len(sizes) == space["total_steps"] == 743
    assert switches(sizes) == SWITCHES
    assert sum(sizes) == 120_000


def test_ignite() -> None:
    engine = pytest.importorskip("ignite.engine")
    handlers = pytest.importorskip("ignite.handlers")
    sizes: list[int] = []
    space: dict[str, Any] = {
        "Events": engine.Events,
        "BatchSizeScheduler": handlers.BatchSizeScheduler,
        "DataLoader": DataLoader,
        "dataset": TensorDataset(torch.arange(120_000)),
        "trainer": engine.Engine(lambda _, batch: sizes.append(len(batch[0]))),
    }
    exec(export_schedule(REFERENCE, "ignite").text, space)
    assert len(sizes) == 743
    assert switches(sizes) == SWITCHES
    assert sum(sizes) == 120_000


def test_lightning_accumulates_as_exported() -> None:
    lightning = pytest.importorskip("lightning.pytorch")
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")
    epoch = 10_240  # every window of an epoch is whole
    schedule = Schedule((Segment(0, 64), Segment(epoch, 128), Segment(5 * epoch, 256)), examples=7 * epoch)
    export = export_schedule(schedule, "lightning", examples_per_epoch=epoch, micro_batch=64)
    space: dict[str, Any] = {"GradientAccumulationScheduler": callbacks.GradientAccumulationScheduler}
    exec(export.text, space)
    assert not any("moved" in note or "cut short" in note for note in export.notes)

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        """The loss rises by one with the parameter, whatever the batch: every gradient is 1."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))
            self.gathered, self.sizes, self.gradients = 0, list[int](), list[float]()

        def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
            self.gathered += len(batch[0])
            return self.weight + 0.0 * batch[0].sum()

        def on_before_optimizer_step(self, _: Any) -> None:
            assert self.weight.grad is not None
            self.gradients.append(float(self.weight.grad))
            self.sizes.append(self.gathered)
            self.gathered = 0

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD([self.weight], lr=0.1)

    module = Module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_epochs=space["max_epochs"], callbacks=space["callbacks"], accelerator="cpu", logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, DataLoader(TensorDataset(torch.randn(epoch)), batch_size=64))
    own = [size for _, size in schedule.batches()]
    assert module.sizes == own
    assert trainer.global_step == space["total_steps"] == schedule.steps
    assert module.gradients == [1.0] * len(own)


def test_megatron_core_ramp() -> None:
    """The calculator of a megatron-core that still follows a ramp."""
    calculator = pytest.importorskip("megatron.core.num_microbatches_calculator")
    if "step_batch_size_schedule" in (calculator.init_num_microbatches_calculator.__doc__ or ""):
        pytest.skip("this megatron-core ignores ramps")
    text = export_schedule(REFERENCE, "megatron-ramp", micro_batch=8, data_parallel=2).text
    found = re.search(r"--global-batch-size (\d+) --rampup-batch-size (\d+) (\d+) (\d+)", text)
    assert found is not None
    end, start, increment, samples = map(int, found.groups())
    calculator.init_num_microbatches_calculator(0, [start, increment, samples], end, 8, 2)
    seen, sizes = 0, []
    while seen < 120_000:
        calculator.update_num_microbatches(seen, consistency_check=False)
        sizes.append(calculator.get_current_global_batch_size())
        seen += sizes[-1]
    calculator.destroy_num_microbatches_calculator()
    notes = export_schedule(REFERENCE, "megatron-ramp", micro_batch=8, data_parallel=2).notes
    [note] = [note for note in notes if "not the schedule" in note]
    assert f"in {len(sizes):,} steps" in note
