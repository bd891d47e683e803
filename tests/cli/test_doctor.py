"""`batchopt doctor`: what is well with a task, and what is not."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from batchopt import TrainingTask
from batchopt.cli.check_training import check_memory
from batchopt.cli.findings import Subject
from batchopt.cli.main import main
from batchopt.cli.task_file import load_task
from batchopt.step_cost import StepCost

CHANGES = """
import dataclasses, math, random, time
x, y = task.data
changed = x.clone()
changed[5, 3] = math.nan
with_nan = dataclasses.replace(task, data=(changed, y))


def fill(loss):
    return lambda model, batch: loss(model, (batch[0].nan_to_num(0.0), *batch[1:]))


masked = dataclasses.replace(with_nan, loss=fill(task.loss))
mean_of_masked = dataclasses.replace(with_nan, loss=lambda model, batch: masked.loss(model, batch).mean())
evaluated_masked = dataclasses.replace(task, eval_data=(changed[:100], y[:100]), loss=fill(task.loss))
evaluated_with_nan = dataclasses.replace(task, eval_data=(changed[:100], y[:100]))


class Examples(torch.utils.data.Dataset):
    def __init__(self, inputs):
        self.inputs = inputs

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        return self.inputs[index], y[index]


class Noisy(Examples):
    own = random.SystemRandom()

    def __getitem__(self, index):
        return self.inputs[index] + self.own.random(), y[index]


class Slow(Examples):
    def __getitem__(self, index):
        time.sleep(5e-4)  # not work, which other programs slow down: a step takes little beside it
        return self.inputs[index], y[index] + 0 * torch.randperm(1_000)[0]


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(12, 4), nn.Linear(3, 3)

    def forward(self, inputs):
        return self.used(inputs)


def classify(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


set_with_nan = dataclasses.replace(task, data=Examples(changed), eval_data=None)
masked_set = dataclasses.replace(set_with_nan, loss=masked.loss)
noisy = dataclasses.replace(task, data=Noisy(x))
slow = dataclasses.replace(task, data=Slow(x))
few = dataclasses.replace(task, data=(x[:90], y[:90]))
one_class = dataclasses.replace(task, data=(x, torch.zeros_like(y)))
constant_column = dataclasses.replace(
    task, data=(x, y, torch.full_like(y, 7)), eval_data=(x[:100], y[:100], torch.full_like(y[:100], 7)))
stream = dataclasses.replace(task, data=iter([(x, y)]))
seeded = dataclasses.replace(task, data=lambda seed: iter(Examples(x)))
mean = dataclasses.replace(task, loss=lambda model, batch: classify(model, batch).mean())
total = dataclasses.replace(task, loss=lambda model, batch: classify(model, batch).sum())
wild = dataclasses.replace(task, loss=lambda model, batch: nn.functional.cross_entropy(
    100 * model(batch[0]), batch[1], reduction="none"))
counts = dataclasses.replace(task, loss=lambda model, batch: classify(model, batch) if model.training else (
    model(batch[0]).argmax(1) != batch[1]).float())
coupled = dataclasses.replace(task, model=lambda: nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)))
unused = dataclasses.replace(task, model=Unused)
shapes = dataclasses.replace(task, model=lambda: nn.Linear(11, 4))
own_rate = dataclasses.replace(task, optimizer=lambda parameters, lr: torch.optim.SGD(parameters, lr=0.1))
explodes = dataclasses.replace(task, prior=(64, 1e38))
high = dataclasses.replace(task, prior=(64, 1e4))
frozen = dataclasses.replace(task, model=lambda: nn.Linear(12, 4).requires_grad_(False))
"""
ALL = {
    "data", "labels", "evaluation data", "model", "optimizer", "loss", "batch norm", "gradients",
    "first steps", "time of a step", "memory", "loading", "evaluation",
}  # fmt: skip


@pytest.fixture
def ward(flow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of tasks with something the matter; steps are timed for a moment only."""
    monkeypatch.setattr("batchopt.cli.check_training.TIMED_SECONDS", 0.05)
    source = Path(flow.task.rpartition(":")[0]).read_text()
    (tmp_path / "ward.py").write_text(source + textwrap.dedent(CHANGES))
    return tmp_path / "ward.py"


def examined(capsys: pytest.CaptureFixture[str], place: str, *, code: int = 0) -> dict[str, Any]:
    """Findings by the name of their check."""
    capsys.readouterr()
    assert main(["doctor", place, "--json"]) == code
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["ok"] is (code == 0)
    if code:
        wrong = [each["check"] for each in found["checks"] if each["state"] == "error"]
        last = err.strip().splitlines()[-1]
        assert last == f"batchopt: error: {len(wrong)} of 13 checks found an error: {', '.join(wrong)}"
    return {each["check"]: each for each in found["checks"]}


