"""Commands under torchrun, beside the same in one process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli.conftest import Flow

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "batchopt"]
ALONE = [sys.executable, "-m", "batchopt"]


def run(launcher: list[str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*launcher, *arguments], capture_output=True, text=True, timeout=120, check=False)


def test_two_processes_train_as_one(flow: Flow, tmp_path: Path) -> None:
    told, weights = [], []
    for launcher, name in ((ALONE, "one"), (TORCHRUN, "two")):
        saved = ["--save", str(tmp_path / f"{name}.pt"), "--checkpoint", str(tmp_path / f"{name}.run")]
        realised = ["--adapt", flow.forecast, "--realised", str(tmp_path / f"{name}.json")]
        done = run(launcher, "train", flow.task, flow.schedule, "--plan", flow.plan, *saved, *realised, "--json")
        assert done.returncode == 0, done.stderr[-2_000:]
        told.append(json.loads(done.stdout))
        weights.append(torch.load(tmp_path / f"{name}.pt", weights_only=True)["weight"])
        assert (tmp_path / f"{name}.json").exists()
    assert told[1]["reached_at_examples"] == pytest.approx(told[0]["reached_at_examples"], rel=1e-4)
    assert told[1]["steps"] == told[0]["steps"]
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-4, atol=1e-5)


def test_what_was_trained_is_kept_where_the_loss_is_missed(flow: Flow, tmp_path: Path) -> None:
    """The first process takes its time to write; the other must not end before it, or torchrun would kill it."""
    slow = "\nimport os, time\nsave = torch.save\n"
    slow += "torch.save = lambda *given: (time.sleep(3 * (os.environ['RANK'] == '0')), save(*given))\n"
    (tmp_path / "slow.py").write_text((flow.folder / "my_task.py").read_text() + slow)
    saved, task = tmp_path / "weights.pt", f"{tmp_path / 'slow.py'}:task"
    done = run(TORCHRUN, "train", task, flow.schedule, "--plan", flow.plan, "--learning-rate", "1e-6", "--save", saved)
    assert done.returncode != 0
    assert torch.load(saved, weights_only=True)["weight"].shape == (4, 12)
    assert done.stderr.count("batchopt: error: the plan's loss of 0.25 must be reached") == 1


def test_weights_of_a_sharded_model_are_saved_whole(flow: Flow, tmp_path: Path) -> None:
    text = (flow.folder / "my_task.py").read_text()
    (tmp_path / "sharded.py").write_text(
        text.replace("lambda: nn.Linear(12, 4)", "lambda: fully_shard(nn.Linear(12, 4))")
        + "\nfrom torch.distributed.fsdp import fully_shard\n"
    )
    sharded, of_one = f"{tmp_path / 'sharded.py'}:task", [part.replace("=2", "=1") for part in TORCHRUN]
    task = {"one": (ALONE, flow.task), "two": (TORCHRUN, sharded), "of one": (of_one, sharded)}
    for name, (launcher, spec) in task.items():
        done = run(launcher, "train", spec, flow.schedule, "--save", str(tmp_path / f"{name}.pt"))
        assert done.returncode == 0, done.stderr[-2_000:]
    one, *sharded_ones = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in task)
    for state in sharded_ones:
        torch.testing.assert_close(state["weight"], one["weight"], rtol=1e-4, atol=1e-5)


def test_two_processes_probe_once(flow: Flow, tmp_path: Path) -> None:
    done = run(TORCHRUN, "probe", flow.task, "--examples", "20000", "-o", str(tmp_path / "probe.json"))
    assert done.returncode == 0, done.stderr[-2_000:]
    assert done.stdout.count("wrote") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["probe.json"]


def test_what_one_process_does_is_refused(flow: Flow) -> None:
    done = run(TORCHRUN, "forecast", flow.probe)
    assert done.returncode != 0
    assert ": error: `batchopt forecast` is the work of one process" in done.stderr


def test_a_process_that_fails_is_named(flow: Flow, tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text((flow.folder / "my_task.py").read_text() + "\nassert False, 'here'\n")
    done = run(TORCHRUN, "train", f"{tmp_path / 'fails.py'}:task", flow.schedule)
    assert done.returncode != 0
    assert "process 0: error:" in done.stderr or "process 1: error:" in done.stderr
    assert "does not import: AssertionError: here" in done.stderr
