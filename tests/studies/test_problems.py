"""The studies are tasks that the commands take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from batchopt.cli.task_file import load_task
from batchopt.probing.run import TrainingRun

STUDIES = Path(__file__).parents[2] / "studies"


def test_digits() -> None:
    task = load_task(f"{STUDIES / 'digits' / 'problem.py'}:task")
    assert task.population == 1_797
    run = TrainingRun(task, learning_rate=0.3, seed=0)
    first = run.evaluate()
    for _ in range(150):
        run.step(32)
    assert first == pytest.approx(2.3, abs=0.1)
    assert run.evaluate() < 0.5


def test_mnist_reads_the_folder_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    np.savez(
        tmp_path / "mnist.npz",
        x_train=generator.integers(0, 256, (2_000, 28, 28), dtype=np.uint8),
        y_train=generator.integers(0, 10, 2_000, dtype=np.uint8),
    )
    monkeypatch.setenv("BATCHOPT_DATA", str(tmp_path))
    task = load_task(f"{STUDIES / 'mnist' / 'problem.py'}:task")
    assert task.population == 2_000
    run = TrainingRun(task, learning_rate=0.01, seed=0)
    run.step(16)
    assert run.evaluate() == pytest.approx(2.3, abs=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits"])
def test_smoke(name: str, tmp_path: Path) -> None:
    import shutil
    import subprocess
    import sys

    shutil.copytree(STUDIES, tmp_path / "studies", ignore=shutil.ignore_patterns("out"))
    problem = tmp_path / "studies" / name / "problem.py"
    done = subprocess.run(
        [sys.executable, str(problem), "--smoke"], check=False, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "measured / predicted" in done.stdout
