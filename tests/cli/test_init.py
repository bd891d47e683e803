"""`batchopt init`: a file that makes a task at once."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from batchopt.cli.main import main
from batchopt.cli.task_file import load_task

NET = """
from torch import nn

class Net(nn.Linear):
    def __init__(self):
        super().__init__(12, 4)

net = Net()

def sized(size):
    return nn.Linear(size, 4)

def one_output():
    return nn.Linear(12, 1)

number = 3
"""
DATA = """
import torch
from torch.utils.data import DataLoader, TensorDataset

generator = torch.Generator().manual_seed(3)
x = torch.randn(600, 12, generator=generator)
y = (x @ torch.randn(12, 4, generator=generator)).argmax(1)
tensors = (x, y)
real = (x, x[:, 0])
binary = (x, (x[:, 0] > 0).long())
loader = DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True)
held = DataLoader(TensorDataset(x[:100], y[:100]), batch_size=32)

def dataset():
    return TensorDataset(x, y)

def opened(seed):
    order = torch.randperm(600, generator=torch.Generator().manual_seed(seed))
    return iter([(x[i], y[i]) for i in order])
"""
LIGHTNING = """
import lightning
import torch
from torch import nn
from data import held, loader

class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(12, 4)

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

class Data(lightning.LightningDataModule):
    def train_dataloader(self):
        return loader

    def val_dataloader(self):
        return held

module = Module()
"""
TRANSFORMERS = """
import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from data import x, y

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(12, 4)

    def forward(self, inputs, labels):
        logits = self.net(inputs)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

data = [{"inputs": a, "labels": int(b)} for a, b in zip(x, y)]
settings = TrainingArguments(output_dir="written", use_cpu=True, report_to=[], learning_rate=1e-3)
trainer = Trainer(model=Model(), args=settings, train_dataset=data, eval_dataset=data[:100])
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model in a subfolder, and data, as the working one; what is imported from it is forgotten."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "net.py").write_text(NET)
    (tmp_path / "data.py").write_text(DATA)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("batchopt.cli.check_training.TIMED_SECONDS", 0.05)
    for name in ("net", "data", "lit", "hf"):
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
        del sys.modules[name]
    return tmp_path


OWN = ["--model", "models/net.py:Net", "--data", "data.py:tensors", "--loss", "cross-entropy", "--optimizer", "adamw"]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 1) -> str:
    """The error of an init that writes nothing."""
    capsys.readouterr()
    assert main(["init", *arguments]) == code
    return capsys.readouterr().err.strip().splitlines()[-1]


def healthy(place: str) -> None:
    """Raise unless the doctor finds no error."""
    assert main(["doctor", place]) == 0


@pytest.mark.parametrize(
    ("options", "holds"),
    [
        (OWN, "model=make_model,\n    data=train_data,\n    loss=loss,"),
        ([*OWN, "--prior", "64:0.001", "--eval-data", "data.py:dataset"], "prior=(64, 0.001),  # a batch size"),
        ([*OWN[:2], "--data", "data.py:dataset", *OWN[4:6], "--optimizer", "sgd"], "data=train_data(),"),
        ([*OWN[:2], "--data", "data.py:opened", *OWN[4:6], "--optimizer", "momentum"], "data=train_data,"),
        (["--model", "models/net.py:net", *OWN[2:]], "model=lambda: copy.deepcopy(first_model),"),
        (["--model", "models/net.py:one_output", "--data", "data.py:real", "--loss", "mse", *OWN[6:]], ".square()"),
        (["--model", "models/net.py:one_output", "--data", "data.py:binary", "--loss", "bce", *OWN[6:]], "with_logits"),
        (["--from", "data.py:loader", *OWN[:2], *OWN[4:]], "from_dataloader(\n    train_data,"),
        (["--from", "data.py:loader", "--eval-data", "data.py:held", *OWN[:2], *OWN[4:]], "eval_loader=eval_data,"),
        (["--from", "data.py:loader", "--eval-data", "data.py:dataset", *OWN[:2], *OWN[4:]], "eval_data=eval_data(),"),
        ([*OWN, "--eval-data", "data.py:held"], "eval_data=eval_data.dataset,"),
    ],
)
def test_parts_of_ones_own(capsys: pytest.CaptureFixture[str], options: list[str], holds: str) -> None:
    assert main(["init", *options]) == 0
    assert capsys.readouterr().out == "wrote task.py; next: batchopt doctor task.py:task\n"
    assert holds in Path("task.py").read_text()
    healthy("task.py:task")
    assert ("accuracy" in load_task("task.py:task").metrics) == ("cross-entropy" in options)


def test_a_trainer_of_transformers() -> None:
    Path("hf.py").write_text(TRANSFORMERS)
    assert main(["init", "--from", "hf.py:trainer", "-o", "task.py"]) == 0
    assert load_task("task.py:task").prior == (8, 1e-3)
    healthy("task.py:task")


@pytest.mark.parametrize("source", ["lit.py:module", "lit.py:Module"])
def test_a_lightning_module_and_its_data(source: str) -> None:
    Path("lit.py").write_text(LIGHTNING)
    assert main(["init", "--from", source, "--data", "lit.py:Data"]) == 0
    healthy("task.py:task")


def test_the_only_data_of_a_module_s_file_need_no_name(capsys: pytest.CaptureFixture[str]) -> None:
    Path("lit.py").write_text(LIGHTNING)
    line = refused(capsys, "--from", "lit.py:module")
    assert "lit.py must hold one LightningDataModule or DataLoader, and 2 are there" in line
    Path("lit.py").write_text(LIGHTNING + "\ndel held\n")
    assert main(["init", "--from", "lit.py:module"]) == 0
    assert (
        "from lit import module, loader as data\n\ntask = task_from_module(module, data)" in Path("task.py").read_text()
    )


