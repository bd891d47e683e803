"""A short use of an installed batchopt. release/install.py runs it with the Python that batchopt was installed for.

Without torch in that environment, everything but the probe is used.
"""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
import sysconfig
import tempfile
from importlib.metadata import requires, version
from importlib.resources import files
from pathlib import Path

from packaging.requirements import Requirement

import batchopt

HEAVY = {"torch", "optuna", "sklearn", "plotly", "pydantic"}


def expect(holds: bool, what: str) -> None:
    """End with an error where something does not hold."""
    if not holds:
        sys.exit(f"smoke test: expected that {what}")


def run(*arguments: str) -> str:
    """What the installed `batchopt` command prints."""
    command = [str(Path(sysconfig.get_path("scripts")) / "batchopt"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    expect(done.returncode == 0, f"{' '.join(command)} succeeds; it said {done.stderr.strip()!r}")
    return done.stdout


def check_package(schema: Path) -> None:
    """What is installed is the package, whole, and importing it is cheap."""
    loaded = HEAVY & {name.partition(".")[0] for name in sys.modules}
    expect(not loaded, f"import batchopt loads no heavy package, and it loaded {sorted(loaded)}")
    expect(Path(batchopt.__file__).is_relative_to(sys.prefix), f"{batchopt.__file__} lies in {sys.prefix}")
    expect(files("batchopt").joinpath("py.typed").is_file(), "py.typed is installed")
    expect(batchopt.__version__ == version("batchopt"), "the version is that of the metadata")
    expect(run("--version") == f"batchopt {batchopt.__version__}\n", "the command tells the version")
    expect("probe -> forecast -> plan" in run("--help"), "the command has its help")
    published = json.loads(schema.read_text())
    expect(json.loads(run("schedule", "--schema")) == published, f"batchopt schedule --schema prints {schema}")


def check_requirements(*, has_torch: bool) -> None:
    """What batchopt requires is there, in versions that it allows."""
    for needed in map(Requirement, requires("batchopt") or []):
        if (needed.marker is None or needed.marker.evaluate({"extra": ""})) and (has_torch or needed.name != "torch"):
            expect(version(needed.name) in needed.specifier, f"{needed} is met by {version(needed.name)}")


def loss_after(steps: int, batch_size: int, learning_rate: float) -> float:
    """A made-up training."""
    return 0.1 + 2.0 / math.sqrt(1.0 + learning_rate * steps / (1.0 + 60.0 / batch_size))


def check_logs() -> None:
    """From logs of runs to a forecast, a plan, and a schedule for another framework."""
    steps = range(0, 401, 20)
    settings = [(16, 0.1), (16, 0.3), (64, 0.1), (64, 0.3), (256, 0.1), (256, 0.3)]
    runs = [
        batchopt.logged_run(
            batch_size=size, learning_rate=rate, steps=list(steps), losses=[loss_after(n, size, rate) for n in steps]
        )
        for size, rate in settings
    ]
    forecast = batchopt.Forecast.fit(runs=runs, adaptive=False)
    plan = forecast.plan(batchopt.ReachLoss(0.25), step_cost=batchopt.StepCost(per_step=2e-3, per_example=1e-5))
    expect(8 <= plan.batch_size <= 512 and plan.loss.value <= 0.25, f"the plan {plan} is of this training")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "schedule.json"
        plan.schedule.save(file)
        expect(batchopt.Schedule.load(file) == plan.schedule, "a schedule is read as it was written")
        told = run(
            "schedule",
            str(file),
            "--to",
            "megatron",
            "--tokens-per-example",
            "128",
            "--micro-batch",
            "1",
            "--data-parallel",
            "1",
            "--json",
        )
        expect(bool(json.loads(told)), "a schedule is exported")


def check_probe() -> None:
    """From a training task to a plan, on handwritten digits."""
    import torch
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.data / 16, dtype=torch.float32)
    task = batchopt.TrainingTask(
        model=lambda: torch.nn.Linear(64, 10),
        data=(images, torch.tensor(digits.target)),
        eval_data=(images[:512], torch.tensor(digits.target[:512])),
        loss=lambda model, batch: torch.nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none"),
        optimizer=lambda parameters, lr: torch.optim.SGD(parameters, lr=lr),
        device="cpu",
    )
    report = batchopt.probe(task, examples=30_000, seed=0)
    plan = batchopt.Forecast.fit(report).plan(batchopt.ReachLoss(0.4, "balanced"))
    expect(1 <= plan.batch_size <= len(images), f"a batch size of at most {len(images)} is planned, not {plan}")


if __name__ == "__main__":
    check_package(Path(sys.argv[1]))
    has_torch = importlib.util.find_spec("torch") is not None
    check_requirements(has_torch=has_torch)
    check_logs()
    if has_torch:
        check_probe()
    expect(has_torch or "torch" not in sys.modules, "nothing but the probe needs torch")
    source = "a probe" if has_torch else "logs, without torch"
    print(f"Python {sys.version.split()[0]}: from {source} to a forecast, a plan and a schedule.")
