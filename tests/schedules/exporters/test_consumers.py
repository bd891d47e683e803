"""Exports run by the consumers' own code. Those that share no environment with others: `make consumers`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
import yaml
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


def test_olmo_core() -> None:
    """Its own callback, on a loader that counts batches as OLMo's does."""
    scheduler = pytest.importorskip("olmo_core.train.callbacks.batch_size_scheduler")
    common = pytest.importorskip("olmo_core.train.common")
    modules = pytest.importorskip("olmo_core.train.train_module")
    tokens = 16
    export = export_schedule(REFERENCE, "olmo-core", tokens_per_example=tokens, micro_batch=8, data_parallel=2)
    space: dict[str, Any] = {
        "BatchSizeSchedulerCallback": scheduler.BatchSizeSchedulerCallback,
        "Duration": common.Duration,
    }
    exec(export.text.replace("BatchSizeSchedulerCallback(", "callback = BatchSizeSchedulerCallback("), space)

    class Loader:
        global_batch_size, seen = space["global_batch_size"], 0

        @property
        def batches_processed(self) -> int:
            return self.seen // self.global_batch_size

    class Trainer:
        data_loader, global_step, epoch = Loader(), 0, 1
        callbacks: dict[str, Any] = {}  # noqa: RUF012
        max_duration = space["max_duration"]
        train_module = object.__new__(modules.TransformerTrainModule)

        @property
        def global_train_tokens_seen(self) -> int:
            return self.data_loader.seen

    trainer = Trainer()
    trainer.train_module.optim = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.001)
    trainer.train_module.scheduler = None
    callback = space["callback"]
    callback.trainer = trainer
    callback.post_attach()
    sizes = []
    while trainer.data_loader.seen < space["max_duration"].value:
        callback.pre_load_batch()
        sizes.append(trainer.data_loader.global_batch_size // tokens)
        trainer.data_loader.seen += trainer.data_loader.global_batch_size
        trainer.global_step += 1
    # An increase waits until the number of batches is a multiple of the factor, as the notes say.
    assert switches(sizes) == {0: (0, 64), 158: (10_112, 128), 471: (50_176, 256)}
    assert any("may come late by up to r - 1 batches" in note for note in export.notes)
    assert trainer.train_module.optim.param_groups[0]["lr"] == pytest.approx(0.002)
    assert any("by 1, 1.41, 2 where the schedule has 1, 1, 1" in note for note in export.notes)


def test_levanter() -> None:
    """Its own schedule, alone: importing levanter would need jax."""
    try:
        files = importlib.metadata.files("marin-levanter") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("marin-levanter is not installed")
    [file] = [file for file in files if str(file) == "levanter/schedule.py"]
    spec = importlib.util.spec_from_file_location("levanter_schedule", str(file.locate()))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    config = yaml.safe_load(export_schedule(REFERENCE, "levanter", data_parallel=2).text)["trainer"]
    schedule = module.BatchSchedule([module.ScheduleStep(**stage) for stage in config["train_batch_size"]])
    sizes = [schedule.batch_size_at_step(step) for step in range(config["num_train_steps"])]
    assert switches(sizes) == SWITCHES
    assert schedule.global_data_offset_by_step(470) == 50_112


DEEPSPEED = """
import json, sys
import deepspeed, torch
text = sys.stdin.read()
config, end = json.JSONDecoder().raw_decode(text)
del config["scheduler"]
space = {}
exec(text[end:], space)
model = torch.nn.Linear(1, 1, bias=False)
torch.nn.init.zeros_(model.weight)
engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0), config=config)
seen, gathered, weight, sizes, moves = 0, 0, 0.0, [], []
while seen < 60_000:
    engine.backward(engine(torch.ones(32, 1)).mean())
    gathered += 32
    engine.step()
    now = float(model.weight.detach())
    if now != weight:
        moves.append(weight - now)
        sizes.append(gathered)
        seen, gathered, weight = seen + gathered, 0, now
        space["follow_schedule"](engine, seen)
print("RESULT" + json.dumps([sizes, moves]))
"""


@pytest.mark.slow
def test_deepspeed() -> None:
    """Its own engine, which compiles a C++ extension when it begins."""
    pytest.importorskip("deepspeed")
    text = export_schedule(REFERENCE, "deepspeed", micro_batch=32, data_parallel=1).text
    alone = {"DS_ACCELERATOR": "cpu", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29577"}
    alone |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", DEEPSPEED],
        input=text,
        env=os.environ | alone,
        capture_output=True,
        text=True,
        check=True,
    )
    sizes, moves = json.loads(done.stdout.partition("RESULT")[2])
    assert switches(sizes) == {0: (0, 64), 158: (10_112, 128), 471: (50_176, 256)}
    assert moves == pytest.approx([1.0] * len(moves), abs=1e-4)  # every gradient is whole; weights are single precision
