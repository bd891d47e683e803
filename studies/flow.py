"""The flow that every study runs: probe, forecast, plan, report, train; with --smoke a short one."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from batchopt.cli.main import main


@dataclass(frozen=True, slots=True)
class Settings:
    """What a study asks for.

    Attributes:
        examples: budget of the probe.
        loss: to plan for, at the end of the decay.
    """

    examples: int
    loss: float


def run_study(problem: str, *, full: Settings, smoke: Settings) -> None:
    """Run a study's `task` through the commands; the files go beside the study in out/.

    Exits with code 1 where a command fails, as training does that ends above the loss.
    """
    parser = argparse.ArgumentParser(description=f"Probe, forecast, plan and train {problem}.")
    parser.add_argument("--smoke", action="store_true", help="a short run that only shows that it works")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    settings = smoke if args.smoke else full
    out = Path(problem).parent / "out"
    out.mkdir(exist_ok=True)
    probe, forecast, plan, schedule = (str(out / f"{name}.json") for name in ("probe", "forecast", "plan", "schedule"))
    Path(probe).unlink(missing_ok=True)  # a study that is done begins anew; one that was interrupted goes on
    task = f"{problem}:task"
    steps = (
        ["probe", task, "--examples", str(settings.examples), "--seed", str(args.seed), "-o", probe],
        ["forecast", probe, "-o", forecast],
        ["plan", forecast, "--reach-loss", str(settings.loss), "-o", plan, "--schedule", schedule],
        ["report", "--probe", probe, "--forecast", forecast, "--plan", plan, "-o", str(out / "report.html")],
        # The last, since it fails where the loss is not reached.
        ["train", task, schedule, "--plan", plan, "--seed", str(args.seed + 1)],
    )
    for step in steps:
        print(f"\n$ batchopt {' '.join(step)}")
        if main(step) != 0:
            sys.exit(1)