def test_a_healthy_task(ward: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = examined(capsys, f"{ward}:task")
    assert found.keys() == ALL
    assert {each["state"] for each in found.values()} == {"ok"}
    assert all(each["remedy"] is None for each in found.values())
    words = {name: each["words"] for name, each in found.items()}
    assert words["data"] == "600 examples (tensors); of an example float32 [12] and int64 scalar; finite"
    assert words["labels"].startswith("4 classes, 0 to 3; from ")
    assert words["evaluation data"] == "200 examples of their own"
    assert words["model"] == "Linear, 52 trainable parameters (float32) on cpu"
    assert words["optimizer"].startswith("SGD, which steps in proportion to gradients")
    assert words["loss"].startswith("one value an example; ")
    assert words["gradients"].startswith("per-example gradients, all examples in one pass: norms of inputs times")
    assert words["memory"].startswith("not sought on cpu")
    assert words["evaluation"].endswith(" steps at batch size 64")


def test_a_line_for_each_check_and_the_next_command(ward: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", f"{ward}:coupled"]) == 0
    text = capsys.readouterr().out
    assert "  ok       data                 600 examples" in text
    assert "  warning  batch norm           BatchNorm1d '1' normalises over the batch" in text
    assert "                                -> read noise scales with care" in text
    assert f"ready to probe (1 warning); next: batchopt run {ward}:coupled --goal loss=VALUE" in text
    assert max(len(line) for line in text.splitlines()[:-1]) <= 100


@pytest.mark.parametrize(
    ("name", "check", "said"),
    [
        ("with_nan", "data", "data[5] holds NaN or infinite values that make its loss nan or infinite"),
        ("set_with_nan", "data", "data[5] holds NaN or infinite values"),
        ("evaluated_with_nan", "evaluation data", "eval_data[5] holds NaN or infinite values that make"),
        ("stream", "data", "a stream of batches, which cannot be run twice from one point"),
        ("total", "loss", "a loss that is one number must be the mean over the batch's examples"),
        ("counts", "loss", "the loss must be the same in training and in evaluation mode"),
        ("shapes", "loss", "RuntimeError: mat1 and mat2 shapes cannot be multiplied"),
        ("own_rate", "optimizer", "optimizer must take the learning rate that it is given"),
        ("explodes", "first steps", "within 5 steps at a learning rate of 1e+38 the loss of a batch of 64 became inf"),
        ("frozen", "model", "the model must have at least one trainable parameter"),
    ],
)
def test_errors(ward: Path, capsys: pytest.CaptureFixture[str], name: str, check: str, said: str) -> None:
    if name == "set_with_nan":  # of a data set some examples are looked at
        ward.write_text(ward.read_text().replace("changed[5, 3]", "changed[5::3, 3]"))
        said = "and others hold NaN or infinite values that make their losses nan or infinite"
    found = examined(capsys, f"{ward}:{name}", code=1)
    assert found[check]["state"] == "error"
    assert said in found[check]["words"]
    assert found[check]["remedy"] or ": " in found[check]["words"]


@pytest.mark.parametrize(
    ("name", "check", "said", "remedy"),
    [
        ("one_class", "labels", "all are 0", "if these are the labels, check where they are read"),
        ("constant_column", "labels", "all are 7", "if these are the labels"),
        ("few", "data", "90 examples", "with fewer than 128 examples"),
        ("masked", "data", "data[5] holds NaN or infinite values, with which its loss is finite", "on purpose"),
        ("mean_of_masked", "data", "data[5] holds NaN or infinite values, with which its loss", "on purpose"),
        ("masked_set", "data", "and others hold NaN or infinite values, with which their losses", "on purpose"),
        ("evaluated_masked", "evaluation data", "eval_data[5] holds NaN or infinite values, with", "on purpose"),
        ("high", "first steps", "at a learning rate of 10000 the loss rose from", "give the task a prior="),
        ("noisy", "first steps", "gave losses that differ by", "torch's or numpy's global generators"),
        ("slow", "loading", "% of a step", "keep the decoded examples in memory"),
        ("wild", "loss", "guessing one of 4 classes has 1.39", "scale the inputs to about 1"),
        ("coupled", "batch norm", "so the batch size changes what is trained", "GroupNorm or LayerNorm"),
        ("unused", "gradients", "2 parameters get no gradient (unused.weight, unused.bias)", "requires_grad=False"),
    ],
)
def test_warnings(
    ward: Path, capsys: pytest.CaptureFixture[str], name: str, check: str, said: str, remedy: str
) -> None:
    if name == "masked_set":  # of a data set some examples are looked at
        ward.write_text(ward.read_text().replace("changed[5, 3]", "changed[5::3, 3]"))
    found = examined(capsys, f"{ward}:{name}")
    assert found[check]["state"] == "warning"
    assert said in found[check]["words"]
    assert remedy in found[check]["remedy"]


def test_what_rests_on_a_failed_check_is_not_made(ward: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = examined(capsys, f"{ward}:with_nan", code=1)
    assert found["loss"]["state"] == found["time of a step"]["state"] == "skipped"
    assert found["loss"]["words"] == "not checked while there is an error in: data"
    assert found["model"]["state"] == "ok"


def test_other_forms_of_data_and_losses(ward: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seeded = examined(capsys, f"{ward}:seeded")
    assert seeded["data"]["words"].startswith("a stream that a seed opens")
    assert seeded["labels"]["words"].startswith("4 classes, 0 to 3 in 256 examples")
    mean = examined(capsys, f"{ward}:mean")
    assert mean["loss"]["words"].startswith("one number, the mean over the batch; ")


def test_no_task(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["doctor", f"{tmp_path / 'missing.py'}:task"]) == 1
    assert "there is no file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("largest", "state", "said"),
    [
        (1_000, "ok", "batches of up to 1,000 examples fit on a card"),
        (8, "warning", "batches of up to 8 examples fit on a card"),
        (None, "ok", "every batch that was tried fits"),
    ],
)
def test_the_largest_batch_of_a_card(
    ward: Path, monkeypatch: pytest.MonkeyPatch, largest: int | None, state: str, said: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    subject = Subject(load_task(f"{ward}:task"), seed=0, cost=StepCost(1e-3, 1e-5, largest_batch_size=largest))
    monkeypatch.setattr(TrainingTask, "torch_device", torch.device("cuda"))
    found = check_memory(subject)
    assert (found.state, said in found.words) == (state, True)
    assert bool(found.remedy) == (state == "warning")
