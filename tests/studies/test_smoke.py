"""Every study's short run, on made data."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from studies.made_data import save_all

STUDIES = Path(__file__).parents[2] / "studies"


@pytest.mark.parametrize(
    "name", ["digits", "cifar10", "svhn", "imagenet", "language", "classic_control", "ppo", "atari"]
)
def test_smoke(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in {"classic_control": ("gymnasium",), "ppo": ("gymnasium",), "atari": ("ale_py",)}.get(name, ()):
        pytest.importorskip(package)
    save_all(tmp_path)
    monkeypatch.setenv("BATCHOPT_DATA", str(tmp_path))
    shutil.copytree(STUDIES, tmp_path / "studies", ignore=shutil.ignore_patterns("out"))
    problem = tmp_path / "studies" / name / "problem.py"
    done = subprocess.run(
        [sys.executable, str(problem), "--smoke"], check=False, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-2_000:]
    # A schedule that raises the batch size, as measured times may have it, is trained and not compared.
    trained = "measured / predicted" in done.stdout or "raises it: not compared" in done.stdout
    assert '"preconditioned": [' in done.stdout if name == "atari" else trained
