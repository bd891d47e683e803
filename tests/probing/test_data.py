"""Data by index: order, batches, evaluation sample."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from probing.problems import make_task
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from batchopt.errors import TaskError
from batchopt.probing.data import (
    EVALUATION_BATCH,
    check_data,
    evaluation_batches,
    evaluation_examples,
    fetch,
    gather,
    is_stream,
    population,
    shuffled_indices,
    to_device,
)

CPU = torch.device("cpu")


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield torch.zeros(2)


@given(
    population=st.integers(1, 40),
    seed=st.integers(0, 5),
    start=st.integers(0, 200),
    count=st.integers(0, 100),
    cut=st.integers(0, 100),
)
def test_order_can_be_read_from_any_position(population: int, seed: int, start: int, count: int, cut: int) -> None:
    cut = min(cut, count)
    whole = shuffled_indices(population, seed=seed, start=start, count=count)
    first = shuffled_indices(population, seed=seed, start=start, count=cut)
    second = shuffled_indices(population, seed=seed, start=start + cut, count=count - cut)
    assert whole.tolist() == [*first.tolist(), *second.tolist()]
    assert len(whole) == count


@given(population=st.integers(1, 40), seed=st.integers(0, 5), epoch=st.integers(0, 4))
def test_every_epoch_shows_every_example_once(population: int, seed: int, epoch: int) -> None:
    indices = shuffled_indices(population, seed=seed, start=epoch * population, count=population)
    assert sorted(indices.tolist()) == list(range(population))


def test_epochs_and_seeds_have_their_own_order() -> None:
    orders = {
        tuple(shuffled_indices(50, seed=seed, start=50 * epoch, count=50).tolist())
        for seed in (0, 1)
        for epoch in (0, 1, 2)
    }
    assert len(orders) == 6


def test_order_is_uniform() -> None:
    """Every example comes first in about one of ten epochs: |frequency - 0.1| < 4 standard errors."""
    firsts = np.array([shuffled_indices(10, seed=1, start=10 * epoch, count=1)[0] for epoch in range(4000)])
    frequency = np.bincount(firsts, minlength=10) / 4000
    assert np.all(np.abs(frequency - 0.1) < 4 * np.sqrt(0.1 * 0.9 / 4000))


def test_indices_that_are_handed_out_cannot_spoil_the_order() -> None:
    handed_out = shuffled_indices(10, seed=0, start=0, count=10)
    expected = handed_out.tolist()
    handed_out[:] = 0
    assert shuffled_indices(10, seed=0, start=0, count=10).tolist() == expected


def test_tensors_and_data_set_give_the_same_batch() -> None:
    task = make_task()
    indices = np.array([5, 0, 199, 5])
    slow = gather(TensorDataset(*task.data), indices, collate_fn=None, device=CPU)
    for left, right in zip(fetch(task, indices), slow, strict=True):
        assert torch.equal(left, right)
    assert isinstance(fetch(task, indices), tuple)


def test_collate_function_gets_the_examples_of_tensors_too() -> None:
    task = make_task(collate_fn=lambda examples: {"x": torch.stack([x for x, _ in examples]), "n": len(examples)})
    batch = fetch(task, np.array([3, 1]))
    assert torch.equal(batch["x"], task.data[0][[3, 1]])
    assert batch["n"] == 2


def test_to_device_follows_nesting() -> None:
    pair = namedtuple("pair", "left right")
    batch = {"a": [torch.zeros(1), pair(torch.zeros(2), "text")], "b": 3, "c": UserDict({"d": torch.zeros(1)})}
    moved = to_device(batch, torch.device("meta"))
    assert moved["a"][0].is_meta
    assert moved["a"][1].left.is_meta
    assert moved["a"][1].right == "text"
    assert moved["b"] == 3
    assert moved["c"]["d"].is_meta
    assert to_device(OrderedDict(a=torch.zeros(1)), torch.device("meta"))["a"].is_meta
    assert to_device(torch.nn.utils.rnn.pack_sequence([torch.zeros(2)]), CPU).data.device == CPU


@pytest.mark.parametrize(
    ("data", "stream", "size"),
    [
        ((torch.zeros(4, 2), torch.zeros(4)), False, 4),
        (TensorDataset(torch.zeros(5)), False, 5),
        ([1, 2, 3], False, 3),
        (DataLoader(TensorDataset(torch.zeros(6))), True, None),
        (Stream(), True, None),
        (iter([torch.zeros(2)]), True, None),
    ],
    ids=["tensors", "data set", "list", "loader", "iterable data set", "iterator"],
)
def test_forms_of_data(data: Any, stream: bool, size: int | None) -> None:
    check_data("data", data, least=2)
    assert is_stream(data) is stream
    assert population(data) == size


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ((), TaskError, "at least one tensor"),
        ((torch.zeros(0, 3),), TaskError, r"at least 2 examples, got 0"),
        ((torch.zeros(1, 3),), TaskError, r"at least 2 examples, got 1"),
        ([], TaskError, r"at least 2 examples, got 0"),
        ((torch.zeros(3), torch.zeros(4)), TaskError, "one length, got lengths 3, 4"),
        ((torch.zeros(3), torch.tensor(1.0)), TaskError, "without dimensions"),
        ((torch.zeros(3), np.zeros(3)), TypeError, "got ndarray: convert it with torch.as_tensor"),
        (torch.zeros(3), TypeError, r"got one tensor: write \(data,\)"),
        (17, TypeError, "an iterable of batches, got int"),
    ],
)
def test_bad_data(data: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_data("data", data, least=2)


def test_evaluation_sample_is_fixed_and_holds_no_example_twice() -> None:
    x = torch.arange(3000.0)[:, None]
    task = make_task(data=(x, torch.zeros(3000)))
    seen = torch.cat([batch[0] for batch in evaluation_batches(task)])
    again = torch.cat([batch[0] for batch in evaluation_batches(task)])
    assert torch.equal(seen, again)
    assert len(seen) == len(seen.unique()) == evaluation_examples(task) == 1024


def test_small_data_are_evaluated_whole() -> None:
    assert evaluation_examples(make_task()) == 200
    assert sum(len(batch[0]) for batch in evaluation_batches(make_task())) == 200


def test_evaluation_data_come_first() -> None:
    x = torch.arange(float(EVALUATION_BATCH + 7))[:, None]
    task = make_task(eval_data=(x, torch.zeros(len(x))))
    batches = list(evaluation_batches(task))
    assert torch.equal(torch.cat([batch[0] for batch in batches]), x)
    assert evaluation_examples(task) == len(x)
    assert max(len(batch[0]) for batch in batches) == EVALUATION_BATCH
