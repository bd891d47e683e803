"""What a forecast of CartPole gains from noise scales: plain, in Adam's metric, or none, from the same runs of a probe.

    python studies/classic_control/evidence.py

probes once a seed, reads the noise scales of both kinds at the same weights with the same budget, and puts the critical
batch sizes of the three forecasts beside those of the sweep, all at constant rates and in examples.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from problem import task
from rollout_sweep import critical_batch_sizes
from sweep import GRIDS

import batchopt
from batchopt.errors import BatchoptError
from batchopt.probing import long_runs

HERE = Path(__file__).parent
EXAMPLES = 12_000
KINDS = ("preconditioned", "simple")


def reports_of(seed: int, folder: Path) -> dict[str, batchopt.ProbeReport]:
    """A probe by the kind of its noise scales: the second measures these anew, and takes all else from the journal."""
    found = {}
    for kind in KINDS:
        for part in folder.glob("noise-*.json"):
            part.unlink()
        with mock.patch.object(long_runs, "noise_kind", return_value=kind):
            found[kind] = batchopt.probe(task, examples=EXAMPLES, seed=seed, journal=folder)
    return found | {"none": replace(found["simple"], noise_scales=())}


def critical(forecast: batchopt.Forecast, score: float) -> list[float | None] | str:
    """The critical batch size to a score at constant rates, or why there is none."""
    try:
        found = forecast.critical_batch_size(task.data.loss_of(score), learning_rate_schedule="constant")
    except BatchoptError as error:
        return str(error)
    return [each if math.isfinite(each) else None for each in (found.value, found.low, found.high)]


def row_of(seed: int, kind: str, report: batchopt.ProbeReport) -> dict[str, Any]:
    """What a forecast says with readings of a kind."""
    told: dict[str, Any] = {
        "seed": seed,
        "kind": kind,
        "stopped": report.stopped,
        "noise_scales": [
            {"score": task.data.score_of(each.at.loss), "batch_size": each.batch_size.value, "resolved": each.resolved}
            for each in report.noise_scales
            if each.at is not None
        ],
    }
    try:
        forecast = batchopt.Forecast.fit(report)
    except BatchoptError as error:
        return told | {"critical_batch_size": str(error)}
    told["best_score"] = task.data.score_of(forecast.lowest_observed_loss)
    return told | {
        "critical_batch_size": {f"{score:g}": critical(forecast, score) for score in GRIDS["cartpole"].scores}
    }


def tell(rows: list[dict[str, Any]]) -> None:
    """Print what each kind of evidence gives, and by which factor it is off."""
    swept = [json.loads(line) for line in (HERE / "sweep-cartpole.jsonl").read_text().splitlines()]
    measured = {
        f"{score:g}": fit.critical_batch_size.value
        for score, fit in critical_batch_sizes(swept, GRIDS["cartpole"]).items()
    }
    print("measured:", ", ".join(f"{value:.0f} to {score}" for score, value in measured.items()))
    for kind in (*KINDS, "none"):
        logs = []
        for row in (row for row in rows if row["kind"] == kind):
            found = row["critical_batch_size"]
            values = {} if isinstance(found, str) else {s: v for s, v in found.items() if not isinstance(v, str)}
            print(f"{kind}, seed {row['seed']}:", ", ".join(f"{v[0]:.1f} to {s}" for s, v in values.items()) or found)
            logs += [abs(math.log(value[0] / measured[score])) for score, value in values.items() if score in measured]
        if logs:
            print(f"{kind}: off by {math.exp(sum(logs) / len(logs)):.2f} in the geometric mean of {len(logs)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3])
    parser.add_argument("--output", type=Path, default=HERE / "evidence.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(args.output.read_text()) if args.output.exists() else []
    for seed in args.seeds:
        if any(row["seed"] == seed for row in rows):
            continue
        with tempfile.TemporaryDirectory() as folder:
            began = time.process_time()
            rows += [row_of(seed, kind, report) for kind, report in reports_of(seed, Path(folder) / "journal").items()]
        args.output.write_text(json.dumps(rows, indent=1) + "\n")
        print(f"seed {seed}: {time.process_time() - began:.0f} seconds", flush=True)
    tell(rows)
