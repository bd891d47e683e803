"""A training goes on from its last evaluation, whenever it was stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import batchopt
from batchopt.errors import RecordError
from batchopt.probing.task import TrainingTask
from batchopt.schedules.schedule import Schedule, Segment
from batchopt.training import checkpoint as checkpoint_module
from batchopt.training.train import TrainingResult, train

SCHEDULE = Schedule((Segment(0, 8), Segment(200, 16, 1.5), Segment(600, 32, 2.0)), examples=1_500, learning_rate=0.01)


def make_task(hidden: int = 12) -> TrainingTask:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(300, 6, generator=generator)
    return TrainingTask(
        model=lambda: nn.Sequential(nn.Linear(6, hidden), nn.Tanh(), nn.Dropout(0.2), nn.Linear(hidden, 2)),
        data=(x, (x[:, 0] > 0).long()),
        loss=lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none"),
        optimizer=lambda parameters, lr: torch.optim.Adam(parameters, lr=lr),
        learning_rate_schedule=lambda progress: 1.0 - 0.9 * progress,
        device="cpu",
    )


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def stop_after(examples: int) -> Any:
    def stop(seen: int, loss: float) -> None:
        if seen > examples:
            raise KeyboardInterrupt

    return stop


def run(path: Path, **options: Any) -> TrainingResult:
    return train(make_task(), SCHEDULE, seed=2, checkpoint=path, **options)


def assert_same(resumed: TrainingResult, whole: TrainingResult) -> None:
    assert torch.equal(weights(resumed.model), weights(whole.model))
    assert resumed.curve == whole.curve
    assert (resumed.steps, resumed.examples, resumed.outcome) == (whole.steps, whole.examples, whole.outcome)
    assert resumed.reached == whole.reached


@pytest.mark.parametrize("examples", [-1, 0, 150, 700])
def test_goes_on_bit_for_bit(tmp_path: Path, examples: int) -> None:
    whole = train(make_task(), SCHEDULE, seed=2)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", on_evaluation=stop_after(examples))
    later: list[int] = []
    resumed = run(tmp_path / "run", on_evaluation=lambda seen, loss: later.append(seen))
    assert_same(resumed, whole)
    assert resumed.seconds >= resumed.measured.clock[0]
    assert (whole.resumed_at, resumed.resumed_at) == (None, whole.curve.examples[-len(later) - 1])
    assert tuple(later) == whole.curve.examples[-len(later) :]
    assert later[0] > examples
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["run", "run.1500.state"]


def test_metrics_are_whole_after_an_interruption(tmp_path: Path) -> None:
    checkpoint, metrics = tmp_path / "run.json", tmp_path / "metrics.jsonl"
    with pytest.raises(KeyboardInterrupt):
        train(make_task(), SCHEDULE, checkpoint=checkpoint, metrics=metrics, on_evaluation=stop_after(700))
    before = metrics.read_text().splitlines()
    result = train(make_task(), SCHEDULE, checkpoint=checkpoint, metrics=metrics)
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert metrics.read_text().splitlines()[: len(before)] == before
    assert [line["examples"] for line in lines] == list(result.curve.examples)
    assert [line["loss"] for line in lines] == list(result.curve.losses)
    assert (lines[0]["batch_size"], lines[-1]["batch_size"]) == (8, 32)
    assert lines[-1]["steps"] == result.steps == SCHEDULE.steps
    # The schedule's multiplier times the task's own decay.
    assert lines[0]["learning_rate"] == pytest.approx(0.01 * (1.0 - 0.9 * 4 / 1_500))
    assert lines[-1]["learning_rate"] == pytest.approx(0.01 * 2.0 * 0.1)


def test_a_finished_training_is_not_trained_again(tmp_path: Path) -> None:
    first = run(tmp_path / "run", until_loss=0.5)
    assert first.outcome == "reached"
    again = run(tmp_path / "run", until_loss=0.5, on_evaluation=stop_after(-1))
    assert_same(again, first)
    assert again.seconds == first.seconds
    assert again.resumed_at == again.examples
    lower = run(tmp_path / "run", until_loss=0.4)
    assert lower.examples > first.examples
    finished = run(tmp_path / "run")
    assert_same(run(tmp_path / "run", on_evaluation=stop_after(-1)), finished)
    assert_same(finished, train(make_task(), SCHEDULE, seed=2))


@pytest.mark.parametrize("moment", ["state", "record"])
def test_a_write_that_fails_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(path, on_evaluation=stop_after(300))
    before = path.read_text()

    def full(*args: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        target = (checkpoint_module, "save_snapshot") if moment == "state" else (checkpoint_module.Checkpoint, "save")
        patch.setattr(*target, full)
        with pytest.raises(OSError, match="no space left"):
            run(path)
    assert path.read_text() == before
    assert_same(run(path), train(make_task(), SCHEDULE, seed=2))


def test_checkpoints_in_one_folder_leave_each_other_alone(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run.b", on_evaluation=stop_after(300))
    run(tmp_path / "run")
    assert_same(run(tmp_path / "run.b"), train(make_task(), SCHEDULE, seed=2))


SCRIPT = """
import sys
from pathlib import Path
from test_checkpoint import run
run(Path(sys.argv[1]), on_evaluation=lambda seen, loss: print(seen, flush=True))
"""


def test_kill_at_any_moment(tmp_path: Path) -> None:
    folders = [str(Path(__file__).parent), str(Path(batchopt.__file__).parents[1])]
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "run")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    for _ in range(4):
        assert process.stdout.readline().strip().isdigit()
    # Somewhere in the steps, the evaluation or the writing that follow.
    time.sleep(0.003)
    process.kill()
    process.communicate()
    assert process.returncode != 0
    later: list[int] = []
    resumed = run(tmp_path / "run", on_evaluation=lambda seen, loss: later.append(seen))
    whole = train(make_task(), SCHEDULE, seed=2)
    assert 0 < len(later) <= len(whole.curve.examples) - 4
    assert resumed.curve.examples == whole.curve.examples
    assert resumed.curve.losses == pytest.approx(whole.curve.losses, rel=1e-5)
    torch.testing.assert_close(weights(resumed.model), weights(whole.model), rtol=5e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"seed": 3}, "seed"),
        ({"learning_rate": 0.02}, "learning_rate"),
        ({"schedule": Schedule.constant(8, examples=1_500, learning_rate=0.01)}, "schedule"),
    ],
)
def test_another_trainings_checkpoint_is_refused(tmp_path: Path, changes: dict[str, Any], name: str) -> None:
    run(tmp_path / "run", until_loss=0.6)
    options: dict[str, Any] = {"seed": 2, "schedule": SCHEDULE, "checkpoint": tmp_path / "run"} | changes
    with pytest.raises(
        RecordError, match=f"a training with another {name}: repeat the call that began it, or delete it"
    ):
        train(make_task(), **options)


def test_a_damaged_checkpoint_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "run"
    result = run(path, until_loss=0.5)
    state = tmp_path / f"run.{result.examples}.state"
    with pytest.raises(RecordError, match="does not hold the state of a run of this task"):
        train(make_task(hidden=5), SCHEDULE, seed=2, checkpoint=path)
    whole = state.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no archive"):
        state.write_bytes(content)
        with pytest.raises(RecordError, match="does not hold the state of a run of this task"):
            run(path)
    state.unlink()
    with pytest.raises(RecordError, match="No such file"):
        run(path)
    path.write_text(path.read_text()[:-20])
    with pytest.raises(RecordError, match="is not valid JSON"):
        run(path)
