"""The scripts in examples/, in a small form: each leaves a report, and a model that is better than an untrained one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
LONGEST = 40
SMALLER: dict[str, dict[str, str]] = {
    "plain_pytorch": {"examples=60_000": "examples=6_000", "ReachLoss(0.15)": "ReachLoss(0.8)"},
    "transformers_trainer": {
        "examples=60_000": "examples=2_000",
        "LowestLoss(40_000": "LowestLoss(2_000",
        "num_hidden_layers=2": "num_hidden_layers=1",
    },
    "lightning_module": {"examples=60_000": "examples=6_000", "ReachLoss(0.15)": "ReachLoss(0.8)"},
    "accelerate_loop": {"examples=60_000": "examples=6_000", "ReachLoss(0.15)": "ReachLoss(0.8)"},
    "optuna_study": {"n_trials=30": "n_trials=4", "nn.CrossEntropyLoss(), 10": "nn.CrossEntropyLoss(), 3"},
    "ppo_cartpole": {
        "examples=4_000": "examples=700",
        "episodes=16": "episodes=4",
        "LowestLoss(2_000": "LowestLoss(200",
    },
}
"""What is replaced in each, by what."""
NEEDED = {
    "transformers_trainer": ("transformers", "accelerate"),
    "lightning_module": ("lightning",),
    "accelerate_loop": ("accelerate",),
    "ppo_cartpole": ("gymnasium",),
}
RUN = """
import json, math, runpy, sys
import torch
from batchopt.probing.evaluation import evaluated

torch.manual_seed(0)
found = runpy.run_path(sys.argv[1], run_name="__main__")
if "task" in found:
    task = found["task"]
    trained, untrained = task.make_model(), task.make_model()
    trained.load_state_dict(found["model"].state_dict())
    losses = [evaluated(task, model).loss for model in (trained, untrained)]
else:
    losses = [found["study"].best_value, math.log(10)]  # of guessing one of ten digits
print(json.dumps(losses))
"""


def test_each_has_a_small_form() -> None:
    assert sorted(path.stem for path in EXAMPLES.glob("*.py")) == sorted(SMALLER)


@pytest.mark.parametrize("name", SMALLER)
def test_an_example_is_short_and_begins_with_code_of_the_users_own(name: str) -> None:
    lines = (EXAMPLES / f"{name}.py").read_text().splitlines()
    assert len(lines) <= LONGEST
    (end,) = [number for number, line in enumerate(lines) if line.startswith("# The end of your own code")]
    assert not any("batchopt" in line for line in lines[:end])
    assert "import batchopt" in lines[end:]


@pytest.mark.parametrize("name", SMALLER)
def test_an_example_trains_a_model_and_leaves_a_report(name: str, tmp_path: Path) -> None:
    for package in NEEDED.get(name, ()):
        pytest.importorskip(package)
    script = (EXAMPLES / f"{name}.py").read_text()
    for full, small in SMALLER[name].items():
        assert script.count(full) == 1
        script = script.replace(full, small)
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "-c", RUN, "script.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-2_000:]
    trained, untrained = json.loads(done.stdout.splitlines()[-1])
    assert trained < 0.9 * untrained
    report = (tmp_path / "out" / "report.html").read_text()
    assert f'id="figure-{"study" if name == "optuna_study" else "loss-curves"}"' in report
