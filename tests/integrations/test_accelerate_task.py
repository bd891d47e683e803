"""A loop with Accelerate as a task, and a plan as its loader."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import cloudpickle
import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, TensorDataset

from batchopt import Forecast, LearningRateSchedule, LowestLoss, Schedule, Segment, TrainingTask, probe
from batchopt.errors import TaskError
from batchopt.probing.run import TrainingRun

accelerate = pytest.importorskip("accelerate")

from batchopt.integrations.accelerate import apply_plan, task_from_accelerator  # noqa: E402

X = torch.randn(400, 5, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


@pytest.fixture(autouse=True)
def _states() -> Iterator[None]:
    """Accelerate keeps its settings in the process."""
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


def loss(model: Any, batch: Any) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))


def groups(model: Any) -> list[dict[str, Any]]:
    return [{"params": model[0].parameters(), "weight_decay": 0.1}, {"params": model[2].parameters(), "lr": 0.2}]


def prepared(*, size: int = 16, model: Any = None, optimizer: Any = None, loader: Any = None, **settings: Any) -> Any:
    accelerator = accelerate.Accelerator(cpu=True, **settings)
    model = model or network()
    optimizer = optimizer or torch.optim.SGD(groups(model), lr=0.1, momentum=0.9)
    loader = loader or DataLoader(TensorDataset(X, Y), batch_size=size, shuffle=True, drop_last=True)
    return accelerator, *accelerator.prepare(model, optimizer, loader)


def test_a_step_is_the_loops_own() -> None:
    task = task_from_accelerator(*prepared(), loss)
    assert (task.population, task.prior, task.autocast) == (400, (16, 0.1), None)
    run = TrainingRun(task, learning_rate=0.3, seed=1)
    run.step(400)
    twin: Any = network()
    optimizer = torch.optim.SGD(groups(twin), lr=0.1, momentum=0.9)
    optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = 0.3, 0.6
    loss(twin, (X, Y)).backward()
    optimizer.step()
    for own, other in zip(run.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(own.detach(), other.detach())


def test_precision_and_accumulated_batches_are_read() -> None:
    accelerator, model, optimizer, loader = prepared(mixed_precision="bf16", gradient_accumulation_steps=4)
    task = task_from_accelerator(accelerator, model, optimizer, loader, loss)
    assert (task.autocast, task.prior) == (torch.bfloat16, (64, 0.1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert task.make_model()(X).dtype == torch.bfloat16  # the wrapped forward pass gives float32
    assert model(X).dtype == torch.float32  # and is still there


@pytest.mark.parametrize("kind", ["seedable", "shared"])
def test_the_loader_is_that_of_all_processes(kind: str) -> None:
    accelerator, model, optimizer, loader = prepared()
    plain = DataLoader(TensorDataset(X, Y), batch_size=16, shuffle=True)
    if kind == "seedable":
        loader = accelerate.data_loader.prepare_data_loader(plain, use_seedable_sampler=True)
        assert isinstance(loader.batch_sampler.sampler, accelerate.data_loader.SeedableRandomSampler)
    else:
        loader = accelerate.data_loader.prepare_data_loader(plain, num_processes=3, process_index=1)
        assert len(loader.batch_sampler) == 9  # a third of 25 batches, one of them made even
    task = task_from_accelerator(accelerator, model, optimizer, loader, loss, eval_loader=plain)
    assert task.population == 400
    assert task.prior == (16 if kind == "seedable" else 48, 0.1)
    assert len(task.eval_data[0]) == 400


def test_the_rate_is_the_one_before_a_scheduler_set_it() -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.8, 0.95))
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 10))
    assert optimizer.param_groups[0]["lr"] == 0.0
    task = task_from_accelerator(*prepared(model=model, optimizer=optimizer), loss)
    assert task.prior == (16, 3e-3)
    (group,) = task.make_optimizer(task.make_model(), learning_rate=0.01).param_groups
    assert (group["lr"], group["betas"]) == (0.01, (0.8, 0.95))


def test_another_process_gets_a_task_of_its_own() -> None:
    task = pickle.loads(cloudpickle.dumps(task_from_accelerator(*prepared(), loss)))
    assert TrainingRun(task, learning_rate=0.1, seed=0).step(16) > 0.0


def test_a_loop_is_probed_planned_for_and_follows_its_plan() -> None:
    accelerator, model, optimizer, loader = prepared()
    task = task_from_accelerator(accelerator, model, optimizer, loader, loss)
    plan = Forecast.fit(probe(task, examples=8_000)).plan(LowestLoss(8_000, "examples"))
    followed = apply_plan(plan, accelerator, optimizer, loader)
    sizes = []
    for batch in followed:
        optimizer.zero_grad()
        accelerator.backward(loss(model, batch))
        optimizer.step()
        sizes.append(len(batch[0]))
    assert sizes == [size for _, size in plan.schedule.batches()]
    assert loss(model, (X, Y)).item() < 0.3


def test_a_loop_that_steps_a_scheduler_takes_the_plans_rates_all_the_same() -> None:
    schedule = warmed_up()
    accelerator, model, optimizer, loader = prepared()
    scheduler = accelerator.prepare(torch.optim.lr_scheduler.StepLR(optimizer.optimizer, 3))
    taken: list[list[float]] = []
    followed = apply_plan(schedule, accelerator, optimizer, loader)
    optimizer.optimizer.register_step_pre_hook(lambda own, *_: taken.append([g["lr"] for g in own.param_groups]))
    for batch in followed:
        accelerator.backward(loss(model, batch))
        optimizer.step()
        scheduler.step()
    multipliers = [schedule.multiplier_of(seen, size) for seen, size in schedule.batches()]
    assert [rate for rate, _ in taken] == pytest.approx([0.5 * multiplier for multiplier in multipliers])
    assert [rate for _, rate in taken] == pytest.approx([1.0 * multiplier for multiplier in multipliers])


def rates_taken(optimizer: Any) -> list[float]:
    """The rate of the first group, of every step from now on."""
    taken: list[float] = []
    optimizer.register_step_pre_hook(lambda own, *_: taken.append(own.param_groups[0]["lr"]))
    return taken


def warmed_up() -> Schedule:
    rates = LearningRateSchedule.of("linear", examples=100, warmup_examples=20)
    return replace(Schedule((Segment(0, 4), Segment(60, 8)), 100, learning_rate=0.5), learning_rate_schedule=rates)


def test_a_step_that_the_scaler_leaves_out_does_not_delay_the_rates() -> None:
    schedule, left_out = warmed_up(), (0, 1, 7)
    accelerator, model, optimizer, loader = prepared()
    # Accelerate gives a CPU no scaler of its own; this is torch's, in the optimizer that is Accelerate's.
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaled = accelerate.optimizer.AcceleratedOptimizer(optimizer.optimizer, scaler=accelerator.scaler)
    followed = apply_plan(schedule, accelerator, scaled, loader)
    taken = rates_taken(optimizer.optimizer)
    for k, batch in enumerate(followed):
        scaled.zero_grad()
        accelerator.backward(loss(model, batch) * (float("inf") if k in left_out else 1.0))
        scaled.step()
        assert scaled.step_was_skipped == (k in left_out)
    wanted = [0.5 * schedule.multiplier_of(seen, size) for seen, size in schedule.batches()]
    assert taken == pytest.approx([rate for k, rate in enumerate(wanted) if k not in left_out])


def test_rates_go_on_where_the_loader_does() -> None:
    schedule = warmed_up()
    accelerator, model, optimizer, loader = prepared()
    followed = apply_plan(schedule, accelerator, optimizer, loader)
    assert isinstance(followed, DataLoader)
    sampler: Any = followed.batch_sampler
    sampler.load_state_dict({**sampler.state_dict(), "examples_seen": 60})
    taken = rates_taken(optimizer.optimizer)
    for batch in followed:
        accelerator.backward(loss(model, batch))
        optimizer.step()
    assert taken == pytest.approx([0.5 * schedule.multiplier_of(seen, size) for seen, size in schedule.batches(60)])


def test_a_step_on_another_loader_is_refused() -> None:
    accelerator, model, optimizer, loader = prepared()
    followed = apply_plan(warmed_up(), accelerator, optimizer, loader)
    accelerator.backward(loss(model, next(iter(accelerate.skip_first_batches(followed, 2)))))
    with pytest.raises(ValueError, match=r"on a batch of the loader that apply_plan gave, .* as skip_first_batches"):
        optimizer.step()


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(zip(X, Y, strict=True))


def test_what_cannot_be_taken_over_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator, model, optimizer, loader = prepared()
    with pytest.raises(TaskError, match="one optimizer is trained with, got 2"):
        task_from_accelerator(accelerator, model, [optimizer, optimizer], loader, loss)  # type: ignore[arg-type]
    half = torch.optim.SGD(model[0].parameters(), lr=0.1)
    with pytest.raises(TaskError, match=r"hold every trainable parameter of the model, and 2 of 4 \('2.weight', '2.b"):
        task_from_accelerator(accelerator, model, half, loader, loss)
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    with pytest.raises(TaskError, match=r"must have a positive learning rate, got \[0.0\]"):
        task_from_accelerator(accelerator, model, still, loader, loss)
    with pytest.raises(TaskError, match="the DataLoader has a Own, which decides"):
        task_from_accelerator(accelerator, model, optimizer, own_batches(accelerator), loss)
    stream = accelerator.prepare(DataLoader(Stream(), batch_size=8))
    with pytest.raises(TaskError, match=r"cannot be read twice from one point: .* data=lambda seed"):
        task_from_accelerator(accelerator, model, optimizer, stream, loss)
    with pytest.raises(TypeError, match=r"accelerator must be an accelerate.Accelerator, got int"):
        task_from_accelerator(1, model, optimizer, loader, loss)
    monkeypatch.setattr(type(accelerator), "distributed_type", accelerate.DistributedType.DEEPSPEED)
    with pytest.raises(TaskError, match="DEEPSPEED must be left out of the accelerator"):
        task_from_accelerator(accelerator, model, optimizer, loader, loss)
    monkeypatch.undo()
    monkeypatch.setattr(type(accelerator), "mixed_precision", "fp8")
    with pytest.raises(TaskError, match="mixed_precision must be one of 'no', 'bf16', 'fp16', got 'fp8'"):
        task_from_accelerator(accelerator, model, optimizer, loader, loss)


class Own(BatchSampler):
    """Batches of a kind of its own."""


def own_batches(accelerator: Any) -> Any:
    dataset = TensorDataset(X, Y)
    return accelerator.prepare(DataLoader(dataset, batch_sampler=Own(SequentialSampler(dataset), 8, False)))


def test_the_remedies_help() -> None:
    accelerator, model, optimizer, loader = prepared()
    pairs = list(zip(X, Y, strict=True))
    stream = accelerator.prepare(DataLoader(Stream(), batch_size=8))
    opened = task_from_accelerator(accelerator, model, optimizer, stream, loss, data=lambda seed: iter(pairs))
    assert opened.population is None
    assert TrainingRun(opened, learning_rate=0.1, seed=0).step(16) > 0.0
    batched = own_batches(accelerator)
    assert task_from_accelerator(accelerator, model, optimizer, batched, loss, data=batched.dataset).population == 400
    for parameter in model[2].parameters():
        parameter.requires_grad = False
    task = task_from_accelerator(accelerator, model, torch.optim.SGD(model[0].parameters(), lr=0.1), loader, loss)
    assert isinstance(task, TrainingTask)


def test_plans_that_a_loop_cannot_follow() -> None:
    accelerator, _, optimizer, loader = prepared(gradient_accumulation_steps=2)
    schedule = Schedule.constant(4, examples=40, learning_rate=0.1)
    with pytest.raises(ValueError, match=r"got 2 steps: set accelerator.gradient_accumulation_steps = 1"):
        apply_plan(schedule, accelerator, optimizer, loader)
    accelerator.gradient_accumulation_steps = 1
    assert len(apply_plan(schedule, accelerator, optimizer, loader)) == 10
    with pytest.raises(ValueError, match="must hold a learning rate, got None"):
        apply_plan(Schedule.constant(4, examples=40), accelerator, optimizer, loader)
    weighted = torch.utils.data.WeightedRandomSampler(torch.ones(400), 400)
    with pytest.raises(TaskError, match=r"the DataLoader draws by weights: train with batchopt.train"):
        apply_plan(schedule, accelerator, optimizer, DataLoader(TensorDataset(X, Y), sampler=weighted))
