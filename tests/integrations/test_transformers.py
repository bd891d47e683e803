"""A Trainer that follows a schedule, by the real package."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from batchopt.learning_rate_schedule import LearningRateSchedule
from batchopt.schedules.schedule import Schedule, Segment

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from batchopt.integrations.transformers import ScheduleCallback, ScheduledTrainer  # noqa: E402

SCHEDULE = Schedule((Segment(0, 8), Segment(100, 16), Segment(300, 32, 0.5)), examples=620)


class Model(torch.nn.Module):
    """The loss rises by one with the parameter, whatever the batch: every gradient is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.sizes: list[int] = []
        self.seen: list[int] = []

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        self.sizes.append(len(x))
        self.seen += x.long().tolist()
        return {"loss": self.weight + 0.0 * x.sum()}


class Watch(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        self.gradients: list[float] = []
        self.rates: list[float] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.gradients.append(float(more["model"].weight.grad))
        self.rates.append(float(more["optimizer"].param_groups[0]["lr"]))


def trainer(folder: Path, schedule: Schedule = SCHEDULE, **arguments: Any) -> tuple[Any, Watch]:
    watch = Watch()
    settings = {
        "output_dir": str(folder), "use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no",
        "learning_rate": 0.1, "lr_scheduler_type": "linear", "max_grad_norm": 0.0, **arguments,
    }  # fmt: skip
    data = [{"x": torch.tensor(float(i))} for i in range(100)]
    made = ScheduledTrainer(
        model=Model(), args=transformers.TrainingArguments(**settings), train_dataset=data, callbacks=[watch],
        schedule=schedule,
    )  # fmt: skip
    return made, watch


@pytest.mark.parametrize("workers", [0, 2])
def test_it_follows_the_schedule_and_every_gradient_is_whole(tmp_path: Path, workers: int) -> None:
    made, watch = trainer(tmp_path, dataloader_num_workers=workers)
    made.train()
    assert made.model.sizes == [size for _, size in SCHEDULE.batches()]
    assert watch.gradients == [1.0] * SCHEDULE.steps
    assert made.state.global_step == made.state.max_steps == SCHEDULE.steps
    counts = [made.model.seen.count(i) for i in range(100)]
    assert sum(counts) == 620
    assert max(counts) - min(counts) == 1


def test_the_learning_rate_ends_with_the_run_and_follows_the_multipliers(tmp_path: Path) -> None:
    made, watch = trainer(tmp_path)
    made.train()
    starts = [seen for seen, _ in SCHEDULE.batches()]
    expected = [
        0.1 * (1.0 - step / SCHEDULE.steps) * SCHEDULE.segment_at(seen).learning_rate_multiplier
        for step, seen in enumerate(starts)
    ]
    assert watch.rates == pytest.approx(expected)
    first = Schedule((Segment(0, 8, 0.25), Segment(100, 16)), examples=200)
    made, watch = trainer(tmp_path, first, lr_scheduler_type="constant")
    made.train()
    assert watch.rates[0] == pytest.approx(0.025)
    assert watch.rates[-1] == pytest.approx(0.1)


def test_warm_up_and_decay_are_the_schedules_alone(tmp_path: Path) -> None:
    rates = LearningRateSchedule.of("cosine", examples=620, warmup_examples=100)
    schedule = Schedule((Segment(0, 8), Segment(100, 16), Segment(300, 32, 0.5)), 620, 0.1, rates)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        made, watch = trainer(tmp_path, schedule)
    made.train()
    expected = [
        0.1 * schedule.segment_at(seen).learning_rate_multiplier * rates(seen + size / 2)
        for seen, size in schedule.batches()
    ]
    assert watch.rates == pytest.approx(expected)
    with pytest.warns(UserWarning, match=r"lr_scheduler_type='linear' and a warm-up of 5 are not followed"):
        trainer(tmp_path, schedule, warmup_steps=5)
    with pytest.warns(UserWarning, match=r"lr_scheduler_type='cosine' and a warm-up of 0 are not followed"):
        trainer(tmp_path, schedule, lr_scheduler_type="cosine")


def test_a_scheduler_that_is_given_beside_the_schedules_decay_is_refused(tmp_path: Path) -> None:
    rates = LearningRateSchedule.of("linear", examples=620)
    made, _ = trainer(tmp_path, Schedule((Segment(0, 8),), 620, 0.1, rates))
    optimizer = torch.optim.SGD(made.model.parameters(), lr=0.1)
    made.optimizer, made.lr_scheduler = optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1)
    with pytest.raises(ValueError, match="must be followed alone, and the Trainer was given StepLR: leave it out"):
        made.train()


def test_logs_tell_the_batch_size_and_the_examples(tmp_path: Path) -> None:
    class Reporter(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
            told.append((state.global_step, logs["examples_seen"], logs["batch_size"]))

    told: list[tuple[int, int, int]] = []
    made, _ = trainer(tmp_path, logging_steps=10)
    made.add_callback(Reporter())
    made.train()
    starts = [seen for seen, _ in SCHEDULE.batches()] + [620]
    assert [step for step, _, _ in told][:3] == [10, 20, 30]
    assert all((seen, size) == (starts[step], SCHEDULE(starts[step])) for step, seen, size in told)
    kept = [(entry["step"], entry["examples_seen"], entry["batch_size"]) for entry in made.state.log_history]
    assert kept == told


def test_samples_per_second_are_of_the_whole_run(tmp_path: Path) -> None:
    made, _ = trainer(tmp_path)
    made.train()
    told = made.state.log_history[-1]
    assert told["train_samples_per_second"] * told["train_runtime"] == pytest.approx(620, rel=0.01)
    assert made.num_examples(torch.utils.data.DataLoader(made.train_dataset)) == 100


def test_going_on_from_a_checkpoint_repeats_and_loses_nothing(tmp_path: Path) -> None:
    whole, _ = trainer(tmp_path / "whole")
    whole.train()
    part, _ = trainer(tmp_path / "part", save_strategy="steps", save_steps=20)
    part.train()
    again, _ = trainer(tmp_path / "part")
    again.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-20"))
    assert again.model.seen == whole.model.seen[sum(whole.model.sizes[:20]) :]
    assert float(again.model.weight) == float(whole.model.weight)
    assert math.isfinite(float(again.model.weight))


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path, save_strategy="steps", save_steps=20)[0].train()
    other = Schedule((Segment(0, 8), Segment(100, 16), Segment(300, 32, 1.5)), examples=620)
    for changes, what in (({"seed": 5}, "seed, got one of 42, now 5"), ({"schedule": other}, "schedule, got one of")):
        made, _ = trainer(tmp_path, **changes)
        with pytest.raises(ValueError, match=f"the checkpoint must be of a run of the same {what}"):
            made.train(resume_from_checkpoint=True)


def test_another_learning_rate_than_the_planned_is_told(tmp_path: Path) -> None:
    planned = Schedule.constant(8, examples=80, learning_rate=0.02)
    with pytest.warns(UserWarning, match=r"planned for a learning rate of 0\.02, and the training has 0\.1"):
        trainer(tmp_path, planned)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        trainer(tmp_path, planned, learning_rate=0.02)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps must be 1 under a schedule, got 2"),
        ({"max_steps": 5}, "max_steps must be left out under a schedule, got 5"),
    ],
)
def test_what_would_break_the_schedule_is_refused(tmp_path: Path, arguments: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        trainer(tmp_path, **arguments)


def test_a_name_of_a_file_is_no_schedule(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="got str: load it"):
        trainer(tmp_path, "schedule.json")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got str: load it"):
        ScheduleCallback("schedule.json")  # type: ignore[arg-type]
