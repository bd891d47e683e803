"""The reference loop: twin, schedule, stopping, divergence."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from batchopt.errors import NonFiniteLossError, TaskError
from batchopt.evidence import LossCurve
from batchopt.learning_rate_schedule import SHAPES, LearningRateSchedule
from batchopt.probing.data import shuffled_indices
from batchopt.probing.run import TrainingRun
from batchopt.probing.task import TrainingTask
from batchopt.schedules.schedule import Schedule, Segment
from batchopt.training.result import NOTHING_YET, Measured, TrainingResult
from batchopt.training.train import TrainingDivergedError, train

SCHEDULE = Schedule((Segment(0, 8), Segment(200, 16, 1.5), Segment(600, 32, 2.0)), examples=1_500, learning_rate=0.1)


def make_task(**changes: Any) -> TrainingTask:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(300, 6, generator=generator)
    settings: dict[str, Any] = {
        "model": lambda: nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Dropout(0.1), nn.Linear(12, 2)),
        "data": (x, (x[:, 0] > 0).long()),
        "loss": lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none"),
        "optimizer": lambda parameters, lr, momentum=0.5: torch.optim.SGD(parameters, lr=lr, momentum=momentum),
        "device": "cpu",
    }
    return TrainingTask(**(settings | changes))


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def plain_loop(task: TrainingTask, schedule: Schedule, *, seed: int) -> nn.Module:
    """A linear model by the schedule, with a rate that falls linearly to half."""
    torch.manual_seed(seed)
    model = nn.Linear(6, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    x, y = task.data
    seen = 0
    while seen < 1_500:
        size, factor = (8, 1.0) if seen < 200 else (16, 1.5) if seen < 600 else (32, 2.0)
        size = min(size, 1_500 - seen)
        rows = torch.as_tensor(shuffled_indices(300, seed=seed, start=seen, count=size).copy())
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * factor * (1.0 - 0.5 * (seen + 0.5 * size) / schedule.examples)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
        seen += size
    return model


def test_printed_a_result_is_a_line() -> None:
    schedule = Schedule.constant(8, examples=400)
    measured = Measured(LossCurve((0, 400), (2.0, 0.5), {"accuracy": (0.1, 0.9)}), (0.0, 1.5), 0.1)
    result = TrainingResult(
        nn.Linear(1, 1), schedule, measured, steps=50, examples=400, seconds=1.5, reached=None, outcome="finished"
    )
    told = "Trained on 400 examples in 50 steps and 1.5 s (finished): a loss of 0.5, accuracy 0.9 at the end"
    assert str(result) == told
    assert str(replace(result, measured=NOTHING_YET, outcome="diverged")).endswith("1.5 s (diverged)")


def test_twin_a_plain_loop() -> None:
    task = make_task(model=lambda: nn.Linear(6, 2), learning_rate_schedule=lambda progress: 1.0 - 0.5 * progress)
    result = train(task, SCHEDULE, seed=4)
    plain = plain_loop(task, SCHEDULE, seed=4)
    torch.testing.assert_close(weights(result.model), weights(plain), rtol=5e-5, atol=1e-6)
    assert result.outcome == "finished"
    assert result.examples == 1_500
    assert result.steps == SCHEDULE.steps
    x, y = task.data
    assert result.curve.losses[-1] == pytest.approx(nn.functional.cross_entropy(plain(x), y).item(), rel=1e-4)


def test_evaluations_are_evenly_spaced_in_the_logarithm() -> None:
    seen: list[tuple[int, float]] = []
    result = train(make_task(), SCHEDULE, on_evaluation=lambda examples, loss: seen.append((examples, loss)))
    assert seen == list(zip(result.curve.examples, result.curve.losses, strict=True))
    examples = result.curve.examples
    assert (examples[0], examples[1], examples[-1]) == (0, 80, 1_500)
    for left, right in pairwise(examples[1:]):
        assert right <= 1.2**1.5 * left + 32


def test_evaluating_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated = train(make_task(), SCHEDULE, seed=5)
    points = "batchopt.training.loop.evaluation_points"
    monkeypatch.setattr(points, lambda examples, *, first: [examples])
    assert torch.equal(weights(train(make_task(), SCHEDULE, seed=5).model), weights(evaluated.model))


def test_stops_when_the_loss_is_reached() -> None:
    result = train(make_task(), SCHEDULE, until_loss=0.5)
    assert result.outcome == "reached"
    assert result.reached is not None
    assert result.reached == result.curve.examples_to(0.5)
    assert result.examples == result.curve.examples[-1] < 1_500
    # The last evaluation only confirms the crossing: one evaluation earlier there was none.
    earlier = type(result.curve)(result.curve.examples[:-1], result.curve.losses[:-1])
    assert earlier.examples_to(0.5) is None
    assert train(make_task(), SCHEDULE, until_loss=1e-6).reached is None


def test_steps_and_seconds_at_the_crossing() -> None:
    result = train(make_task(), SCHEDULE, until_loss=0.4)
    assert result.reached is not None
    assert result.steps_at(200) == 25.0
    assert result.steps_at(208) == 25.5
    assert result.steps_reached == SCHEDULE.steps_to(result.reached)
    assert result.seconds_reached == result.seconds_at(result.reached)
    assert 0 < result.seconds_at(result.reached) < result.seconds
    for examples, seconds in zip(result.curve.examples, result.measured.clock, strict=True):
        assert result.seconds_at(examples) == seconds
    assert result.seconds_at(result.examples) == result.seconds
    with pytest.raises(ValueError, match=f"from 0 to the {result.examples} of the run, got {result.examples + 1}"):
        result.seconds_at(result.examples + 1)
    unreached = train(make_task(), SCHEDULE)
    assert unreached.reached is unreached.steps_reached is unreached.seconds_reached is None


def test_seconds_are_of_steps_only(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def taking(seconds: float, method: Callable[..., float]) -> Callable[..., float]:
        def slow(*args: Any, **options: Any) -> float:
            now[0] += seconds
            return method(*args, **options)

        return slow

    monkeypatch.setattr("batchopt.training.loop.time.perf_counter", lambda: now[0])
    monkeypatch.setattr(TrainingRun, "step", taking(2.0, TrainingRun.step))
    monkeypatch.setattr(TrainingRun, "evaluation", taking(1_000.0, TrainingRun.evaluation))
    result = train(make_task(), SCHEDULE)
    assert result.seconds == 2.0 * result.steps
    assert result.evaluation_seconds == 1_000.0 * len(result.curve.examples)
    assert result.seconds_at(200) == pytest.approx(2.0 * result.steps_at(200), rel=0.1)


def test_what_on_evaluation_raises_passes_through() -> None:
    class Stop(Exception):  # noqa: N818  (as Optuna's TrialPruned)
        pass

    def stop(examples: int, loss: float) -> None:
        if examples > 100:
            raise Stop(str(examples))

    with pytest.raises(Stop, match=r"^1\d\d$"):
        train(make_task(), SCHEDULE, on_evaluation=stop)


def test_hyperparameters_reach_the_optimizer() -> None:
    fast = train(make_task(), SCHEDULE, hyperparameters={"momentum": 0.9})
    slow = train(make_task(), SCHEDULE, hyperparameters={"momentum": 0.0})
    assert not torch.equal(weights(fast.model), weights(slow.model))


def test_learning_rate_of_the_call_replaces_the_schedules() -> None:
    bare = Schedule(SCHEDULE.segments, SCHEDULE.examples)
    given = train(make_task(), bare, learning_rate=0.1)
    assert torch.equal(weights(given.model), weights(train(make_task(), SCHEDULE).model))
    other = train(make_task(), SCHEDULE, learning_rate=0.01)
    assert not torch.equal(weights(other.model), weights(given.model))
    with pytest.raises(ValueError, match="a learning rate is needed: the schedule has none"):
        train(make_task(), bare)


def test_divergence_keeps_what_was_measured() -> None:
    def loss(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        losses = nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
        return losses * math.nan if calls() > 60 and model.training else losses

    def calls(count: list[int] = [0]) -> int:  # noqa: B006  (a counter)
        count[0] += 1
        return count[0]

    with pytest.raises(TrainingDivergedError, match=r"became nan after \d+ steps \(\d+ examples seen") as caught:
        train(make_task(loss=loss), SCHEDULE, until_loss=0.01)
    assert isinstance(caught.value, NonFiniteLossError)
    result = caught.value.result
    assert result.outcome == "diverged"
    assert result.reached is None
    assert len(result.curve.examples) > 3
    assert result.curve.examples[-1] <= result.examples
    assert result.steps == SCHEDULE.steps_to(result.examples)
    assert result.seconds >= result.measured.clock[-1]


def test_large_batches_are_taken_in_parts() -> None:
    """The same training, but for rounding, at every switch; and no part is larger than what fits."""
    sizes: list[int] = []

    def loss(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        if model.training:
            sizes.append(len(batch[0]))
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    whole, parts = (train(make_task(loss=loss), SCHEDULE, micro_batch=most) for most in (None, 10))
    assert max(sizes[: whole.steps]) == 32
    assert max(sizes[whole.steps :]) == 10
    assert parts.steps == whole.steps
    assert parts.curve.losses == pytest.approx(whole.curve.losses, rel=1e-4)
    with pytest.raises(ValueError, match="micro_batch must be at least 1, got 0"):
        train(make_task(), SCHEDULE, micro_batch=0)


def test_out_of_memory_says_which_batch() -> None:
    def loss(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        if model.training and len(batch[0]) == 16:
            raise torch.OutOfMemoryError("tried to allocate 3 TiB")
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    with pytest.raises(
        TaskError, match=r"one of 16 examples does not \(after 200 examples\): give micro_batch below 16"
    ):
        train(make_task(loss=loss), SCHEDULE)


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="losses must be positive"):
        train(make_task(loss=lambda model, batch: -model(batch[0])[:, 0].square()), SCHEDULE)
    for wrong, message in (
        (lambda progress: -1.0, r"that gives zero or more, got -1\.0 at progress 0"),
        (lambda progress: math.nan, r"that gives zero or more, got nan at progress 0"),
        (lambda progress: 0.0, "must be above zero somewhere, got zero at every point"),
        (lambda optimizer, steps: 1.0, "must be a function of progress .* and at progress 0 it failed"),
        (torch.optim.lr_scheduler.LambdaLR, "must be a function of progress .* and at progress 0 it failed"),
    ):
        with pytest.raises(TaskError, match=message):
            train(make_task(learning_rate_schedule=wrong), SCHEDULE)
    with pytest.raises(TaskError, match="the warm-up must end before the rate decays, got 1200 examples"):
        train(make_task(learning_rate_schedule="wsd", warmup_examples=1_200), SCHEDULE)
    with pytest.raises(TaskError, match="the warm-up must end before the run does, got 1500 examples"):
        train(make_task(warmup_examples=1_500), SCHEDULE)
    with pytest.raises(ValueError, match="until_loss must be positive"):
        train(make_task(), SCHEDULE, until_loss=0.0)
    for wrong in (tmp_path, tmp_path / "missing" / "run"):
        with pytest.raises(ValueError, match="checkpoint must name a file in a folder that exists"):
            train(make_task(), SCHEDULE, checkpoint=wrong)
    with pytest.raises(TaskError, match="a stream of batches cannot"):
        train(make_task(data=iter([])), SCHEDULE)


def test_tensorboard_holds_every_evaluation_once_also_after_a_kill(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class KilledError(Exception):
        pass

    def killed(seen: int, loss: float) -> None:
        if seen > 700:
            raise KilledError

    task, where = make_task(), {"checkpoint": tmp_path / "run", "log": f"tensorboard:{tmp_path / 'board'}"}
    with pytest.raises(KilledError):
        train(task, SCHEDULE, on_evaluation=killed, **where)  # type: ignore[arg-type]
    result = train(task, SCHEDULE, **where)  # type: ignore[arg-type]
    board = EventAccumulator(str(tmp_path / "board"))
    board.Reload()
    assert set(board.Tags()["scalars"]) == {"steps", "batch_size", "learning_rate", "loss", "seconds"}
    losses = board.Scalars("loss")
    assert [event.step for event in losses] == list(result.curve.examples)
    assert [event.value for event in losses] == pytest.approx(list(result.curve.losses))
    sizes = {event.step: event.value for event in board.Scalars("batch_size")}
    assert all(size == SCHEDULE(step) for step, size in sizes.items())


def test_the_rate_that_was_used_is_kept_with_the_schedule() -> None:
    schedule = Schedule.constant(8, examples=400, learning_rate=0.001)
    assert train(make_task(), schedule, learning_rate=0.002).schedule.learning_rate == 0.002
    assert train(make_task(), schedule).schedule == schedule


def test_something_else_than_a_task() -> None:
    with pytest.raises(TypeError, match="task must be a batchopt"):
        train("task", Schedule.constant(8, examples=400, learning_rate=0.001))  # type: ignore[arg-type]


def rates_of(monkeypatch: pytest.MonkeyPatch, task: TrainingTask, schedule: Schedule) -> tuple[list[float], Any]:
    """The rate of every step, and the result."""
    taken: list[float] = []
    step = TrainingRun.step

    def watched(run: TrainingRun, *args: Any, **given: Any) -> float:
        value = step(run, *args, **given)
        taken.append(run.optimizer.param_groups[0]["lr"])
        return value

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "step", watched)
        return taken, train(task, schedule)


def wanted(schedule: Schedule, rates: LearningRateSchedule) -> list[float]:
    """The peak rate, times the segment's multiplier, times the curve in the middle of the step."""
    return [
        0.1 * schedule.segment_at(seen).learning_rate_multiplier * rates(seen + size / 2)
        for seen, size in schedule.batches()
    ]


