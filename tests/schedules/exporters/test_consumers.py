"""Exports run by the consumers' own code. Those that share no environment with others: `make consumers`."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import json
import math
import os
import re
import shlex
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch.utils.data import DataLoader, TensorDataset

from batchopt.learning_rate_schedule import LearningRateSchedule, ShapeName
from batchopt.schedules.exporters.registry import export_schedule, import_schedule
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


def test_ignite_takes_the_exported_rates() -> None:
    engine, handlers = pytest.importorskip("ignite.engine"), pytest.importorskip("ignite.handlers")
    rates = LearningRateSchedule.of("wsd", examples=120_000, warmup_examples=6_400)
    schedule = replace(REFERENCE, learning_rate=0.01, learning_rate_schedule=rates)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    taken: list[float] = []

    def update(_: Any, __: Any) -> None:
        taken.append(optimizer.param_groups[0]["lr"])
        optimizer.step()

    space: dict[str, Any] = {
        "Events": engine.Events, "BatchSizeScheduler": handlers.BatchSizeScheduler, "DataLoader": DataLoader,
        "dataset": TensorDataset(torch.arange(120_000)), "trainer": engine.Engine(update), "torch": torch,
        "optimizer": optimizer,
    }  # fmt: skip
    exec(export_schedule(schedule, "ignite").text, space)
    near(schedule, taken, within=1e-3)


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


SHAPES_OF_ALL: tuple[ShapeName, ...] = ("constant", "linear", "cosine")


def scheduled(shape: ShapeName) -> Schedule:
    """One batch size, so that steps and examples are the same."""
    rates = LearningRateSchedule.of(shape, examples=128_000, warmup_examples=6_400)
    return Schedule.constant(64, examples=128_000, learning_rate=0.01, learning_rate_schedule=rates)


def near(schedule: Schedule, rates: list[float], *, within: float) -> None:
    """Rates of the steps are the schedule's."""
    own = [0.01 * schedule.multiplier_of(seen, size) for seen, size in schedule.batches()]
    assert len(rates) == len(own)
    assert rates == pytest.approx(own, abs=0.01 * within)


@pytest.mark.parametrize("shape", [*SHAPES_OF_ALL, "wsd"])
def test_megatrons_own_scheduler_takes_the_exported_rates(shape: ShapeName) -> None:
    module = pytest.importorskip("megatron.core.optimizer_param_scheduler")
    schedule = scheduled(shape)
    text = export_schedule(schedule, "megatron", tokens_per_example=16, micro_batch=8, data_parallel=2).text
    given = dict(zip(shlex.split(text)[::2], shlex.split(text)[1::2], strict=True))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=float(given["--lr"]))
    wsd = {"wsd_decay_steps": int(given["--lr-wsd-decay-samples"])} if shape == "wsd" else {}
    # As megatron.training makes it of these arguments.
    scheduler = module.OptimizerParamScheduler(
        optimizer, init_lr=0.0, max_lr=float(given["--lr"]), min_lr=float(given.get("--min-lr", 0.0)),
        lr_warmup_steps=int(given["--lr-warmup-samples"]), lr_decay_steps=int(given["--lr-decay-samples"]),
        lr_decay_style=given["--lr-decay-style"], lr_wsd_decay_style=given.get("--lr-wsd-decay-style"), **wsd,
        start_wd=0.0, end_wd=0.0, wd_incr_steps=1, wd_incr_style="constant",
        use_checkpoint_opt_param_scheduler=False, override_opt_param_scheduler=False,
    )  # fmt: skip
    rates = []
    for _, size in schedule.batches():
        rates.append(float(optimizer.param_groups[0]["lr"]))
        scheduler.step(size)
    near(schedule, rates, within=0.6 * 64 / 6_400)  # read half a step earlier, and the warm-up is the steepest


@pytest.mark.parametrize("shape", [*SHAPES_OF_ALL, "wsd"])
def test_olmo_cores_own_schedulers_take_the_exported_rates(shape: ShapeName) -> None:
    module = pytest.importorskip("olmo_core.optim.scheduler")
    schedule = scheduled(shape)
    text = export_schedule(schedule, "olmo-core", tokens_per_example=16, micro_batch=8, data_parallel=2).text
    [line] = [line for line in text.splitlines() if line.startswith("scheduler = ")]
    space: dict[str, Any] = dict(vars(module))
    exec(line, space)
    assert space["scheduler"].units == module.SchedulerUnits.tokens
    rates = [space["scheduler"].get_lr(0.01, 16 * seen, 16 * 128_000) for seen, _ in schedule.batches()]
    near(schedule, rates, within=0.6 * 64 / 6_400)


