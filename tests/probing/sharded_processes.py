"""What each process of a test trains, measures and probes.

Alone, the model is whole; of several processes, each holds a part of it (FSDP2).
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from batchopt import LowestLoss, NoiseScaleMonitor, Schedule, Segment, TrainingTask, measure_noise_scale, probe, train
from batchopt.probing.sharding import own_part

COUNT = int(os.environ.get("WORLD_SIZE", "1"))
BUDGET = 9_000
SCHEDULE = Schedule((Segment(0, 8), Segment(200, 24, 1.5), Segment(600, 48, 2.0)), examples=1_501, learning_rate=0.1)
"""The last batch is of 37."""


def data() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(300, 6, generator=generator, dtype=torch.float64)
    return x, (x[:, 0] > 0).long(), torch.randint(1, 5, (300,), generator=generator).double()


def sharded() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 2)).double()
    if COUNT > 1:
        from torch.distributed.fsdp import fully_shard

        fully_shard(model[0])
        fully_shard(model)
    return model


def half_sharded() -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 2)).double()
    fully_shard(model[0])
    return model


def with_dropout() -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    return fully_shard(nn.Sequential(nn.Linear(6, 12), nn.Dropout(0.3), nn.Linear(12, 2)).double())


def normalised() -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    return fully_shard(nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 2)).double())


def other_layers() -> nn.Module:
    model = nn.Sequential()
    for name, layer in (("first", nn.Linear(6, 12)), ("last", nn.Linear(12, 2))):
        model.add_module(name, layer)
    if COUNT > 1:
        from torch.distributed.fsdp import fully_shard

        fully_shard(model)
    return model.double()


def tensor_parallel() -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 2)).double()
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    return parallelize_module(model, init_device_mesh("cpu", (COUNT,)), plan)


def weightless(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    return plain(model, batch), torch.zeros(len(batch[0]))


def plain(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def weighted(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    return plain(model, batch), batch[2]


def not_finite(model: nn.Module, batch: Any) -> Tensor:
    # Only the first process has such an example in its share.
    return plain(model, batch) * torch.where(batch[0][:, 0] == data()[0][:, 0].max(), torch.inf, 1.0)


def task_of(**changes: Any) -> TrainingTask:
    settings: dict[str, Any] = {
        "model": sharded,
        "data": data(),
        "loss": weighted,
        "optimizer": lambda parameters, lr: torch.optim.AdamW(parameters, lr=0.1 * lr),
        "before_step": lambda model: nn.utils.clip_grad_norm_(model.parameters(), 0.5),
        "device": "cpu",
    }
    return TrainingTask(**(settings | changes))


def trained(folder: Path, micro_batch: int | None) -> list[list[float]]:
    """Losses of a training that is cut off and goes on, and of the same when it is finished."""

    class CutOffError(Exception):
        pass

    def stop(examples: int, _: float) -> None:
        if examples > 700:
            raise CutOffError

    given: dict[str, Any] = {
        "seed": 3,
        "checkpoint": folder / f"run{COUNT}-{micro_batch}",
        "micro_batch": micro_batch,
    }
    with contextlib.suppress(CutOffError):
        train(task_of(), SCHEDULE, on_evaluation=stop, **given)
    return [list(train(task_of(), SCHEDULE, **given).curve.losses) for _ in range(2)]


def trained_a_little() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(5)
    model = sharded()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        plain(model, tuple(part[:50] for part in data())).mean().backward()
        optimizer.step()
    with torch.no_grad():  # the outermost module is whole now
        model(data()[0])
    return model, optimizer


def noise(loss: Any, kind: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    reading = measure_noise_scale(
        model, loss, data(), optimizer=optimizer, kind=kind, group_size=6, relative_width=0.5, max_examples=240
    )
    return json.loads(reading.to_json())


def cut_short() -> str:
    """A probe whose time is up in the middle, by a clock that every loss moves on, however busy the machine is."""
    now = 0.0

    def timed(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        nonlocal now
        now += 0.02
        return weighted(model, batch)

    with (
        patch("time.time", lambda: now),
        patch("time.perf_counter", lambda: now),
        patch("batchopt.probing.probe.examples_within", lambda seconds, cost, price: 100_000),  # far more than there is
    ):
        return probe(task_of(loss=timed), seconds=2.0, seed=0).to_json()


def refused(work: Any) -> str:
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "it was done"


def answers(folder: Path) -> dict[str, Any]:
    model, optimizer = trained_a_little()
    parameters = optimizer.param_groups[0]["params"]  # the model's own, while its outermost module is whole
    grads = [own_part(parameter.grad).clone() for parameter in parameters]
    found: dict[str, Any] = {
        "trained": trained(folder, None),
        "in parts": trained(folder, 5),
        **{
            f"{kind} {loss.__name__}": noise(loss, kind, model, optimizer)
            for kind in ("simple", "preconditioned")
            for loss in (plain, weighted)
        },
        "not finite": refused(lambda: measure_noise_scale(model, not_finite, data(), group_size=6)),
    }
    found["grads"] = [bool((own_part(p.grad) == old).all()) for p, old in zip(parameters, grads, strict=True)]
    found["another model"] = refused(
        lambda: train(task_of(model=other_layers), SCHEDULE, seed=3, checkpoint=folder / f"run{COUNT}-None")
    )
    if COUNT > 1:
        # Every step takes long here, so batches are large where their size is not what is tested.
        for name in ("report", "report again"):
            given = {"examples": BUDGET, "batch_sizes": (28, 56), "journal": folder / "journal"}
            found[name] = probe(task_of(), seed=0, **given).to_json()
        found["late"] = cut_short()
        found["with_dropout"] = probe(
            task_of(model=with_dropout, loss=plain),
            examples=4_800,
            seed=0,
            batch_sizes=(16, 32),
            goal=LowestLoss(20_000, "examples"),
        ).to_json()
        found["normalised"] = probe(
            task_of(model=normalised, loss=plain), examples=2_400, seed=0, learning_rate=0.1
        ).to_json()
        found["weightless"] = refused(lambda: measure_noise_scale(model, weightless, data(), group_size=6))
        found["tensor parallel"] = refused(lambda: train(task_of(model=tensor_parallel), SCHEDULE))
        found["hessian"] = refused(lambda: measure_noise_scale(model, plain, data(), kind="hessian"))
        found["stream"] = refused(lambda: measure_noise_scale(model, plain, iter([data()])))
        found["half"] = refused(lambda: measure_noise_scale(half_sharded(), plain, data()))
        found["monitor"] = refused(lambda: NoiseScaleMonitor(model, plain))
    return found
