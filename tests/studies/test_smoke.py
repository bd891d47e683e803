"""Every study's short run, on made data."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from studies.made_data import save_all

STUDIES = Path(__file__).parents[2] / "studies"
NEEDED = {"classic_control": "gymnasium", "ppo": "gymnasium", "atari": "ale_py"}


@pytest.mark.parametrize(
    "name", ["digits", "mnist", "cifar10", "svhn", "imagenet", "language", "classic_control", "ppo", "atari"]
)
def test_smoke(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in NEEDED:
        pytest.importorskip(NEEDED[name])
    save_all(tmp_path)
    monkeypatch.setenv("BATCHOPT_DATA", str(tmp_path))
    told = smoke(tmp_path, f"{name}/problem.py")
    # A schedule that raises the batch size, as measured times may have it, is trained and not compared.
    trained = "measured / predicted" in told or "raises it: not compared" in told
    assert '"preconditioned": [' in told if name == "atari" else trained


@pytest.mark.parametrize(
    ("name", "game", "package"),
    [
        ("classic_control", "cartpole", "gymnasium"),
        ("ppo", "pendulum", "gymnasium"),
        ("ppo", "lander", "Box2D"),
        ("atari", "breakout", "ale_py"),
    ],
)
def test_smoke_of_a_sweep(name: str, game: str, package: str, tmp_path: Path) -> None:
    pytest.importorskip("gymnasium")
    pytest.importorskip(package)
    (row,) = json.loads(smoke(tmp_path, f"{name}/sweep.py", "--games", game).splitlines()[-1])
    assert row["examples"] == row["batch_size"]
    assert row["outcome"] == "finished"
    assert math.isfinite(row["best"])


def smoke(folder: Path, file: str, *options: str) -> str:
    """What a study's file prints that is run in a copy."""
    shutil.copytree(STUDIES, folder / "studies", ignore=shutil.ignore_patterns("out"))
    command = [sys.executable, str(folder / "studies" / file), "--smoke", *options]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-2_000:]
    return done.stdout
