"""Runs that TensorBoard's writers left."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from batchopt.errors import EvidenceError
from batchopt.runs.read import read_runs

LOSSES = {0: 2.3, 10: 1.5, 20: 1.1, 50: 0.8, 100: 0.6}


def write(folder: Path, *, rates: dict[int, float] | None = None, **hparams: float) -> None:
    writer = SummaryWriter(str(folder))
    for step, loss in LOSSES.items():
        writer.add_scalar("Loss/val", loss, step)
    for step, rate in (rates or {}).items():
        writer.add_scalar("train/lr", rate, step)
    if hparams:
        writer.add_hparams(hparams, {"hparam/loss": 0.6})
    writer.close()


def test_hyperparameters_give_batch_size_and_rate_and_a_scalar_the_schedule(tmp_path: Path) -> None:
    write(tmp_path / "a", rates={0: 0.0, 10: 0.1, 50: 0.1, 100: 0.0}, batch_size=8, lr=0.1)
    write(tmp_path / "deep" / "b", batch_size=16, lr=0.2)
    first, second = read_runs(tmp_path)
    assert (first.batch_size, first.curve.examples) == (8, (0, 80, 160, 400, 800))
    assert first.curve.losses == pytest.approx(tuple(LOSSES.values()))
    assert first.learning_rate == pytest.approx(0.1)
    assert first.falls == (400, 800)
    assert (second.batch_size, second.learning_rate, second.learning_rate_schedule) == (16, 0.2, None)


def test_without_hyperparameters_they_are_given_by_run(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "deep" / "b")
    settings = {"a": {"batch_size": 8, "learning_rate": 0.1}, "deep/b": {"batch_size": 16, "learning_rate": 0.2}}
    assert [run.batch_size for run in read_runs(tmp_path, settings=settings)] == [8, 16]
    with pytest.raises(EvidenceError, match=r"run 'a': it has no batch_size: .* settings=\{'batch_size': ...\}"):
        read_runs(tmp_path)


def test_one_run_and_steps_that_are_examples(tmp_path: Path) -> None:
    write(tmp_path / "a", batch_size=8, lr=0.1)
    by_examples = {"columns": {"examples": "step"}}
    assert read_runs(tmp_path / "a", **by_examples)[0].curve.examples == (0, 10, 20, 50, 100)
    (file,) = (file for file in (tmp_path / "a").iterdir() if file.is_file())
    (run,) = read_runs(file, settings={"batch_size": 8, "learning_rate": 0.1})
    assert run.curve.examples[-1] == 800


def test_a_folder_within_a_runs_is_another_run_unless_it_holds_its_hyperparameters(tmp_path: Path) -> None:
    write(tmp_path, batch_size=8, lr=0.1)
    write(tmp_path / "b", batch_size=16, lr=0.2)
    assert [run.batch_size for run in read_runs(tmp_path)] == [8, 16]


def test_a_damaged_file_tells_what_came_before(tmp_path: Path) -> None:
    write(tmp_path / "a")
    (file,) = (tmp_path / "a").iterdir()
    file.write_bytes(file.read_bytes()[:-20])
    (run,) = read_runs(tmp_path, settings={"batch_size": 8, "learning_rate": 0.1})
    assert 1 < len(run.curve.examples) < len(LOSSES)


def test_the_package_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a")
    monkeypatch.setitem(sys.modules, "tensorboard.backend.event_processing.event_accumulator", None)
    with pytest.raises(EvidenceError, match=r"needs its package: pip install '\.\[tensorboard\]' in a clone"):
        read_runs(tmp_path)
