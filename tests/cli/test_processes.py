"""Commands in two processes, beside the same in one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli.conftest import Flow
from launching import Ended, by_torchrun, together
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from batchopt.cli.main import main


def run(folder: Path, *arguments: str | Path, count: int = 2) -> list[Ended]:
    """A command in several processes, each of which has ended well."""
    folder.mkdir()
    all_ended = together(folder, main, [str(argument) for argument in arguments], count=count)
    for ended in all_ended:
        assert ended.code == 0, ended.err[-2_000:]
    return all_ended


def test_two_processes_train_as_one(flow: Flow, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told, weights = [], []
    for name in ("one", "two"):
        saved = ["--save", str(tmp_path / f"{name}.pt"), "--checkpoint", str(tmp_path / f"{name}.run")]
        realised = ["--adapt", flow.forecast, "--realised", str(tmp_path / f"{name}.json")]
        command = ["train", flow.task, flow.schedule, "--plan", flow.plan, *saved, *realised, "--json"]
        if name == "one":
            capsys.readouterr()
            assert main(command) == 0
            told.append(json.loads(capsys.readouterr().out))
        else:
            first, second = run(tmp_path / "processes", *command)
            told.append(json.loads(first.out))
            assert second.out == ""
        weights.append(torch.load(tmp_path / f"{name}.pt", weights_only=True)["weight"])
        assert (tmp_path / f"{name}.json").exists()
    assert told[1]["reached_at_examples"] == pytest.approx(told[0]["reached_at_examples"], rel=1e-4)
    assert told[1]["steps"] == told[0]["steps"]
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-4, atol=1e-5)


def test_under_torchrun_what_was_trained_is_kept_where_the_loss_is_missed(flow: Flow, tmp_path: Path) -> None:
    """The first process takes its time to write; the other must not end before it, or torchrun would kill it."""
    slow = "\nimport os, time\nsave = torch.save\n"
    slow += "torch.save = lambda *given: (time.sleep(3 * (os.environ['RANK'] == '0')), save(*given))\n"
    (tmp_path / "slow.py").write_text((flow.folder / "my_task.py").read_text() + slow)
    saved, task = tmp_path / "weights.pt", f"{tmp_path / 'slow.py'}:task"
    command = ["train", task, flow.schedule, "--plan", flow.plan, "--learning-rate", "1e-6", "--save", str(saved)]
    with pytest.raises(ChildFailedError):
        by_torchrun(tmp_path / "processes", main, command)
    assert torch.load(saved, weights_only=True)["weight"].shape == (4, 12)
    errors = [file.read_text() for file in (tmp_path / "processes").rglob("stderr.log")]
    assert len(errors) == 2
    assert "".join(errors).count("batchopt: error: the plan's loss of 0.4 was not reached") == 1


@pytest.mark.slow
def test_the_command_as_it_is_typed(flow: Flow, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "batchopt", "train", flow.task, flow.schedule, "--save", str(tmp_path / "weights.pt")]
    ended = subprocess.run([*torchrun, *command], capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr[-2_000:]
    assert torch.load(tmp_path / "weights.pt", weights_only=True)["weight"].shape == (4, 12)


def test_weights_of_a_sharded_model_are_saved_whole(flow: Flow, tmp_path: Path) -> None:
    text = (flow.folder / "my_task.py").read_text()
    (tmp_path / "sharded.py").write_text(
        text.replace("lambda: nn.Linear(12, 4)", "lambda: fully_shard(nn.Linear(12, 4))")
        + "\nfrom torch.distributed.fsdp import fully_shard\n"
    )
    assert main(["train", flow.task, flow.schedule, "--save", str(tmp_path / "whole.pt")]) == 0
    whole = torch.load(tmp_path / "whole.pt", weights_only=True)
    for count in (1, 2):
        saved = tmp_path / f"{count}.pt"
        sharded = f"{tmp_path / 'sharded.py'}:task"
        run(tmp_path / f"processes{count}", "train", sharded, flow.schedule, "--save", saved, count=count)
        state = torch.load(saved, weights_only=True)
        torch.testing.assert_close(state["weight"], whole["weight"], rtol=1e-4, atol=1e-5)


def test_two_processes_probe_once(flow: Flow, tmp_path: Path) -> None:
    out = tmp_path / "probe"
    out.mkdir()
    first, second = run(tmp_path / "processes", "probe", flow.task, "--examples", "5000", "-o", out / "probe.json")
    assert (first.out + second.out).count("wrote") == 1
    assert [file.name for file in out.iterdir()] == ["probe.json"]


class Left(Exception):  # noqa: N818  (it is no error)
    """Stands in for the end of a process."""


def as_one_of_two(monkeypatch: pytest.MonkeyPatch, rank: int, *arguments: str) -> int:
    """The code that a command ends with in one of two processes, where it ends before it has joined the other."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(rank))

    def leave(code: int) -> None:
        raise Left(code)

    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(Left) as ended:
        main(list(arguments))
    return int(ended.value.args[0])


@pytest.mark.parametrize("rank", [0, 1])
def test_what_one_process_does_is_refused(
    flow: Flow, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: int
) -> None:
    assert as_one_of_two(monkeypatch, rank, "forecast", flow.probe) == 2
    assert f"process {rank}: error: `batchopt forecast` is the work of one process" in capsys.readouterr().err


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_fails_is_named(
    flow: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: int
) -> None:
    (tmp_path / "fails.py").write_text((flow.folder / "my_task.py").read_text() + "\nassert False, 'here'\n")
    assert as_one_of_two(monkeypatch, rank, "train", f"{tmp_path / 'fails.py'}:task", flow.schedule) == 1
    told = capsys.readouterr().err
    assert f"process {rank}: error:" in told
    assert "does not import: AssertionError: here" in told
