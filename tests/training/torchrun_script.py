"""What each process of a test trains, by `train` and by loops of its own."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from batchopt import (
    AdaptiveSchedule,
    Forecast,
    NonFiniteLossError,
    Plan,
    Schedule,
    Segment,
    TaskError,
    TrainingTask,
    probe,
    scheduled_loader,
    train,
)
from batchopt.probing.evaluation import Evaluation
from batchopt.probing.run import TrainingRun
from batchopt.training.result import TrainingResult

SCHEDULE = Schedule((Segment(0, 8), Segment(200, 24, 1.5), Segment(600, 48, 2.0)), examples=1_501, learning_rate=0.1)
"""The last batch is of 37."""


def data() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(300, 6, generator=generator)
    return x, (x[:, 0] > 0).long(), torch.randint(1, 5, (300,), generator=generator).float()


def plain_loss(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def weighted_loss(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    return plain_loss(model, batch), batch[2]


def half_of_no_weight(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    return plain_loss(model, batch), (batch[2] > 2).float()


def task_of(**changes: Any) -> TrainingTask:
    settings: dict[str, Any] = {
        "model": lambda: nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 2)),
        "data": data(),
        "loss": plain_loss,
        "optimizer": lambda parameters, lr: torch.optim.AdamW(parameters, lr=0.1 * lr),
        "before_step": lambda model: nn.utils.clip_grad_norm_(model.parameters(), 0.5),
        "device": "cpu",
    }
    return TrainingTask(**(settings | changes))


def trained(folder: Path, name: str, task: TrainingTask, **given: Any) -> dict[str, Any]:
    seen: list[int] = []
    result = train(
        task,
        SCHEDULE,
        seed=3,
        checkpoint=folder / f"{name}.run",
        metrics=folder / f"{name}.jsonl",
        on_evaluation=lambda examples, _: seen.append(examples),
        **given,
    )
    return {
        "losses": list(result.curve.losses),
        "steps": result.steps,
        "weights": torch.cat([p.detach().flatten() for p in result.model.parameters()]).tolist(),
        "evaluated": seen,
    }


def diverged(task: TrainingTask) -> str:
    try:
        train(task, SCHEDULE, learning_rate=1e20)
    except NonFiniteLossError as error:
        return str(error)
    return "it did not diverge"


def cut_off(folder: Path) -> dict[str, Any]:
    """A training with dropout and running statistics that is interrupted and goes on."""

    class CutOffError(Exception):
        pass

    def stop(examples: int, _: float) -> None:
        if examples > 700:
            raise CutOffError

    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 2))

    where = folder / f"cut{os.environ.get('WORLD_SIZE', '1')}.run"
    with contextlib.suppress(CutOffError):
        train(task_of(model=make), SCHEDULE, seed=3, checkpoint=where, on_evaluation=stop)
    result = train(task_of(model=make), SCHEDULE, seed=3, checkpoint=where)
    whole = train(task_of(model=make), SCHEDULE, seed=3)
    return {
        "losses": list(result.curve.losses),
        "whole": list(whole.curve.losses),
        "state": [value.double().sum().item() for value in result.model.state_dict().values()],
    }


def disagree(rank: int) -> str:
    try:
        train(task_of(), SCHEDULE, seed=rank)
    except TaskError as error:
        return str(error)
    return "they went on"


def unused_and_named() -> list[float]:
    """A parameter that nothing depends on, and a loss that calls more than the model."""

    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(6, 2), nn.Linear(3, 3)

        def logits(self, x: Tensor) -> Tensor:
            return self.used(x)

    loss = lambda model, batch: nn.functional.cross_entropy(model.logits(batch[0]), batch[1], reduction="none")  # noqa: E731
    return list(train(task_of(model=Partly, loss=loss), SCHEDULE, seed=3).curve.losses)


def undecided(*_: object) -> bool:
    raise RuntimeError("no forecast")


def refused(work: Callable[[], object]) -> str:
    try:
        work()
    except NonFiniteLossError as error:
        return str(error)
    return "it went on"


def adapted(folder: Path, count: int) -> dict[str, Any]:
    """A training that decides when to decay, and goes back on its first decay; once cut off in the middle."""
    plan, forecast = Plan.load(folder.parent / "plan.json"), Forecast.load(folder.parent / "forecast.json")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2_000, 8, generator=generator)
    task = TrainingTask(
        model=lambda: nn.Linear(8, 1),
        data=(x, x.sum(1) + 3.0 * torch.randn(2_000, generator=generator)),
        loss=lambda model, batch: (model(batch[0])[:, 0] - batch[1]).square(),
        optimizer=lambda parameters, lr: torch.optim.SGD(parameters, lr=1e-3 * lr),
        device="cpu",
    )

    class CutOffError(Exception):
        pass

    def stop(examples: int, _: float) -> None:
        if examples > plan.schedule.examples / 3:
            raise CutOffError

    def follow(task: TrainingTask = task, **given: Any) -> tuple[AdaptiveSchedule, TrainingResult]:
        adaptive = AdaptiveSchedule(plan, forecast)

        def evaluated(run: TrainingRun) -> Evaluation:
            """The forecast's own loss; the first decay is spoilt."""
            seen, rates = max(1, run.examples_seen), adaptive.schedule.learning_rate_schedule
            (loss,) = forecast.losses_along(plan.batch_size, plan.learning_rate, (seen,), learning_rate_schedule=rates)
            return Evaluation(loss * (1.5 if seen > adaptive.decay_begins and not adaptive.missed else 1.0), {})

        with patch.object(TrainingRun, "evaluation", evaluated):
            return adaptive, train(task, adaptive, seed=3, **given)

    whole, result = follow()
    # As on nodes without a common folder: each process has a place of its own, and the first alone writes.
    own = folder / f"node{os.environ.get('RANK', '0')}of{count}"
    own.mkdir()
    _, apart = follow(checkpoint=own / "run")
    with contextlib.suppress(CutOffError):
        follow(checkpoint=folder / f"adapted{count}", on_evaluation=stop)
    again, resumed = follow(checkpoint=folder / f"adapted{count}")
    fragile = replace(task, optimizer=lambda parameters, lr: torch.optim.SGD(parameters, lr=0.8 * lr))
    lowered, begun_again = follow(fragile)
    with contextlib.suppress(CutOffError):
        follow(fragile, checkpoint=folder / f"fragile{count}", on_evaluation=stop)
    _, gone_on = follow(fragile, checkpoint=folder / f"fragile{count}")
    with patch.object(AdaptiveSchedule, "update", undecided):
        ended = refused(lambda: follow(fragile))
    return {
        "gone on": gone_on.model.weight.flatten().tolist(),
        "undecided": ended,
        "diverged": [(run.at, run.steps) for run in lowered.diverged],
        "begun again": begun_again.model.weight.flatten().tolist(),
        "apart": apart.model.weight.flatten().tolist(),
        "resumed weights": resumed.model.weight.flatten().tolist(),
        "schedule": json.loads(whole.schedule.to_json()),
        "again": json.loads(again.schedule.to_json()),
        "missed": [(decay.begin, decay.end) for decay in whole.missed],
        "weights": result.model.weight.flatten().tolist(),
    }