def test_questions_are_asked_until_they_are_answered(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Keyboard(io.StringIO):
        def isatty(self) -> bool:
            return True

    answers = ["net", "models/net.py:Net", "data.py:tensors", "", "huber", "", "sgd", "64", "0.1"]
    monkeypatch.setattr(sys, "stdin", Keyboard("\n".join(answers) + "\n"))
    assert main(["init"]) == 0
    told = capsys.readouterr().out
    assert "is named path/to/file.py:name, got 'net'" in told
    assert "one of cross-entropy, mse, bce, model, got 'huber'" in told
    task = load_task("task.py:task")
    assert (task.population, task.eval_data, task.prior) == (600, None, (64, 0.1))
    monkeypatch.setattr(sys, "stdin", Keyboard("models/net.py:Net\n"))
    assert "standard input ended" in refused(capsys, "-o", "other.py", code=2)
    assert not Path("other.py").exists()


def test_without_a_terminal_what_is_open_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    line = refused(capsys, *OWN[:4], code=2)
    assert "standard input is no terminal, so nothing can be asked: give --loss, --optimizer (or --from" in line
    assert not Path("task.py").exists()


def test_a_file_that_is_there_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    Path("task.py").write_text("mine")
    assert "task.py is there already: give another name with -o, or overwrite it with --force" in refused(capsys, *OWN)
    assert Path("task.py").read_text() == "mine"
    assert main(["init", *OWN, "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"out": "task.py", "task": "task.py:task"}
    source = Path("data.py").read_text()
    assert "named twice" in refused(capsys, *OWN, "-o", "data.py", "--force", code=2)
    assert Path("data.py").read_text() == source


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "models/net.py:sized", *OWN[2:]], "needs arguments: write a function without any"),
        (["--model", "models/net.py:number", *OWN[2:]], "must be a function or a class that makes the model, got int"),
        (["--model", "models/net.py:absent", *OWN[2:]], "has no name 'absent'"),
        ([*OWN[:2], "--data", "missing.py:x", *OWN[4:]], "there is no file 'missing.py'"),
        ([*OWN[:2], "--data", "models/net.py:number", *OWN[4:]], "wrote task.py, but it makes no task yet"),
        (["--from", "data.py:tensors"], "is of type tuple: give --model and --data for parts of your own"),
    ],
)
def test_what_makes_no_task(capsys: pytest.CaptureFixture[str], options: list[str], said: str) -> None:
    assert said in refused(capsys, *options)


def test_a_task_needs_no_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", *OWN]) == 0
    line = refused(capsys, "--from", "task.py:task", "-o", "other.py")
    assert line.endswith("is a TrainingTask already, so nothing is to be written: batchopt doctor task.py:task")


def test_options_that_have_no_place(capsys: pytest.CaptureFixture[str]) -> None:
    Path("hf.py").write_text(TRANSFORMERS)
    spare = refused(capsys, "--from", "hf.py:trainer", "--loss", "mse", "--optimizer", "sgd", code=2)
    assert "hf.py:trainer has what --loss and --optimizer would say: leave it out" in spare
    assert "leave --data out" in refused(capsys, "--from", "hf.py:trainer", "--data", "data.py:tensors", code=2)
    assert "leave --data out" in refused(capsys, "--from", "data.py:loader", "--data", "data.py:tensors", code=2)
    assert "ends with .py, got task.txt" in refused(capsys, *OWN, "-o", "task.txt", code=2)


def test_a_file_whose_name_cannot_be_imported(capsys: pytest.CaptureFixture[str]) -> None:
    Path("my-net.py").write_text(NET)
    assert "my-net.py cannot be imported by its name: rename it" in refused(
        capsys, "--model", "my-net.py:Net", *OWN[2:]
    )


def test_held_out_data_of_one_name_with_the_training_data() -> None:
    Path("other.py").write_text(DATA + "\ntensors = (x[:50], y[:50])\n")
    assert main(["init", *OWN, "--eval-data", "other.py:tensors"]) == 0
    task = load_task("task.py:task")
    assert (len(task.data[0]), len(task.eval_data[0])) == (600, 50)
    healthy("task.py:task")


def test_names_that_the_task_s_file_has_itself() -> None:
    names = {"copy": "net", "loss": "tensors", "optimizer": "held", "task": "Net", "torch": "Net"}
    Path("named.py").write_text(NET + DATA + "".join(f"{new} = {old}\n" for new, old in names.items()))
    for model in ("copy", "task", "torch"):
        own = ["--model", f"named.py:{model}", "--data", "named.py:loss", "--eval-data", "named.py:optimizer"]
        assert main(["init", *own, *OWN[4:], "--force"]) == 0
        task = load_task("task.py:task")
        assert (len(task.data[0]), len(task.eval_data)) == (600, 100)
        assert task.make_model().out_features == 4
    healthy("task.py:task")


@pytest.mark.parametrize("folders", [("train", "held"), (".", "held")])
def test_files_of_one_name_hide_each_other(capsys: pytest.CaptureFixture[str], folders: tuple[str, str]) -> None:
    for folder in folders:
        Path(folder).mkdir(exist_ok=True)
        (Path(folder) / "data.py").write_text(DATA)
    parts = [f"{folder}/data.py:tensors" for folder in folders]
    line = refused(capsys, *OWN[:2], "--data", parts[0], "--eval-data", parts[1], *OWN[4:])
    hidden, hiding = (Path(folder).resolve() / "data.py" for folder in folders)
    assert f"must have different names, and {hidden} would be hidden by {hiding}: rename one" in line
    assert not Path("task.py").exists()
