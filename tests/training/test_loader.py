"""The loader follows the schedule exactly."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import IterableDataset, TensorDataset

from batchopt.probing.data import shuffled_indices
from batchopt.schedules.schedule import Schedule, Segment
from batchopt.training.loader import ScheduledBatchSampler, scheduled_loader

REFERENCE = Schedule((Segment(0, 64), Segment(10_000, 128), Segment(50_000, 256)), examples=120_000)


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
)
def test_every_epoch_holds_every_example_once(population: int, examples: int, first: int, second: int, switch: int) -> None:
    schedule = Schedule((Segment(0, first), Segment(switch, second)), examples)
    flat = [index for batch in ScheduledBatchSampler(population, schedule, seed=1) for index in batch]
    assert len(flat) == examples
    for start in range(0, examples - population + 1, population):
        assert sorted(flat[start : start + population]) == list(range(population))


def test_a_loader_and_a_run_of_one_seed_see_the_same_examples() -> None:
    flat = [index for batch in ScheduledBatchSampler(100, REFERENCE, seed=7) for index in batch]
    assert flat[:500] == shuffled_indices(100, seed=7, start=0, count=500).tolist()


def test_resuming_repeats_and_loses_nothing() -> None:
    whole = list(ScheduledBatchSampler(1_000, REFERENCE, seed=3))
    seen = sum(len(batch) for batch in whole[:300])
    rest = ScheduledBatchSampler(1_000, REFERENCE, seed=3, start_examples=seen)
    assert list(rest) == whole[300:]
    assert len(rest) == 443
    loaded = ScheduledBatchSampler(1_000, REFERENCE, seed=99)
    loaded.load_state_dict(rest.state_dict())
    assert list(loaded) == whole[300:]


def test_order_and_last_batch() -> None:
    schedule = Schedule.constant(4, examples=10)
    assert list(ScheduledBatchSampler(3, schedule, shuffle=False)) == [[0, 1, 2, 0], [1, 2, 0, 1], [2, 0]]
    dropped = ScheduledBatchSampler(3, schedule, drop_last=True)
    assert [len(batch) for batch in dropped] == [4, 4]
    assert len(dropped) == 2


def test_data_sets_and_collate() -> None:
    loader = scheduled_loader(TensorDataset(torch.arange(6)), Schedule.constant(3, examples=6), collate_fn=len)
    assert list(loader) == [3, 3]


def test_refusals() -> None:
    class Stream(IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(range(3))

    with pytest.raises(TypeError, match="dataset must be a tuple of tensors or a map-style data set"):
        scheduled_loader(Stream(), REFERENCE)
    with pytest.raises(ValueError, match="start_examples must be at most"):
        ScheduledBatchSampler(10, REFERENCE, start_examples=120_001)
    with pytest.raises(ValueError, match="population must be at least 1"):
        ScheduledBatchSampler(0, REFERENCE)
