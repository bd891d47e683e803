"""The flow that every study runs: probe, forecast, plan, train, report; with --smoke a short one."""

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
        loss: the loss to plan for.
    """

    examples: int
    loss: float


def run_study(problem: str, *, full: Settings, smoke: Settings) -> None:
    """Run a study's `task` through the commands; the files go beside the study in out/."""
    parser = argparse.ArgumentParser(description=f"Probe, forecast, plan and train {problem}.")
    parser.add_argument("--smoke", action="store_true", help="a short run that only shows that it works")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    settings = smoke if args.smoke else full
    out = Path(problem).parent / "out"
    out.mkdir(exist_ok=True)
    probe, forecast, plan, schedule = (str(out / f"{name}.json") for name in ("probe", "forecast", "plan", "schedule"))
    task = f"{problem}:task"
    steps = (
        ["probe", task, "--examples", str(settings.examples), "--seed", str(args.seed), "-o", probe],
        ["forecast", probe, "-o", forecast],
        ["plan", forecast, "--reach-loss", str(settings.loss), "-o", plan, "--schedule", schedule],
        ["train", task, schedule, "--plan", plan, "--seed", str(args.seed + 1)],
        ["report", "--probe", probe, "--forecast", forecast, "--plan", plan, "-o", str(out / "report.html")],
    )
    for step in steps:
        print(f"\n$ batchopt {' '.join(step)}")
        if main(step) != 0:
            sys.exit(1)
