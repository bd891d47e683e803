"""The reference loop: twin, schedule, stopping, checkpoints."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from batchopt.errors import NonFiniteLossError, RecordError
from batchopt.probing.data import shuffled_indices
from batchopt.probing.task import TrainingTask
from batchopt.schedules.schedule import Schedule, Segment
from batchopt.training.train import train

SCHEDULE = Schedule((Segment(0, 8), Segment(200, 16, 1.5), Segment(600, 32, 2.0)), examples=1_500, learning_rate=0.1)


def make_task(**changes: object) -> TrainingTask:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(300, 6, generator=generator)
    y = (x[:, 0] > 0).long()
    settings: dict[str, object] = {
        "model": lambda: nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Dropout(0.1), nn.Linear(12, 2)),
        "data": (x, y),
        "loss": lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none"),
        "optimizer": lambda parameters, lr, momentum=0.5: torch.optim.SGD(parameters, lr=lr, momentum=momentum),
        "device": "cpu",
    }
    return TrainingTask(**(settings | changes))  # type: ignore[arg-type]


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_twin_a_plain_loop() -> None:
    task = make_task(model=lambda: nn.Linear(6, 2), learning_rate_schedule=lambda progress: 1.0 - 0.5 * progress)
    result = train(task, SCHEDULE, seed=4)
    torch.manual_seed(4)
    model = nn.Linear(6, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    x, y = task.data
    seen = 0
    while seen < 1_500:
        size, factor = (8, 1.0) if seen < 200 else (16, 1.5) if seen < 600 else (32, 2.0)
        size = min(size, 1_500 - seen)
        rows = torch.as_tensor(shuffled_indices(300, seed=4, start=seen, count=size).copy())
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * factor * (1.0 - 0.5 * seen / 1_500)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
        seen += size
    assert torch.allclose(weights(result.model), weights(model), rtol=5e-5, atol=1e-6)
    assert result.examples == 1_500
    assert result.steps == SCHEDULE.steps


def test_stops_when_the_loss_is_reached() -> None:
    result = train(make_task(), SCHEDULE, until_loss=0.5)
    assert result.reached is not None
    assert result.examples < 1_500
    assert result.reached == result.curve.examples_to(0.5)
    # The last evaluation only confirms a crossing: ending one evaluation earlier, it would not have counted.
    shorter = Schedule.constant(8, examples=result.curve.examples[-2], learning_rate=0.1)
    assert train(make_task(), shorter, until_loss=0.5).reached is None


def test_steps_at() -> None:
    result = train(make_task(), SCHEDULE)
    assert result.steps_at(200) == 25.0
    assert result.steps_at(208) == 25.5
    assert result.steps_at(1_500) == SCHEDULE.steps


def test_what_on_evaluation_raises_passes_through() -> None:
    def stop(examples: int, loss: float) -> None:
        raise KeyError(examples)

    with pytest.raises(KeyError, match="0"):
        train(make_task(), SCHEDULE, on_evaluation=stop)


def test_a_stopped_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = train(make_task(), SCHEDULE, seed=2)

    def stop(examples: int, loss: float) -> None:
        if examples > 700:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(make_task(), SCHEDULE, seed=2, checkpoint=tmp_path / "run", on_evaluation=stop)
    resumed = train(make_task(), SCHEDULE, seed=2, checkpoint=tmp_path / "run")
    assert torch.equal(weights(resumed.model), weights(whole.model))
    assert resumed.curve == whole.curve
    assert resumed.steps == whole.steps
    assert len(list(tmp_path.glob("*.state"))) == 1


def test_kill_at_any_moment(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys
            from pathlib import Path
            sys.path.insert(0, sys.argv[1])
            from test_train import SCHEDULE, make_task, weights
            from batchopt.training.train import train
            result = train(make_task(), SCHEDULE, seed=2, checkpoint=Path(sys.argv[2]), on_evaluation=lambda n, loss: print(n, flush=True))
            print(weights(result.model).double().sum().item())
            """
        )
    )
    command = [sys.executable, str(script), str(Path(__file__).parent), str(tmp_path / "run")]
    for evaluations in (1, 3):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(evaluations):
            process.stdout.readline()
        time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    whole = train(make_task(), SCHEDULE, seed=2)
    assert float(finished.stdout.split()[-1]) == pytest.approx(weights(whole.model).double().sum().item(), abs=1e-6)


def test_another_trainings_checkpoint_is_refused(tmp_path: Path) -> None:
    train(make_task(), SCHEDULE, seed=2, checkpoint=tmp_path / "run")
    with pytest.raises(RecordError, match="another training"):
        train(make_task(), SCHEDULE, seed=3, checkpoint=tmp_path / "run")


def test_hyperparameters_reach_the_optimizer() -> None:
    fast = train(make_task(), SCHEDULE, hyperparameters={"momentum": 0.9})
    slow = train(make_task(), SCHEDULE, hyperparameters={"momentum": 0.0})
    assert not torch.equal(weights(fast.model), weights(slow.model))


def test_divergence_and_missing_rate() -> None:
    with pytest.raises(NonFiniteLossError, match="became (nan|inf)"):
        train(make_task(model=lambda: nn.Linear(6, 2)), Schedule.constant(8, examples=2_000, learning_rate=1e38))
    with pytest.raises(ValueError, match="a learning rate is needed"):
        train(make_task(), Schedule.constant(8, examples=100))
