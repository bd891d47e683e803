"""What a forecast gains from noise scales: plain, in the optimizer's metric, or none, from the same runs of a probe.

Probes once a seed, reads the noise scales of both kinds at the same weights with the same budget, and puts the critical
batch sizes of the three forecasts beside those of the study's sweep, all at constant rates and in examples.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rollout_sweep import critical_batch_sizes

from batchopt import Forecast, ProbeReport, TrainingTask, probe
from batchopt.errors import BatchoptError
from batchopt.probing import long_runs

KINDS = ("preconditioned", "simple")


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is probed, and with what it is compared.

    Attributes:
        task: its data are roll-outs.
        scores: to which critical batch sizes are forecast.
        sweep: file of the runs by brute force.
        examples: budget of a probe.
        per_step: examples that a step of the probe counts for beside its own.
    """

    task: TrainingTask
    scores: tuple[float, ...]
    sweep: Path
    examples: int
    per_step: float = 0.0


def run(comparisons: Mapping[str, Comparison], folder: Path) -> None:
    """Run the command line: probes of the seeds that are not in a game's file yet, and what all of them say.

    Args:
        comparisons: by the name of a game.
        folder: the study's, for the files.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3])
    parser.add_argument("--game", choices=list(comparisons), default=next(iter(comparisons)))
    args = parser.parse_args()
    torch.set_num_threads(1)
    comparison, output = comparisons[args.game], folder / f"evidence-{args.game}.json"
    rows = json.loads(output.read_text()) if output.exists() else []
    for seed in args.seeds:
        if any(row["seed"] == seed for row in rows):
            continue
        began = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            reports = _reports(comparison, seed, Path(folder) / "journal")
            rows += [_row(comparison, seed, kind, report) for kind, report in reports.items()]
        output.write_text(json.dumps(rows, indent=1) + "\n")
        print(f"seed {seed}: {time.process_time() - began:.0f} seconds", flush=True)
    _tell(comparison, rows)


def _reports(comparison: Comparison, seed: int, folder: Path) -> dict[str, ProbeReport]:
    """A probe by the kind of its noise scales: the second measures these anew, and takes all else from the journal."""
    found = {}
    for kind in KINDS:
        for part in folder.glob("noise-*.json"):
            part.unlink()
        with mock.patch.object(long_runs, "noise_kind", return_value=kind):
            found[kind] = probe(
                comparison.task, examples=comparison.examples, per_step=comparison.per_step, seed=seed, journal=folder
            )
    return found | {"none": replace(found["simple"], noise_scales=())}


def _row(comparison: Comparison, seed: int, kind: str, report: ProbeReport) -> dict[str, Any]:
    """What a forecast says with readings of a kind."""
    data = comparison.task.data
    told: dict[str, Any] = {
        "seed": seed,
        "kind": kind,
        "stopped": report.stopped,
        "noise_scales": [
            {"score": data.score_of(each.at.loss), "batch_size": each.batch_size.value, "resolved": each.resolved}
            for each in report.noise_scales
            if each.at is not None
        ],
    }
    try:
        forecast = Forecast.fit(report)
    except BatchoptError as error:
        return told | {"critical_batch_size": str(error)}
    told["best_score"] = data.score_of(forecast.lowest_observed_loss)
    by_score = {f"{score:g}": _critical(forecast, data.loss_of(score)) for score in comparison.scores}
    return told | {"critical_batch_size": by_score}


def _critical(forecast: Forecast, loss: float) -> list[float | None] | str:
    """The critical batch size to a loss at constant rates, or why there is none."""
    try:
        found = forecast.critical_batch_size(loss, learning_rate_schedule="constant")
    except BatchoptError as error:
        return str(error)
    return [each if math.isfinite(each) else None for each in (found.value, found.low, found.high)]


def _tell(comparison: Comparison, rows: Sequence[dict[str, Any]]) -> None:
    """Print what each kind of evidence gives, and by which factor it is off."""
    swept = [json.loads(line) for line in comparison.sweep.read_text().splitlines()]
    fits = critical_batch_sizes(swept, comparison.scores)
    measured = {f"{score:g}": fit.critical_batch_size.value for score, fit in fits.items()}
    print("measured:", ", ".join(f"{value:.2g} to {score}" for score, value in measured.items()))
    for kind in (*KINDS, "none"):
        own, logs = [row for row in rows if row["kind"] == kind], []
        for row in own:
            found = row["critical_batch_size"]
            values = {} if isinstance(found, str) else {s: v for s, v in found.items() if not isinstance(v, str)}
            words = "; ".join(f"{_say(value)} to {score}" for score, value in values.items())
            readings = ", ".join(f"{each['batch_size']:.2g}" for each in row["noise_scales"])
            print(f"{kind}, seed {row['seed']}: noise scales {readings or '-'}; forecast {words or found}")
            logs += [abs(math.log(value[0] / measured[score])) for score, value in values.items() if score in measured]
        if logs:
            print(f"{kind}: off by {_mean(logs):.2f} in the geometric mean of {len(logs)} forecasts")
        read = [
            math.log(each["batch_size"]) for row in own for each in row["noise_scales"]
            if each["resolved"]
        ]  # fmt: skip
        if read:
            print(f"{kind}: {_mean(read):.2g} in the geometric mean of {len(read)} readings")


def _say(found: Sequence[float | None]) -> str:
    value, low, high = (math.inf if each is None else each for each in found)
    return f"{value:.2g} ({low:.2g} to {high:.2g})"


def _mean(logs: Sequence[float]) -> float:
    """Geometric, of what the logs are of."""
    return math.exp(sum(logs) / len(logs))