@pytest.mark.parametrize("shape", [*SHAPES, lambda progress: 1.0 - progress])
def test_a_task_names_what_its_rate_does(monkeypatch: pytest.MonkeyPatch, shape: Any) -> None:
    task = make_task(learning_rate_schedule=shape, warmup_examples=300)
    taken, result = rates_of(monkeypatch, task, SCHEDULE)
    rates = LearningRateSchedule.of(shape, examples=1_500, warmup_examples=300)
    assert taken == pytest.approx(wanted(SCHEDULE, rates))
    # What was followed can be followed again, by a task that says nothing of the rate.
    assert result.schedule == replace(SCHEDULE, learning_rate_schedule=rates)
    again, _ = rates_of(monkeypatch, make_task(), result.schedule)
    assert again == pytest.approx(taken)


def test_a_schedule_that_holds_warm_up_and_decay_is_followed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = LearningRateSchedule.of("linear", examples=1_500, warmup_examples=100)
    schedule = replace(SCHEDULE, learning_rate_schedule=rates)
    task = make_task(learning_rate_schedule="cosine", warmup_examples=500)
    taken, _ = rates_of(monkeypatch, task, schedule)
    assert taken == pytest.approx(wanted(schedule, rates))


def test_a_task_with_a_warm_up_alone_reads_it_at_the_end_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, result = rates_of(monkeypatch, make_task(warmup_examples=400), SCHEDULE)
    expected = [
        0.1 * SCHEDULE.segment_at(seen).learning_rate_multiplier * min(1.0, (seen + size) / 400)
        for seen, size in SCHEDULE.batches()
    ]
    assert taken == pytest.approx(expected)
    assert result.schedule == SCHEDULE


def test_an_optimizer_that_somebody_else_schedules_is_told() -> None:
    def scheduled(parameters: Any, lr: float) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(parameters, lr=lr)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        optimizer.register_step_post_hook(lambda *_: scheduler.step())
        return optimizer

    with pytest.raises(TaskError, match=r"left alone between its steps, and was changed from 0\.1 to 0\.09: make the"):
        train(make_task(optimizer=scheduled), SCHEDULE)
