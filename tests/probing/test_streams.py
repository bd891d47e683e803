"""Streams that are opened by a seed: the same examples again, and all that a data set can do."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from batchopt import Forecast, LowestLoss, Schedule, TrainingTask, probe, train
from batchopt.errors import TaskError
from batchopt.probing.measure import measure_run
from batchopt.probing.run import TrainingRun
from batchopt.probing.streams import SeededStream

TRUTH = torch.linspace(-1.0, 1.0, 8)


def examples(seed: int, count: int = 10**9) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """A linear regression without end."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        x = torch.from_numpy(rng.standard_normal(8)).float()
        yield x, x @ TRUTH + 0.5 * float(rng.standard_normal())


def task_of(data: Any, **changes: Any) -> TrainingTask:
    return TrainingTask(
        model=lambda: nn.Linear(8, 1),
        data=data,
        loss=lambda model, batch: (model(batch[0])[:, 0] - batch[1]).square(),
        optimizer=lambda parameters, lr: torch.optim.SGD(parameters, lr=lr),
        device="cpu",
        **changes,
    )


def test_examples_are_those_of_the_stream_at_every_position() -> None:
    stream, straight = SeededStream(examples), list(examples(7, 60))
    for start, count in ((0, 5), (5, 10), (40, 20), (3, 4)):
        found = stream.examples(stream.positions(seed=7, start=start, count=count))
        for example, other in zip(found, straight[start : start + count], strict=True):
            assert torch.equal(example[0], other[0])
    other = stream.examples(stream.positions(seed=8, start=0, count=1))
    assert not torch.equal(other[0][0], straight[0][0])


def test_going_on_reads_no_example_twice() -> None:
    drawn: list[int] = []

    def counted(seed: int) -> Iterator[int]:
        for i in range(1_000):
            drawn.append(i)
            yield i

    stream = SeededStream(counted)
    for start in range(0, 100, 10):
        assert stream.examples(stream.positions(seed=0, start=start, count=10)) == list(range(start, start + 10))
    assert drawn == list(range(100))


def test_a_stream_that_ends_goes_on_with_another_pass() -> None:
    seeds: list[int] = []

    def short(seed: int) -> Iterator[tuple[int, int]]:
        seeds.append(seed)
        return ((seed, i) for i in range(10))

    stream = SeededStream(short)
    found = stream.examples(stream.positions(seed=3, start=8, count=4))
    assert [i for _, i in found] == [8, 9, 0, 1]
    assert len(set(seeds)) == 2
    assert found[2][0] != 3, "another pass has another seed"
    again = SeededStream(short)
    assert again.examples(again.positions(seed=3, start=8, count=4)) == found


def test_another_process_opens_its_own() -> None:
    stream = SeededStream(examples)
    first = stream.examples(stream.positions(seed=1, start=0, count=3))
    sent = pickle.loads(pickle.dumps(stream))
    again = sent.examples(sent.positions(seed=1, start=0, count=3))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))


def test_a_run_on_it_is_the_run_on_its_examples_as_a_data_set() -> None:
    of_stream = TrainingRun(task_of(examples), learning_rate=0.05, seed=4)
    rows = list(examples(4, 320))
    data = torch.stack([x for x, _ in rows]), torch.stack([y for _, y in rows])
    of_rows = TrainingRun(task_of(data), learning_rate=0.05, seed=4)
    for step in range(10):
        of_stream.step(32)
        of_rows.step(32, indices=np.arange(32 * step, 32 * (step + 1)))
    for one, other in zip(of_stream.model.parameters(), of_rows.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_noise_scale_is_of_an_infinite_population() -> None:
    run = TrainingRun(task_of(examples), learning_rate=0.05, seed=0)
    with torch.no_grad():
        run.model.weight.zero_()
        run.model.bias.zero_()
    found = measure_run(run, relative_width=0.01, max_examples=40_000)
    assert found.population is None
    assert found.examples == 40_000
    # g = 2 (x.w - y) x and its bias, at w = 0, for x of unit covariance: |G|^2 = 4 |truth|^2, and
    # E |g|^2 = 4 E y^2 (|x|^2 + 1) = 4 (11 |truth|^2 + 9 * 0.25).
    squared = float(TRUTH.square().sum())
    expected = (4.0 * (11.0 * squared + 9.0 * 0.25) - 4.0 * squared) / (4.0 * squared)
    assert found.batch_size.low < expected < found.batch_size.high
    assert found.batch_size.high < 1.1 * found.batch_size.low


def test_the_noise_scale_is_measured_on_examples_that_the_run_has_not_seen() -> None:
    seeds: list[int] = []

    def noted(seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        seeds.append(seed)
        return examples(seed)

    run = TrainingRun(task_of(noted), learning_rate=0.05, seed=5)
    run.step(32)
    assert seeds == [5]
    measure_run(run, max_examples=200, seed=5)
    assert len(seeds) == 2
    assert seeds[1] != 5


def test_probe_plan_and_training_go_on_it(tmp_path: Path) -> None:
    task = task_of(examples)
    report = probe(task, examples=6_000, seed=0, journal=tmp_path / "journal")
    assert report.stopped is None
    assert report.provenance.population is None
    assert probe(task, examples=6_000, seed=0, journal=tmp_path / "journal").to_json() == report.to_json()
    plan = Forecast.fit(report).plan(LowestLoss(20_000, "examples"))
    result = train(task, plan.schedule, seed=1)
    assert 0.25 < result.curve.losses[-1] < 0.3, "the noise of the labels is 0.25"


def test_a_killed_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    def kill(seen: int, _: float) -> None:
        if seen > 700:
            raise KilledError

    schedule = Schedule.constant(16, examples=1_600, learning_rate=0.05)
    whole = train(task_of(examples), schedule, seed=2)
    with pytest.raises(KilledError):
        train(task_of(examples), schedule, seed=2, checkpoint=tmp_path / "run", on_evaluation=kill)
    resumed = train(task_of(examples), schedule, seed=2, checkpoint=tmp_path / "run")
    assert resumed.resumed_at is not None
    assert resumed.curve == whole.curve
    assert torch.equal(resumed.model.weight, whole.model.weight)


def nothing(seed: int) -> Iterable[Any]:
    return ()


def exhausted() -> Callable[[int], Iterable[Any]]:
    """The same iterator every time, which is read already when it is opened again."""
    once = examples(0, 20)
    return lambda seed: once


@pytest.mark.parametrize("data", [nothing, exhausted()], ids=["empty", "the same iterator"])
def test_a_stream_without_examples_says_what_to_do(data: Any) -> None:
    run = TrainingRun(task_of(data), learning_rate=0.05, seed=0)
    with pytest.raises(TaskError, match=r"with the seed \d+ it gave none: return a new iterator"):
        run.step(32)


def test_what_is_evaluated_on_must_end() -> None:
    with pytest.raises(TypeError, match="eval_data must be a tuple of tensors or a map-style data set"):
        task_of(examples, eval_data=examples)


def test_batches_without_a_seed_are_refused_with_the_way_out() -> None:
    with pytest.raises(TaskError, match="a function that opens a stream of examples by a seed"):
        probe(task_of(iter([(torch.ones(4, 8), torch.ones(4))])), examples=2_000)