def sharded(rank: int, count: int) -> dict[str, Any]:
    """A loop of one's own: FSDP2 over the shares of `scheduled_loader`."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 2))
    if count > 1:
        fully_shard(model, mesh=init_device_mesh("cpu", (count,)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for batch, weights in scheduled_loader(data(), SCHEDULE, seed=3, rank=rank, ranks=count):
        optimizer.zero_grad()
        mean = (weights * plain_loss(model, batch)).sum()
        mean.backward()
        optimizer.step()
        whole = mean.detach() / count
        if count > 1:
            torch.distributed.all_reduce(whole)
        losses.append(float(whole))
    return {"losses": losses}


def answers(folder: Path) -> dict[str, Any]:
    count, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    found: dict[str, Any] = {
        "plain": trained(folder, f"plain{count}", task_of()),
        "weighted": trained(folder, f"weighted{count}", task_of(loss=weighted_loss)),
        "parts": trained(folder, f"parts{count}", task_of(loss=weighted_loss), micro_batch=5),
        "again": trained(folder, f"plain{count}", task_of()),
        "diverged": diverged(task_of()),
        "sharded": sharded(rank, count),
        "cut off": cut_off(folder),
        "adapted": adapted(folder, count),
        "unused": unused_and_named(),
        "zero": trained(folder, f"zero{count}", task_of(loss=half_of_no_weight), micro_batch=1),
    }
    if count > 1:
        given: dict[str, Any] = {"examples": 5_000, "batch_sizes": (16, 32)}
        found["report"] = probe(task_of(), seed=0, journal=folder / "journal", **given).to_json()
        found["disagree"] = disagree(rank)
    return found
