"""How well a metric is told from the loss: accuracies of image models at losses below those that were fitted.

Runs of the sweeps' problems at three batch sizes, each with its best peak rate, warm up over a twentieth and decay over
the last fifth of one and a half times the fewest examples of the sweep. Along them loss and accuracy are evaluated, on
training examples and on held-out ones. The relation (`batchopt/forecasting/metric_curve.py`) is fitted to what lies
above two or four times the lowest loss, and asked for all below: mean error, and how many of the values its 90 %
intervals hold. Curves are kept in `out/metrics.jsonl`, and the same call goes on where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import kept
import numpy as np
import torch
from machine import machine, save
from prediction import GOALS
from torch import Tensor, nn
from truth.decayed import decayed_sweep_of
from truth.problems import PROBLEMS, make
from truth.tradeoff import sweep_of

from batchopt.errors import NonFiniteLossError
from batchopt.evidence import Branch, LossCurve
from batchopt.forecasting.metric_curve import fit_metric_curves
from batchopt.probing.data import evaluation_examples
from batchopt.probing.evaluation import evaluated
from batchopt.probing.run import TrainingRun

HERE = Path(__file__).parent
NAMES = ("digits_softmax", "digits_mlp", "mnist_cnn_adam", "mnist_cnn_sgd", "cifar_cnn", "imagenette_cnn")
BATCH_SIZES = (8, 32, 128)
SEED = 77
CUTS = (2.0, 4.0)
LEAST = 5
"""Evaluations above the cut, without which a case is left out."""
Row = dict[str, Any]


def accuracy(model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    """Whether each example is classified rightly, (batch,)."""
    return model(batch[0]).argmax(1) == batch[1]


def rows_of(name: str, batch_size: int) -> list[Row]:
    """Evaluations along one run, a factor of 1.4 apart in examples."""
    task, held_out = make(name)
    task = replace(task, metrics={"accuracy": accuracy})
    seen, held = task, replace(task, eval_data=tuple(held_out))
    price, loss = GOALS["seconds at 64 + B"], PROBLEMS[name].losses[-2]
    rate = decayed_sweep_of(name).cheapest(loss, price, batch_size).learning_rate
    run = TrainingRun(task, learning_rate=rate, seed=SEED)
    horizon, following, rows = 1.5 * sweep_of(name).fewest_examples, 10 * batch_size, []
    while run.examples_seen < horizon:
        progress = run.examples_seen / horizon
        decay = 1.0 if progress < 0.8 else max(0.02, (1.0 - progress) / 0.2)
        try:
            run.step(batch_size, multiplier=decay * min(1.0, (progress + 1e-3) / 0.05))
        except NonFiniteLossError:
            break
        if run.examples_seen >= min(following, horizon):
            following = int(run.examples_seen * 1.4)
            for where, each in {"training": seen, "held out": held}.items():
                found = evaluated(each, run.model)
                rows.append({
                    "problem": name, "where": where, "batch_size": batch_size, "learning_rate": rate,
                    "examples": run.examples_seen, "loss": found.loss, "accuracy": found.metrics["accuracy"],
                    "evaluated": evaluation_examples(each),
                })  # fmt: skip
    return rows


def judge(rows: Sequence[Row], cut: float) -> Row | None:
    """The relation from what lies above `cut` times the lowest loss, beside the rest; None with too little."""
    limit = cut * min(row["loss"] for row in rows)
    above, below = [row for row in rows if row["loss"] > limit], [row for row in rows if row["loss"] <= limit]
    if len(above) < LEAST or not below:
        return None
    runs = [
        Branch(row["batch_size"], row["learning_rate"],
               LossCurve((row["examples"],), (row["loss"],), {"accuracy": (row["accuracy"],)}))
        for row in above
    ]  # fmt: skip
    (curve,) = fit_metric_curves(runs, rows[0]["evaluated"])
    said = [(curve(row["loss"]), row["accuracy"]) for row in below]
    lowest = min(below, key=lambda row: row["loss"])
    last = curve(lowest["loss"])
    return {
        "problem": rows[0]["problem"], "where": rows[0]["where"], "cut": cut, "fitted": len(above), "asked": len(below),
        "mean_error": float(np.mean([abs(reading.value - value) for reading, value in said])),
        "inside": float(np.mean([reading.low <= value <= reading.high for reading, value in said])),
        "last": [last.value, last.low, last.high], "true_last": lowest["accuracy"],
    }  # fmt: skip


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--kept", type=Path, default=HERE / "out" / "metrics.jsonl", help="where curves are kept")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "metrics.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    done = kept.read(args.kept)
    for name in args.problems:
        for size in BATCH_SIZES:
            if not any((row["problem"], row["batch_size"]) == (name, size) for row in done):
                for row in rows_of(name, size):
                    kept.add(args.kept, row)
                    done.append(row)
    cases = []
    for name in args.problems:
        for where in ("training", "held out"):
            own = [row for row in done if (row["problem"], row["where"]) == (name, where)]
            cases += [case for cut in CUTS if (case := judge(own, cut)) is not None]
    print(f"{'problem':16}{'where':10}{'cut':>4}{'error':>8}{'inside':>8}  last predicted, and true")
    for case in cases:
        last = "{:.3f} ({:.3f} to {:.3f})".format(*case["last"])
        told = f"{case['mean_error']:8.4f}{case['inside']:8.0%}  {last}, {case['true_last']:.3f}"
        print(f"{case['problem']:16}{case['where']:10}{case['cut']:4.0f}{told}")
    mean = {key: float(np.mean([case[key] for case in cases])) for key in ("mean_error", "inside")}
    print(f"mean of {len(cases)} cases: error {mean['mean_error']:.4f}, inside {mean['inside']:.0%}")
    save(args.output, {"machine": machine(), "mean": mean, "cases": cases})


if __name__ == "__main__":
    main()
