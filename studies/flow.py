"""The flow that every study runs: probe, forecast, plan, report, train; with --smoke a short one.

A full run leaves what was predicted and measured in result-TASK.json beside the study; `python studies/results.py` puts
these files beside the paper's table 1.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchopt import Forecast, Plan, ProbeReport, TrainingTask
from batchopt.cli.main import main
from batchopt.cli.task_file import load_task
from batchopt.errors import BatchoptError


@dataclass(frozen=True, slots=True)
class Settings:
    """What a study asks for.

    Attributes:
        examples: budget of the probe.
        loss: to plan for, at the end of the decay; None for one that the probe has seen.
        paper: the paper's system, its critical batch sizes at the start and over the run, and its noise scales.
        unit: what the paper counts, in one example.
        per_step: examples that a step of the probe counts for beside its own.
    """

    examples: int
    loss: float | None = None
    paper: str | None = None
    unit: int = 1
    per_step: float = 0.0


def run_study(problem: str, *, full: Mapping[str, Settings] | Settings, smoke: Settings) -> None:
    """Run a study's tasks through the commands; the files go beside the study in out/.

    Exits with code 1 where a command fails, as training does that ends above the loss (of a short run it may).

    Args:
        problem: file that holds the tasks.
        full: settings by the name of a task, or those of the one named task.
        smoke: settings of a short run, of the first task unless others are named.
    """
    of_full = {"task": full} if isinstance(full, Settings) else dict(full)
    parser = argparse.ArgumentParser(description=f"Probe, forecast, plan and train {problem}.")
    parser.add_argument("--smoke", action="store_true", help="a short run that only shows that it works")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", nargs="*", choices=list(of_full))
    args = parser.parse_args()
    failed = False
    for name in args.tasks or list(of_full)[: 1 if args.smoke else None]:
        settings = smoke if args.smoke else of_full[name]
        failed |= not _run(problem, name, settings, args.seed, keep=not args.smoke)
    sys.exit(int(failed))


def _run(problem: str, name: str, settings: Settings, seed: int, *, keep: bool) -> bool:
    """Whether all commands did what they should."""
    out = Path(problem).parent / "out" / name
    out.mkdir(parents=True, exist_ok=True)
    files = {kind: str(out / f"{kind}.json") for kind in ("probe", "forecast", "plan", "schedule", "metrics")}
    Path(files["probe"]).unlink(missing_ok=True)  # a study that is done begins anew; one that was interrupted goes on
    Path(files["metrics"]).unlink(missing_ok=True)
    task, began = f"{problem}:{name}", time.process_time()
    prepared = (
        [
            "probe",
            task,
            "--examples",
            str(settings.examples),
            "--per-step",
            str(settings.per_step),
            "--seed",
            str(seed),
            "-o",
            files["probe"],
        ],
        ["forecast", files["probe"], "-o", files["forecast"]],
    )
    if not all(_do(step) for step in prepared):
        return False
    loss = settings.loss or _seen(files["forecast"])
    followed = (
        ["plan", files["forecast"], "--reach-loss", str(loss), "-o", files["plan"],
         "--schedule", files["schedule"]],
        ["report", "--probe", files["probe"], "--forecast", files["forecast"], "--plan", files["plan"],
         "-o", str(out / "report.html")],
        # The last, since it fails where the loss is not reached.
        ["train", task, files["schedule"], "--plan", files["plan"], "--seed", str(seed + 1),
         "--metrics", files["metrics"]],
    )  # fmt: skip
    done = all(_do(step) for step in followed)
    if not Path(files["metrics"]).exists():
        return False
    if keep:
        result = _result(load_task(task), settings, loss, files, seconds=time.process_time() - began)
        (Path(problem).parent / f"result-{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    return done or not keep


def _do(step: list[str]) -> bool:
    print(f"\n$ batchopt {' '.join(step)}", flush=True)
    return main(step) == 0


def _seen(path: str) -> float:
    """A loss half way, in logarithms, to the lowest that a probe saw."""
    forecast = Forecast.load(path)
    return float(f"{math.sqrt(forecast.initial_loss * forecast.lowest_observed_loss):.4g}")


def _finite(*values: float) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]


def _result(
    task: TrainingTask, settings: Settings, goal: float, files: Mapping[str, str], *, seconds: float
) -> dict[str, Any]:
    """What was measured, forecast and then trained."""
    report, forecast = ProbeReport.load(files["probe"]), Forecast.load(files["forecast"])
    plan = Plan.load(files["plan"])
    lines = [json.loads(line) for line in Path(files["metrics"]).read_text().splitlines()]
    levels = []
    for loss in dict.fromkeys((0.5 * (forecast.initial_loss + goal), goal)):
        try:
            critical = forecast.critical_batch_size(loss)
        except BatchoptError as error:
            levels.append({"loss": loss, "critical_batch_size": None, "why": str(error)})
        else:
            levels.append({"loss": loss, "critical_batch_size": _finite(critical.value, critical.low, critical.high)})
    return {
        "paper": settings.paper,
        "unit": settings.unit,
        "machine": f"{platform.machine()}, {platform.processor() or platform.system()}",
        "seconds_of_processor": round(seconds, 1),
        "population": task.population,
        "parameters": report.provenance.parameters,
        "probe": report.examples_spent,
        "noise_scales": [
            {
                "loss": None if reading.at is None else reading.at.loss,
                "batch_size": _finite(reading.batch_size.value, reading.batch_size.low, reading.batch_size.high),
            }
            for reading in report.noise_scales
        ],
        "forecast": levels,
        "plan": {
            "loss": goal,
            "batch_size": plan.batch_size,
            "learning_rate": plan.learning_rate,
            "steps": _finite(plan.best.steps.value, plan.best.steps.low, plan.best.steps.high),
            "horizon": plan.horizon,
            "end": None if plan.loss is None else _finite(plan.loss.value, plan.loss.low, plan.loss.high),
        },
        "trained": {"examples": lines[-1]["examples"], "steps": lines[-1]["steps"], "loss": lines[-1]["loss"]},
    }