def test_olmo_core_without_a_warm_up() -> None:
    module = pytest.importorskip("olmo_core.optim.scheduler")
    for shape, first in (("constant", 0.01), ("linear", 0.01), ("cosine", 0.01), ("wsd", 0.0)):
        rates = LearningRateSchedule.of(shape, examples=128_000)  # type: ignore[arg-type]
        schedule = Schedule.constant(64, examples=128_000, learning_rate=0.01, learning_rate_schedule=rates)
        text = export_schedule(schedule, "olmo-core", tokens_per_example=16, micro_batch=8, data_parallel=2).text
        space: dict[str, Any] = dict(vars(module))
        exec(next(line for line in text.splitlines() if line.startswith("scheduler = ")), space)
        lrs = [space["scheduler"].get_lr(0.01, 16 * seen, 16 * 128_000) for seen, _ in schedule.batches()]
        assert lrs[0] == first  # its WSD divides by the warm-up, so that is one token
        assert lrs[1:] == pytest.approx([0.01 * rates(seen) for seen, _ in schedule.batches()][1:], abs=1e-5)


@pytest.mark.parametrize("shape", SHAPES_OF_ALL)
def test_deepspeeds_own_schedulers_take_the_exported_rates(shape: ShapeName) -> None:
    pytest.importorskip("deepspeed")
    module = pytest.importorskip("deepspeed.runtime.lr_schedules")
    schedule = scheduled(shape)
    export = export_schedule(schedule, "deepspeed", micro_batch=8, data_parallel=2)
    config, _ = json.JSONDecoder().raw_decode(export.text)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config["optimizer"]["params"]["lr"])
    scheduler = getattr(module, config["scheduler"]["type"])(optimizer, **config["scheduler"]["params"])
    rates = []
    for _ in schedule.batches():
        rates.append(float(optimizer.param_groups[0]["lr"]))
        scheduler.step()
    assert rates[:2] == [0.0, 0.0]
    assert "the first two steps of the warm-up have rate zero" in export.notes
    near(schedule, rates, within=1.6 * 64 / 6_400)


def steps_of_levanter(config: dict[str, Any]) -> Any:
    """Its own `OptimizerConfig.lr_scheduler`, cut out of a file that needs jax, with optax's parts written out."""
    try:
        files = importlib.metadata.files("marin-levanter") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("marin-levanter is not installed")
    [file] = [file for file in files if str(file) == "levanter/optim/config.py"]
    tree = ast.parse(Path(str(file.locate())).read_text())
    wanted = {"lr_scheduler", "_get_cycle_minima", "_convert_frac_or_steps"}
    found = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in wanted}

    def joined(parts: list[Any], ends: list[int]) -> Any:
        starts = [0, *ends]
        return lambda n: next(part(n - starts[i]) for i, part in enumerate(parts) if i == len(parts) - 1 or n < ends[i])

    optax = SimpleNamespace(
        constant_schedule=lambda value: lambda n: value,
        linear_schedule=lambda begin, end, steps: lambda n: begin + (end - begin) * min(1.0, n / steps),
        cosine_decay_schedule=lambda begin, steps, floor: (
            lambda n: begin * (floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, n / steps))))
        ),
        join_schedules=joined,
    )
    space: dict[str, Any] = {"optax": optax, "warnings": warnings, "LrSchedule": type(None), "np": None}
    exec(compile(ast.Module(list(found.values()), []), str(file), "exec"), space)
    defaults = {"min_lr_ratio": 0.1, "warmup": 0.01, "decay": None, "rewarmup": 0.0, "cooldown": None}
    defaults |= {"cycle_length": None, "cycles": None, "haps": None, "lr_schedule": "cosine"}
    own = SimpleNamespace(**(defaults | config["optimizer"]))
    own._get_cycle_minima = lambda steps: space["_get_cycle_minima"](own, steps)
    return space["lr_scheduler"](own, config["trainer"]["num_train_steps"])


@pytest.mark.parametrize("shape", [*SHAPES_OF_ALL, "wsd"])
def test_levanters_own_scheduler_takes_the_exported_rates(shape: ShapeName) -> None:
    schedule = scheduled(shape)
    text = export_schedule(schedule, "levanter", data_parallel=2).text
    taken = steps_of_levanter(yaml.safe_load(text))
    near(schedule, [taken(step) for step in range(schedule.steps)], within=0.6 * 64 / 6_400)


@pytest.mark.parametrize("shape", [*SHAPES_OF_ALL, "wsd"])
def test_what_is_read_of_levanter_is_what_it_does(shape: ShapeName) -> None:
    rates = LearningRateSchedule.of(shape, examples=120_000, warmup_examples=6_400)
    text = export_schedule(
        replace(REFERENCE, learning_rate=0.01, learning_rate_schedule=rates), "levanter", data_parallel=2
    )
    read, taken = import_schedule(text.text, "levanter"), steps_of_levanter(yaml.safe_load(text.text))
    assert read.learning_rate_schedule is not None
    for step, (seen, _) in enumerate(read.batches()):
        assert 0.01 * read.learning_rate_schedule(seen) == pytest.approx(taken(step), abs=1e-5)


DEEPSPEED = """
import json, sys
import deepspeed, torch
text = sys.stdin.read()
config, end = json.JSONDecoder().raw_decode(text)
config.pop("scheduler", None)
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
