"""The loader follows the schedule exactly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import IterableDataset, TensorDataset

from batchopt.errors import TaskError
from batchopt.probing.data import shuffled_indices
from batchopt.probing.run import TrainingRun
from batchopt.probing.task import TrainingTask
from batchopt.schedules.schedule import Schedule, Segment
from batchopt.training.loader import ScheduledBatchSampler, equal_share_loader, scheduled_loader

REFERENCE = Schedule((Segment(0, 64), Segment(10_000, 128), Segment(50_000, 256)), examples=120_000)


def flat(sampler: ScheduledBatchSampler) -> list[int]:
    return [index for batch in sampler for index in batch]


@pytest.mark.parametrize("workers", [0, 2])
def test_reference_schedule_without_lag(workers: int) -> None:
    loader = scheduled_loader((torch.arange(1_000),), REFERENCE, num_workers=workers)
    sizes = [len(batch[0]) for batch in loader]
    assert len(loader) == len(sizes) == 743
    assert [step for step in range(1, 743) if sizes[step] != sizes[step - 1]] == [157, 470]
    assert sum(sizes) == 120_000


@settings(max_examples=50, deadline=None)
@given(
    population=st.integers(1, 50),
    examples=st.integers(20, 400),
    first=st.integers(1, 20),
    second=st.integers(1, 30),
    switch=st.integers(1, 19),
    start=st.integers(0, 20),
    drop_last=st.booleans(),
)
def test_epochs_sizes_and_length(
    population: int, examples: int, first: int, second: int, switch: int, start: int, drop_last: bool
) -> None:
    schedule = Schedule((Segment(0, first), Segment(switch, second)), examples)
    whole = flat(ScheduledBatchSampler(population, schedule, seed=1))
    assert len(whole) == examples
    for begin in range(0, examples - population + 1, population):
        assert sorted(whole[begin : begin + population]) == list(range(population))
    part = ScheduledBatchSampler(population, schedule, seed=1, start_examples=start, drop_last=drop_last)
    batches = list(part)
    assert len(part) == len(batches)
    seen = start
    for batch in batches:
        assert batch == whole[seen : seen + len(batch)]
        assert len(batch) == (schedule(seen) if drop_last else min(schedule(seen), examples - seen))
        seen += len(batch)
    assert seen == examples or (drop_last and seen + schedule(seen) > examples)


def test_a_loader_and_a_run_of_one_seed_see_the_same_examples() -> None:
    seen: list[int] = []
    data = (torch.arange(100.0),)

    def loss(model: torch.nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        seen.extend(batch[0].long().tolist())
        return torch.as_tensor(model(batch[0][:, None])[:, 0])

    task = TrainingTask(
        model=lambda: torch.nn.Linear(1, 1),
        data=data,
        loss=loss,
        optimizer=lambda parameters, lr: torch.optim.SGD(parameters, lr=lr),
        device="cpu",
    )
    run = TrainingRun(task, learning_rate=1e-6, seed=7)
    schedule = Schedule((Segment(0, 32), Segment(64, 50)), examples=250)
    for _, size in schedule.batches():
        run.step(size)
    assert [int(n) for (batch,) in scheduled_loader(data, schedule, seed=7) for n in batch] == seen
    assert (
        flat(ScheduledBatchSampler(100, schedule, seed=7)) == shuffled_indices(100, seed=7, start=0, count=250).tolist()
    )


def test_going_on_repeats_and_loses_nothing() -> None:
    whole = list(ScheduledBatchSampler(1_000, REFERENCE, seed=3))
    loader = scheduled_loader((torch.arange(1_000),), REFERENCE, seed=3)
    sampler = loader.batch_sampler
    assert isinstance(sampler, ScheduledBatchSampler)
    for step, _ in enumerate(loader):
        if step == 299:
            break
    state = sampler.state_dict()
    assert state["examples_seen"] == sum(len(batch) for batch in whole[:300])
    with pytest.raises(ValueError, match="got one of seed 3 for a sampler of seed 99"):
        ScheduledBatchSampler(1_000, REFERENCE, seed=99).load_state_dict(state)
    resumed = ScheduledBatchSampler(1_000, REFERENCE, seed=3)
    resumed.load_state_dict(state)
    assert len(resumed) == 443
    assert list(resumed) == whole[300:]
    given_start = ScheduledBatchSampler(1_000, REFERENCE, seed=3, start_examples=state["examples_seen"])
    assert list(given_start) == whole[300:]


def test_workers_are_ahead_of_the_loop() -> None:
    loader = scheduled_loader((torch.arange(1_000),), REFERENCE, num_workers=1)
    sampler = loader.batch_sampler
    assert isinstance(sampler, ScheduledBatchSampler)
    batches = iter(loader)
    seen = len(next(batches)[0])
    assert sampler.state_dict()["examples_seen"] > seen
    resumed = scheduled_loader((torch.arange(1_000),), REFERENCE, num_workers=1, start_examples=seen)
    assert torch.equal(next(iter(resumed))[0], next(batches)[0])


def test_a_finished_run_has_nothing_left() -> None:
    sampler = ScheduledBatchSampler(10, REFERENCE, start_examples=120_000)
    assert list(sampler) == []
    assert len(sampler) == 0


def test_order_and_last_batch() -> None:
    schedule = Schedule.constant(4, examples=10)
    assert list(ScheduledBatchSampler(3, schedule, shuffle=False)) == [[0, 1, 2, 0], [1, 2, 0, 1], [2, 0]]
    dropped = ScheduledBatchSampler(3, schedule, drop_last=True)
    assert [len(batch) for batch in dropped] == [4, 4]
    assert len(dropped) == 2


def test_data_sets_and_collate() -> None:
    schedule = Schedule.constant(3, examples=6)
    x, y = torch.arange(6.0), torch.arange(6) * 2
    of_tensors = list(scheduled_loader((x, y), schedule))
    of_dataset = list(scheduled_loader(TensorDataset(x, y), schedule))
    assert all(isinstance(batch, tuple) for batch in of_tensors)
    for ours, theirs in zip(of_tensors, of_dataset, strict=True):
        assert all(torch.equal(left, right) for left, right in zip(ours, theirs, strict=True))
    assert list(scheduled_loader((x, y), schedule, collate_fn=len)) == [3, 3]
    assert list(scheduled_loader(TensorDataset(x), schedule, collate_fn=len)) == [3, 3]


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


def test_data_that_cannot_be_drawn_from() -> None:
    with pytest.raises(TypeError, match="dataset must be a tuple of tensors or a map-style data set"):
        scheduled_loader([1, 2, 3].__iter__(), REFERENCE)  # type: ignore[arg-type]
    with pytest.raises(TaskError, match="dataset must hold at least 1 example, got 0"):
        scheduled_loader((torch.empty(0),), REFERENCE)
    with pytest.raises(TaskError, match="of one length, got lengths 3, 4"):
        scheduled_loader((torch.empty(3), torch.empty(4)), REFERENCE)


@pytest.mark.parametrize("option", ["batch_size", "sampler", "batch_sampler"])
def test_options_that_would_override_the_schedule(option: str) -> None:
    with pytest.raises(TypeError, match=f"{option} must be left out: the schedule decides"):
        scheduled_loader((torch.arange(3),), REFERENCE, **{option: 4})


def test_bad_starts_and_states() -> None:
    with pytest.raises(ValueError, match="start_examples must be at most the schedule's 120000, got 120001"):
        ScheduledBatchSampler(10, REFERENCE, start_examples=120_001)
    with pytest.raises(ValueError, match="population must be at least 1"):
        ScheduledBatchSampler(0, REFERENCE)
    sampler = ScheduledBatchSampler(10, REFERENCE)
    state = sampler.state_dict()
    with pytest.raises(ValueError, match="lacks population, seed"):
        sampler.load_state_dict({"examples_seen": 3})
    with pytest.raises(ValueError, match="a data set of 10 examples, got one of 11"):
        sampler.load_state_dict(state | {"population": 11})
    with pytest.raises(ValueError, match="start_examples must be at least 0, got -1"):
        sampler.load_state_dict(state | {"examples_seen": -1})


@settings(max_examples=50, deadline=None)
@given(
    ranks=st.integers(2, 5), examples=st.integers(1, 300), factors=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    start=st.integers(0, 40), seed=st.integers(0, 3),
)  # fmt: skip
def test_shares_of_ranks_are_the_global_batches(
    ranks: int, examples: int, factors: tuple[int, int], start: int, seed: int
) -> None:
    segments = (Segment(0, ranks * factors[0]), *([Segment(30, ranks * factors[1])] if examples > 30 else []))
    schedule, start = Schedule(segments, examples), min(start, examples)
    alone = list(ScheduledBatchSampler(37, schedule, seed=seed, start_examples=start))
    samplers = [
        ScheduledBatchSampler(37, schedule, seed=seed, start_examples=start, rank=rank, ranks=ranks)
        for rank in range(ranks)
    ]
    shares = [list(sampler) for sampler in samplers]
    assert [len(sampler) for sampler in samplers] == [len(alone)] * ranks
    for whole, *parts in zip(alone, *shares, strict=True):
        assert len({len(part) for part in parts}) == 1
        counted = [index for part in parts for index in part[: part.examples]]
        assert sorted(counted) == sorted(whole)
        assert all(part.of == len(whole) for part in parts)
    assert all(sampler.state_dict() == samplers[0].state_dict() for sampler in samplers)


@pytest.mark.parametrize("workers", [0, 2])
def test_weights_make_the_mean_over_ranks_the_mean_over_the_batch(workers: int) -> None:
    schedule = Schedule((Segment(0, 6), Segment(12, 12)), examples=31)  # the last batch is 7 of 12
    data = (torch.arange(1.0, 12.0), torch.arange(11))
    alone = [float(batch[0].mean()) for batch in scheduled_loader(data, schedule, seed=2)]
    loaders = [scheduled_loader(data, schedule, seed=2, rank=rank, ranks=3, num_workers=workers) for rank in range(3)]
    means = [
        sum(float((weights * batch[0]).sum()) for batch, weights in parts) / 3 for parts in zip(*loaders, strict=True)
    ]
    assert means == pytest.approx(alone, rel=1e-6)
    of_dataset = scheduled_loader(TensorDataset(*data), schedule, seed=2, rank=1, ranks=3, num_workers=workers)
    for (ours, weights), (theirs, as_well) in zip(of_dataset, loaders[1], strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(weights, as_well)
    last = [list(loader)[-1][1] for loader in loaders]
    assert [int((weights > 0).sum()) for weights in last] == [3, 2, 2]
    assert all(len(weights) == 3 for weights in last)


def test_a_run_goes_on_with_another_number_of_ranks() -> None:
    schedule = Schedule.constant(12, examples=120)
    two = ScheduledBatchSampler(50, schedule, rank=0, ranks=2)
    batches = iter(two)
    next(batches), next(batches)
    three = [ScheduledBatchSampler(50, schedule, rank=rank, ranks=3) for rank in range(3)]
    for sampler in three:
        sampler.load_state_dict(two.state_dict())
    counted = [sorted(index for part in parts for index in part) for parts in zip(*three, strict=True)]
    assert counted == [sorted(batch) for batch in list(ScheduledBatchSampler(50, schedule))[2:]]


def test_ranks_that_cannot_share() -> None:
    with pytest.raises(ValueError, match="must divide into 3 ranks, got 64: plan with multiple_of=3"):
        ScheduledBatchSampler(10, REFERENCE, ranks=3)
    with pytest.raises(ValueError, match="rank must be less than ranks, got 2 of 2"):
        ScheduledBatchSampler(10, REFERENCE, rank=2, ranks=2)


class Numbers(IterableDataset[torch.Tensor]):
    """0, 1, ... below a count; each worker reads every n-th; the epoch is in the hundreds of thousands."""

    def __init__(self, count: int) -> None:
        self.count, self.epoch = count, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[torch.Tensor]:
        worker = torch.utils.data.get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return (torch.tensor(100_000 * self.epoch + n) for n in range(first, self.count, step))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_is_batched_by_the_schedule_over_its_epochs(workers: int) -> None:
    schedule = Schedule((Segment(0, 7), Segment(100, 30)), examples=500)
    loader = scheduled_loader(Numbers(200), schedule, num_workers=workers)
    batches = list(loader)
    assert [len(batch) for batch in batches] == [size for _, size in schedule.batches()]
    assert len(loader) == schedule.steps
    seen = torch.cat(batches).tolist()
    assert sorted(seen[:200]) == list(range(200))
    assert sorted(seen[200:400]) == list(range(100_000, 100_200))
    start = sum(len(batch) for batch in batches[:20])
    again = list(scheduled_loader(Numbers(200), schedule, num_workers=workers, start_examples=start))
    assert torch.cat(again).tolist() == seen[start:]


def test_a_stream_among_ranks_and_its_last_batch() -> None:
    schedule = Schedule.constant(12, examples=31)  # the last batch is 7 of 12
    loaders = [list(scheduled_loader(Numbers(50), schedule, rank=rank, ranks=3)) for rank in range(3)]
    assert [len(weights) for _, weights in loaders[0]] == [4, 4, 3]
    assert [int((loader[-1][1] > 0).sum()) for loader in loaders] == [3, 2, 2]
    assert sum(float(loader[-1][1].sum()) for loader in loaders) == pytest.approx(3.0)
    assert [len(batch) for batch in scheduled_loader(Numbers(50), schedule, drop_last=True)] == [12, 12]


def test_streams_that_cannot_be_batched() -> None:
    with pytest.raises(TypeError, match="shuffle must be left out for an iterable data set"):
        scheduled_loader(Numbers(9), REFERENCE, shuffle=True)
    with pytest.raises(TaskError, match="must give at least one example, and gave none"):
        list(scheduled_loader(Numbers(0), REFERENCE))
    with pytest.raises(ValueError, match="start_examples must be at most the schedule's 120000, got 120001"):
        scheduled_loader(Numbers(9), REFERENCE, start_examples=120_001)


@pytest.mark.parametrize("dataset", [(torch.arange(50.0),), Numbers(50)])
def test_one_rank_that_is_named_gives_weights_as_several_do(dataset: Any) -> None:
    schedule = Schedule((Segment(0, 4), Segment(8, 6)), examples=17)
    for batch, weights in scheduled_loader(dataset, schedule, rank=0, ranks=1):
        rows = batch[0] if isinstance(batch, list | tuple) else batch
        assert weights.tolist() == pytest.approx([1 / len(rows)] * len(rows))
    with pytest.raises(ValueError, match="ranks must be at least 1, got 0"):
        scheduled_loader(dataset, schedule, ranks=0)


def test_equal_shares_are_the_batches_of_one_process_without_a_last_one_that_does_not_divide() -> None:
    schedule = Schedule((Segment(0, 4), Segment(40, 6)), examples=63)
    (whole,) = ([x.tolist() for (x,) in equal_share_loader((torch.arange(50),), schedule, rank=0, ranks=1)],)
    assert [len(batch) for batch in whole] == [size for _, size in schedule.batches()]
    shares = [
        [x.tolist() for (x,) in equal_share_loader((torch.arange(50),), schedule, rank=rank, ranks=2)]
        for rank in (0, 1)
    ]
    assert [sorted(a + b) for a, b in zip(*shares, strict=True)] == [sorted(batch) for batch in whole[:-1]]
    assert all(len(a) == len(b) for a, b in zip(*shares, strict=True))
